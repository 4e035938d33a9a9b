"""Where the value of an exact-score problem is infinite: the growth of the tilted density far out."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
_FAR = (1e4, 1e5)  # radii, in half widths of the box: what is between the modes of a mixture fades as 1/radius
_DIRECTIONS = {1: 2, 2: 128, 3: 1024}
_SPACING = 0.02  # of the radius, for second differences


def blow_up_ratio(log_density: Callable[[Tensor], Tensor], axes: list[Array]) -> float:
    """The h/alpha^2 at which int w(x) N(y; alpha x, h) dx becomes infinite, for log w of at most quadratic growth.

    Far out log w bends by e'He along a direction e; the integral diverges once e'He >= alpha^2/h. Returns
    1/max e'He; infinite where log w bends downwards everywhere, or upwards by an amount that fades with the radius;
    0 where its bend grows with the radius (growth faster than quadratic). Derived.
    Accuracy: 1e-9 relative where log w is quadratic far out (second differences are exact for quadratics).
    """
    near, far = (_largest_bend(log_density, axes, radius) for radius in _FAR)
    if near <= 0 or far < 0.5 * near:
        return math.inf
    return 0.0 if far > 1.5 * near else 1 / far


def _largest_bend(log_density: Callable[[Tensor], Tensor], axes: list[Array], radius: float) -> float:
    """Largest eigenvalue of the Hessian of log w at the far point where it bends upwards the most, or a bound <= 0."""
    centre = torch.tensor([(x[0] + x[-1]) / 2 for x in axes], dtype=torch.float64)
    half = torch.tensor([(x[-1] - x[0]) / 2 for x in axes], dtype=torch.float64)
    directions = _sphere(len(axes))
    points, step = centre + radius * half * directions, _SPACING * radius * float(half.min())
    outward = torch.nn.functional.normalize(half * directions, dim=1)
    bends = _second_difference(log_density, points, outward * step, outward * step) / step**2
    best = int(bends.argmax())
    point, eye = points[best : best + 1], torch.eye(len(axes), dtype=torch.float64) * step
    rows = [[float(_second_difference(log_density, point, a, b)) / step**2 for b in eye] for a in eye]
    hessian = torch.tensor(rows, dtype=torch.float64)
    spread = float(torch.linalg.eigvalsh((hessian + hessian.T) / 2)[-1])
    return spread if float(bends[best]) > 0 else float(bends[best])


def _second_difference(f: Callable[[Tensor], Tensor], x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """D_a D_b f at x, exact for quadratics."""
    return (f(x + a + b) - f(x + a - b) - f(x - a + b) + f(x - a - b)) / 4


def _sphere(dim: int) -> Tensor:
    """Directions spread over the unit sphere, (m, dim)."""
    count = _DIRECTIONS[dim]
    if dim == 1:
        return torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    angle = torch.arange(count, dtype=torch.float64)
    if dim == 2:
        angle = 2 * math.pi * angle / count
        return torch.stack([angle.cos(), angle.sin()], 1)
    height, turn = 1 - (2 * angle + 1) / count, math.pi * (3 - math.sqrt(5)) * angle
    radius = (1 - height.square()).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), height], 1)
