"""How far a learned control is from a reference, in the norm that the path KL is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sdecontrol.controls import require_control
from sdecontrol.errors import NotDefined
from sdecontrol.estimate import Estimate
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Law
from sdecontrol.noise import Noise
from sdecontrol.path import half_square
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


def control_error(
    problem: Problem,
    control: Any,
    reference: Any,
    initial: Law | None = None,
    *,
    grid: TimeGrid | None = None,
    kernel: Kernel | None = None,
    n: int = 4096,
    noise: Noise | None = None,
) -> Estimate:
    """E sum_k dt |u - u_ref|^2 / E sum_k dt |u_ref|^2 along paths of the reference control from `initial`.

    Take `problem.discretise(kernel, grid).exact.control`, the chain's own best mean shift, where it is closed: at 50
    steps it differs from the continuous u* by more than a good fit does. A ratio of two means over the same paths;
    standard error by the delta method, O(1/n) bias. Raises: NotDefined when the reference is zero on every path.
    """
    control, reference = require_control(control), require_control(reference)
    with torch.no_grad():
        path = simulate(
            problem.process, reference, initial, grid=grid, kernel=kernel, n=n, noise=noise or Noise(1)
        )  # fmt: skip
        error, size = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        for _, step in path.views(control.requires_jacobian or reference.requires_jacobian):
            u = reference(step)
            error += half_square(control(step) - u) * step.dt
            size += half_square(u) * step.dt
    scale = float(size.mean())
    if scale == 0:
        raise NotDefined("an error relative to a reference control that is zero everywhere")
    ratio = float(error.mean()) / scale
    spread = Estimate.mean((error - ratio * size) / scale)
    return Estimate(ratio, float(np.asarray(spread.stderr)), n, "relative control L2 along the reference's paths")
