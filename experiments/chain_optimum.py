"""The best mean shift of a chain without closed form, by dynamic programming on a grid of two coordinates.

W_K = r/T, W_k(x) = max_w E W_{k+1}(mean_k(x) + std_k (xi + w)) - |w|^2/2, solved by w <- std_k E grad W_{k+1}; a last
noiseless step is a composition. What is stored is W_k - v(t_k, .)/T with v the closed value of the continuous problem:
it is small and smooth, so that splines and Gauss-Hermite nodes are enough. Derived; tests hold it against the closed
chain of one Gaussian.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

import sdecontrol as sc
from sdecontrol.kernels import Transition
from sdecontrol.step import StepView


@dataclass
class Remainder:
    """W_k - v(t_k, .)/T as a spline, on top of the closed value; at the end there is nothing to add."""

    problem: sc.Problem
    t: float
    spline: RectBivariateSpline | None = None

    def value(self, x: Tensor) -> Tensor:
        """W_k: (n, 2) -> (n,)."""
        found = self.problem.exact.value(self.t, x) / self.problem.temperature
        return found if self.spline is None else found + self._spline(x, 0, 0)

    def slope(self, x: Tensor) -> Tensor:
        """grad W_k: (n, 2) -> (n, 2)."""
        found = self.problem.exact.control(self.t, x) / self.problem.process.amplitude(self.t)
        if self.spline is None:
            return found
        return found + torch.stack([self._spline(x, 1, 0), self._spline(x, 0, 1)], 1)

    def _spline(self, x: Tensor, dx: int, dy: int) -> Tensor:
        assert self.spline is not None
        return torch.from_numpy(self.spline.ev(x[:, 0].numpy(), x[:, 1].numpy(), dx=dx, dy=dy))


class GridControl(sc.Control):
    """u* of the continuous problem in all coordinates, plus the chain's correction in the first two."""

    def __init__(self, problem: sc.Problem, corrections: dict[int, list[RectBivariateSpline]]):
        self.optimum, self.corrections = problem.exact.control, corrections

    def shift(self, step: StepView) -> Tensor:
        u = self.optimum(step).double()
        x, y = (step.x[:, i].double().numpy() for i in range(2))
        moved = [torch.from_numpy(spline.ev(x, y)) for spline in self.corrections[step.k]]
        return torch.cat([u[:, :2] + torch.stack(moved, 1), u[:, 2:]], 1).to(step.x)


def normal_nodes(order: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes (order^2, 2) and weights of a standard normal of the plane."""
    points, weights = np.polynomial.hermite_e.hermegauss(order)
    nodes = np.array(list(itertools.product(points, points)))
    both = np.array([a * b for a, b in itertools.product(weights, weights)]) / weights.sum() ** 2
    return torch.from_numpy(nodes), torch.from_numpy(both)


def best_mean_shift(
    problem: sc.Problem,
    grid: sc.TimeGrid,
    *,
    half_width: float = 4.5,
    points: int = 61,
    order: int = 5,
    passes: int = 5,
) -> dict[int, list[RectBivariateSpline]]:
    """The chain's best control minus u*, as splines of the plane for every step that a control acts on.

    problem: a reverse diffusion of the plane whose exact value and control are closed; default kernel.
    """
    process, kernel = problem.process, problem.process.default_kernel
    times = [float(t) for t in grid.resolve(process).times]
    axis = np.linspace(-half_width, half_width, points)
    x = torch.from_numpy(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2))
    nodes = normal_nodes(order)
    ahead, corrections = Remainder(problem, times[-1]), {}
    for k in reversed(range(len(times) - 1)):
        here = Remainder(problem, times[k])
        transition = kernel.transition(process, times[k], times[k + 1])
        mean = transition.mean(process.state(times[k], x))
        if transition.noiseless:
            value = ahead.value(mean)
        else:
            optimum = problem.exact.control(times[k], x)
            w, value = _bellman(ahead, transition, mean, optimum * transition.dt**0.5, nodes, passes)
            excess = (w / transition.dt**0.5 - optimum).view(points, points, 2).numpy()
            corrections[k] = [RectBivariateSpline(axis, axis, excess[..., i]) for i in range(2)]
        rest = (value - here.value(x)).view(points, points).numpy()
        here.spline = RectBivariateSpline(axis, axis, rest)
        ahead = here
    return corrections


def _bellman(
    ahead: Remainder, transition: Transition, mean: Tensor, w: Tensor, nodes: tuple[Tensor, Tensor], passes: int
) -> tuple[Tensor, Tensor]:
    """(argmax, max) over w of E W(mean + std (xi + w)) - |w|^2/2, from a first guess of w: (n, 2) and (n,)."""
    xi, weights = nodes

    def mean_of(f: Any) -> Tensor:
        """E f(mean + std (xi + w))."""
        ends = mean + transition.std * (w + xi[:, None])
        return torch.tensordot(weights, f(ends.reshape(-1, 2)).view(len(xi), len(mean), -1), 1)

    for _ in range(passes):
        w = transition.std * mean_of(ahead.slope)
    return w, mean_of(ahead.value)[:, 0] - w.square().sum(1) / 2
