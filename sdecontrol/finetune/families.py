"""Families of controls to learn: modules with parameters that are controls too.

All start at u = 0, the pretrained model. They compute in the precision of their parameters and answer in the state's.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdecontrol.controls import Control
from sdecontrol.errors import NotDefined, check
from sdecontrol.finetune.features import Cosines, Polynomials, TimeFeatures
from sdecontrol.step import StepView

_SEED = 0  # of the initial weights of networks, which are drawn from a generator of their own


class Family(Control, nn.Module):
    """A control with parameters theta. Of the two bases' `__call__` it is the control's that is used."""

    @property
    def dtype(self) -> torch.dtype:
        """That of the parameters."""
        return next(self.parameters()).dtype


class StateFamily(Family):
    """u = f_theta(t, x)."""

    @abstractmethod
    def at(self, t: float, x: Tensor) -> Tensor:
        """u at time t and states x (n, d)."""

    def shift(self, step: StepView) -> Tensor:
        return self.at(step.t, step.x)


class DiagonalFamily(StateFamily):
    """u(t, x) = sum_j phi_j(t) (g_j * x + b_j) coordinate by coordinate: (m, d) gains and offsets.

    An affine family for problems whose coordinates do not interact: d times fewer parameters to find in the noise.
    """

    def __init__(self, dim: int, features: TimeFeatures | None = None, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.features = features or Polynomials()
        self.gains = nn.Parameter(torch.zeros(self.features.count, dim, dtype=dtype))
        self.offsets = nn.Parameter(torch.zeros(self.features.count, dim, dtype=dtype))

    def at(self, t: float, x: Tensor) -> Tensor:
        phi = self.features(t, self.dtype)
        return torch.addcmul(phi @ self.offsets, x.to(phi), phi @ self.gains).to(x)

    def affine_at(self, t: float) -> tuple[Tensor, Tensor]:
        phi = self.features(t, self.dtype)
        return torch.diag((phi @ self.gains).detach().double()), (phi @ self.offsets).detach().double()


class ResidualNetwork(nn.Module):
    """h = W x, then h <- (1 + A_i e) h + V_i silu(W_i h + B_i e) block by block, then V h, with V = 0 at first.

    x (n, inputs), e (features,) one embedding for the whole batch. The stream h is linear in x, and the factors 1 + A e
    let its gain change with time, so that affine controls with moving gains are easy. silu is smooth: controls that are
    gradients of values stay differentiable.
    """

    def __init__(self, inputs: int, features: int, outputs: int, width: int, blocks: int, seed: int = _SEED):
        super().__init__()
        with seeded(seed):
            self.enter = nn.Linear(inputs, width)
            self.shifts = nn.Linear(features, blocks * width, bias=False)
            self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
            self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
            self.leave = nn.Linear(width, outputs)
        self.scales = nn.Linear(features, blocks * width, bias=False)
        for layer in (self.scales, *self.outer, self.leave):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.enter(x)
        blocks = len(self.inner)
        gains, shifts = 1 + self.scales(e).view(blocks, -1), self.shifts(e).view(blocks, -1)
        for inner, outer, gain, shift in zip(self.inner, self.outer, gains, shifts):
            h = h * gain + outer(nn.functional.silu(inner(h) + shift))
        return self.leave(h)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initial weights from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class MLPFamily(StateFamily):
    """u = network(x, hint(x); time features): a residual MLP. `seed` fixes its initial weights.

    hint: (n, d) -> (n, d), something that u* resembles, such as the gradient of the reward; differentiable in x.
    """

    def __init__(
        self, dim: int, width: int = 128, blocks: int = 2, features: TimeFeatures | None = None, seed: int = _SEED,
        dtype: torch.dtype = torch.float32, hint: Callable[[Tensor], Tensor] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.features, self.hint = features or Cosines(), hint
        inputs = dim if hint is None else 2 * dim
        self.network = ResidualNetwork(inputs, self.features.count, dim, width, blocks, seed).to(dtype)

    def at(self, t: float, x: Tensor) -> Tensor:
        inputs = x if self.hint is None else torch.cat([x, self.hint(x)], 1)
        return self.network(inputs.to(self.dtype), self.features(t, self.dtype)).to(x)


def denoiser_inputs(step: StepView) -> tuple[Tensor, float, float]:
    """(x / size, x0_hat) of a reverse diffusion, (n, 2 d), logistic(log SNR / 4) and size = sqrt(alpha^2 + h)."""
    schedule = getattr(step.process, "schedule", None)
    if schedule is None:
        raise NotDefined(f"a family on x0_hat for {step.process!r}, which has no schedule; use MLPFamily on (t, x)")
    s = step.process.noise_level(step.t)
    size = math.sqrt(schedule.alpha(s) ** 2 + schedule.h(s))
    return torch.cat([step.x / size, step.x0_hat], 1), 1 / (1 + math.exp(-schedule.log_snr(s) / 4)), size


class DenoiserFamily(Family):
    """sqrt(dt) u = std network(x, x0_hat; log SNR) for reverse diffusions: the network learns grad v / temperature.

    x is divided by sqrt(alpha^2 + h), its size for data of unit size, and the level enters as cosines of
    logistic(log SNR / 4), which is smooth from pure noise to pure data. x0_hat comes from the call of the pretrained
    model already made. Events are vectors (d,).
    """

    def __init__(
        self, dim: int, width: int = 128, blocks: int = 2, features: int = 16, seed: int = _SEED,
        dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        super().__init__()
        self.features = Cosines(features)
        self.network = ResidualNetwork(2 * dim, features, dim, width, blocks, seed).to(dtype)

    def shift(self, step: StepView) -> Tensor:
        inputs, level, _ = denoiser_inputs(step)
        output = self.network(inputs.to(self.dtype), self.features(level, self.dtype))
        return step.from_value(self._gradient(step, output), 1.0)

    def _gradient(self, step: StepView, output: Tensor) -> Tensor:
        """The network's output as grad v / temperature."""
        return output.to(step.x)


