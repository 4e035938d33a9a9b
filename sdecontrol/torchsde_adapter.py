"""To and from torchsde: the same process as an object with f, g and h, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdecontrol.controls import as_control
from sdecontrol.errors import check
from sdecontrol.laws import Law
from sdecontrol.processes import DiffusionProcess, Process

_PROBES = ((0.0, 0.0), (0.31, 1.0), (0.77, -2.5))


class ProcessSDE(torch.nn.Module):
    """f = drift + amplitude u, g = amplitude on the diagonal, h = reference drift: logqp=True gives the path KL.

    Shapes: states (n, d). Only controls of (t, x) can be used: torchsde has no step to show a control.
    """

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, process: Process, control: Any = None):
        super().__init__()
        self.process, self.control = process, as_control(control)

    def h(self, t: Any, y: Tensor) -> Tensor:
        return self.process.state(float(t), y).drift

    def f(self, t: Any, y: Tensor) -> Tensor:
        drift = self.h(t, y)
        return drift if self.control is None else drift + self.process.amplitude(float(t)) * self.control(float(t), y)

    def g(self, t: Any, y: Tensor) -> Tensor:
        return torch.full_like(y, self.process.amplitude(float(t)))


def process_from_sde(kind: type[DiffusionProcess], sde: Any, initial: Law, horizon: float) -> DiffusionProcess:
    """DiffusionProcess with the drift and the amplitude of a torchsde object whose noise is scalar and state-free."""
    check(getattr(sde, "sde_type", None) == "ito", f"sde_type {getattr(sde, 'sde_type', None)!r}", "an Ito SDE")
    check(
        sde.noise_type in ("diagonal", "additive"), f"noise_type {sde.noise_type!r}", '"diagonal" or "additive" noise'
    )
    d = initial.event_shape[0]

    def matrix(t: float, x: Tensor) -> Tensor:
        g = sde.g(torch.tensor(t, dtype=x.dtype), x)
        return torch.diag_embed(g) if sde.noise_type == "diagonal" else g

    for fraction, value in _PROBES:
        g = matrix(fraction * horizon, torch.full((2, d), value, dtype=torch.float64))
        scalar = matrix(fraction * horizon, torch.zeros(2, d, dtype=torch.float64))[0, 0, 0] * torch.eye(
            d, dtype=torch.float64
        )
        same = g.shape[-1] == d and torch.allclose(g, scalar.expand_as(g), rtol=1e-6, atol=1e-12)
        check(
            same,
            f"noise that depends on the state or is not isotropic at t = {fraction * horizon:.3g}",
            "g(t, x) = amplitude(t) I",
            "Only scalar, state-free noise has a path KL against every control.",
        )
    probe = torch.zeros(1, d, dtype=torch.float64)
    return kind(
        lambda t, x: sde.f(torch.tensor(t, dtype=x.dtype), x),
        lambda t: float(matrix(t, probe)[0, 0, 0]),
        initial,
        horizon,
    )
