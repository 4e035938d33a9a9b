"""Rewards that jump: a Markov chain on the nodes in the place of the diffusion, first order and monotone.

h = e^{v/temperature} solves the linear equation h_tau = lap h/2 + (b/g^2).grad h + (f/(g^2 temperature)) h. Along each
axis the right-hand side is the generator of a chain that jumps to the two neighbours at rates

    (1/2 dx^-2)-weights +- the drift, one-sided against it where |b| dx > g^2 and central elsewhere,

all of them >= 0, and one implicit step is I - dtau A, an M-matrix with a nonnegative inverse, one axis after another.
So the scheme is monotone for any step: an ordering of rewards is kept, 0 <= r <= c gives 0 <= v <= c, and stability and
consistency give convergence to the viscosity solution (a Markov chain approximation; derived).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.rewards import Step
from sdecontrol.value.hjb_axes import Pilot, points_of
from sdecontrol.value.hjb_differences import Equation
from sdecontrol.value.hjb_marching import Clock
from sdecontrol.value.hjb_scheme import Field, Nodes, Scheme

Array = np.ndarray
_LARGEST_RANGE = 600.0  # of reward/temperature on the nodes: e^-600 is still a number
_PARTS = {1: 32, 2: 8, 3: 4}  # points an axis at which a cell looks at the reward
_ORDER = 2  # of the differences that turn v into the control


@dataclass(frozen=True)
class Monotone(Scheme):
    """Implicit upwind steps for h = e^{v/temperature}, one axis after another; first order in the node distance.

    steps: in time, graded towards the data as (k/steps)^2 of the clock; None takes as many as the longest axis has
    nodes. At an end of an axis the chain stays: v is continued flat, which suits bounded rewards.
    Raises: BadInput where reward/temperature ranges over more than 600 on the nodes.
    """

    steps: int | None = None
    smallest = 8

    def floor(self, dim: int) -> float:
        return 1e-12

    def suits(self, problem: Any) -> bool:
        return isinstance(problem.reward, Step)

    def check(self, problem: Any) -> None:
        check(self.steps is None or self.steps >= 1, f"steps = {self.steps}", "at least 1")

    def box(self, problem: Any) -> tuple[Array, Array]:
        return Pilot(problem).box()

    def outside(self, problem: Any, axes: list[Array]) -> float:
        return Pilot(problem).outside(axes)

    def solve(self, problem: Any, axes: list[Array]) -> ChainField:
        equation, clock = Equation(problem, axes, _ORDER), Clock(problem.process)
        steps = self.steps or max(len(x) for x in axes)
        taus = clock.total * np.linspace(0, 1, steps + 1) ** 2
        return ChainField(equation, clock, taus.tolist(), march(equation, clock, taus))


def march(equation: Equation, clock: Clock, taus: Array) -> list[Tensor]:
    """v at each tau."""
    temperature, reward = equation.temperature, averaged_reward(equation)
    span = float(reward.max() - reward.min()) / temperature
    check(
        span <= _LARGEST_RANGE,
        f"reward/temperature that ranges over {span:.4g} on the nodes",
        f"at most {_LARGEST_RANGE:g}",
        "Raise the temperature, or take sc.value.FiniteDifference() for smooth rewards.",
    )
    top = float(reward.max())
    h = ((reward - top) / temperature).exp()
    values = [reward]
    for tau, tau_next in zip(taus[:-1], taus[1:]):
        step = float(tau_next - tau)
        drift, running = equation.forces(clock.time(float(tau_next)))
        if isinstance(running, Tensor):
            h = h * (running * step / temperature).exp()
        for axis, b in enumerate(drift):
            h = implicit(equation.axes[axis], b.movedim(axis, 0), h.movedim(axis, 0), step).movedim(0, axis)
        largest = float(h.max())
        h, top = h / largest, top + temperature * float(np.log(largest))
        values.append(top + temperature * h.log())
    return values


def averaged_reward(equation: Equation) -> Tensor:
    """temperature log of the mean of e^{r/temperature} over the cell of each node, (n_1, ..., n_d).

    A jump of r between two nodes is so placed to a fraction of a cell; averages keep the order of rewards.
    """
    count = _PARTS[len(equation.axes)]
    edges = [np.concatenate([x[:1], (x[:-1] + x[1:]) / 2, x[-1:]]) for x in equation.axes]
    fractions = points_of([(np.arange(count) + 0.5) / count] * len(edges))
    low, width = points_of([e[:-1] for e in edges]), points_of([np.diff(e) for e in edges])
    values = [equation.problem.reward(low + f * width).detach().double() for f in fractions]
    scaled = torch.stack(values) / equation.temperature
    return equation.temperature * (scaled.logsumexp(0) - np.log(len(values))).reshape(equation.shape)


def rates(x: Array, b: Tensor) -> tuple[Tensor, Tensor]:
    """Jump rates to the next and to the previous node, (n, ...) each, zero at the ends; b is the drift/g^2."""
    gaps = torch.from_numpy(np.diff(x)).reshape(-1, *[1] * (b.ndim - 1))
    ahead, behind = gaps[1:], gaps[:-1]
    inner, width = b[1:-1], ahead + behind
    central = (inner.abs() * torch.maximum(ahead, behind) <= 1).to(b)
    up, down = torch.zeros_like(b), torch.zeros_like(b)
    up[1:-1] = (1 + central * inner * behind) / (ahead * width) + (1 - central) * inner.clamp(min=0) / ahead
    down[1:-1] = (1 - central * inner * ahead) / (behind * width) + (1 - central) * (-inner).clamp(min=0) / behind
    up[0] = 1 / (2 * gaps[0] ** 2) + b[0].clamp(min=0) / gaps[0]
    down[-1] = 1 / (2 * gaps[-1] ** 2) + (-b[-1]).clamp(min=0) / gaps[-1]
    return up, down


def implicit(x: Array, b: Tensor, h: Tensor, step: float) -> Tensor:
    """(I - step A)^-1 h along the first axis: elimination from both neighbours, all terms nonnegative."""
    up, down = rates(x, b)
    upper, lower = (step * up).contiguous().numpy(), (step * down).contiguous().numpy()
    diagonal, pivot, right = 1 + (upper + lower), np.empty_like(upper), h.contiguous().numpy().copy()
    pivot[0], right[0] = upper[0] / diagonal[0], right[0] / diagonal[0]
    for i in range(1, len(right)):
        scale = 1 / (diagonal[i] - lower[i] * pivot[i - 1])
        pivot[i] = upper[i] * scale
        right[i] = (right[i] + lower[i] * right[i - 1]) * scale
    for i in range(len(right) - 2, -1, -1):
        right[i] += pivot[i] * right[i + 1]
    return torch.from_numpy(right)


class ChainField(Field):
    """v linear in tau and in x between the nodes, so that reading keeps the order of values too."""

    degree = 1

    def __init__(self, equation: Equation, clock: Clock, taus: list[float], values: list[Tensor]):
        super().__init__()
        self.equation, self.axes, self.clock, self.taus, self.values = equation, equation.axes, clock, taus, values

    def on_nodes(self, t: float, axes: list[Array]) -> Tensor:
        tau = self.clock.tau(t)
        k = min(max(bisect_right(self.taus, tau), 1), len(self.taus) - 1)
        x = (tau - self.taus[k - 1]) / (self.taus[k] - self.taus[k - 1])
        return (1 - x) * self.values[k - 1] + x * self.values[k]

    def nodes(self, t: float) -> Nodes:
        v = self.on_nodes(t, self.axes)
        return Nodes(self.axes, v, torch.stack(self.equation.gradient(v), -1))