class PulledFamily(DenoiserFamily):
    """sqrt(dt) u = std J' network(x, x0_hat; log SNR), J the Jacobian of x0_hat.

    grad v / T = (alpha / h) (E^r[X_0 | x] - E[X_0 | x]), E^r under the tilted posterior, is J' grad r / T to first
    order in r, and J = (alpha / h) Cov[X_0 | x] holds what is sharp in it: between modes, where a network of x alone
    learns slowly. What is left to the network has the size of grad r / T. One vector-Jacobian product of the model a
    step.
    """

    requires_jacobian = True

    def _gradient(self, step: StepView, output: Tensor) -> Tensor:
        return step.pullback(output.to(step.x))


class Frozen(Control):
    """A control whose parameters are constants: gradients flow through the states it sees, not to its parameters."""

    def __init__(self, control: Any):
        self.control, self.requires_jacobian = control, control.requires_jacobian
        self._constants = {name: p.detach() for name, p in control.named_parameters()}

    def shift(self, step: StepView) -> Tensor:
        return torch.func.functional_call(self.control, self._constants, (step,))

    def at(self, t: float, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.control, self._constants, (t, x))


class Added(Family):
    """u = base + learned: a fine-tuning that starts from a guidance or an earlier control instead of u = 0."""

    def __init__(self, base: Control, learned: Family):
        super().__init__()
        check(isinstance(base, Control), f"a base of type {type(base).__name__}", "an sc.Control")
        self.base, self.learned, self.continuum = base, learned, base.continuum
        self.requires_jacobian = base.requires_jacobian or learned.requires_jacobian

    @property
    def dtype(self) -> torch.dtype:
        return self.learned.dtype

    def shift(self, step: StepView) -> Tensor:
        return self.base(step) + self.learned(step)

    def at(self, t: float, x: Tensor) -> Tensor:
        return self.base(t, x) + self.learned(t, x)
