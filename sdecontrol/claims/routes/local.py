"""One step of a kernel at a time: what every discrete check uses where the chain as a whole has no closed form.

From a few states at one time a kernel makes steps of length dt, dt/2, dt/4, ... Expectations over the noise of a step
are sums over the nodes of a symmetric rule, so nothing is drawn, in any dimension. Whatever a statement says of the
process holds for one step up to a power of dt that the kernel declares; the power is extrapolated over the halvings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import EPS, Case
from sdecontrol.claims.routes.draws import extrapolated
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.workbench import Workbench
from sdecontrol.kernels import Kernel
from sdecontrol.orders import observed_order
from sdecontrol.processes import Process

HALVINGS = (1, 2, 4, 8)
LONGEST = 0.01  # variance of the noise of the longest step, in units of the narrowest variance at that time
LATEST = 0.1  # the longest step, as a share of the time that is left
POINTS = 3
ORDER_ERROR = 0.02  # of an extrapolated order, to which comes what the last extrapolation changed, up to ...
LARGEST_ORDER_ERROR = 0.25  # ... so much that no other whole order would do
SAFETY = 3.0
DEGREE_FIVE = 4  # dimensions up to which the rule is of degree 5


@lru_cache(maxsize=8)
def normal_rule(dim: int) -> tuple[Array, Array]:
    """Nodes (m, dim) and weights (m,) of a symmetric rule for N(0, I), exact for polynomials of degree 5, or 3.

    Over a step's noise its error is O(dt^3), or O(dt^2) above four dimensions: never below the order that is looked at.
    """
    axes = np.eye(dim)
    if dim > DEGREE_FIVE:
        return math.sqrt(dim) * np.vstack([axes, -axes]), np.full(2 * dim, 1 / (2 * dim))
    pairs = [a * axes[i] + b * axes[j] for i in range(dim) for j in range(i) for a in (1, -1) for b in (1, -1)]
    far = math.sqrt(dim + 2)
    corners = far / math.sqrt(2) * np.array(pairs).reshape(-1, dim)
    nodes = np.vstack([np.zeros((1, dim)), far * axes, -far * axes, corners])
    weights = [2 / (dim + 2), *[(4 - dim) / (2 * (dim + 2) ** 2)] * (2 * dim), *[1 / (dim + 2) ** 2] * len(pairs)]
    return nodes, np.array(weights)


@dataclass(frozen=True, eq=False)
class Step:
    """Where a step from each of n states ends at each node of the rule: ends (n, m, D); nodes (m, d) are latent."""

    dt: float
    t_next: float
    ends: Tensor
    nodes: Array
    weights: Array

    def mean(self, values: Array) -> Array:
        """Over the noise: (n, m, ...) -> (n, ...)."""
        return np.tensordot(values, self.weights, (1, 0))

    def values(self, bench: Workbench) -> Array:
        """v/temperature at the ends: (n, m)."""
        n, m, d = self.ends.shape
        return bench.answers.value(self.t_next, self.ends.reshape(n * m, d)).numpy().reshape(n, m) / bench.temperature


def take_step(
    process: Process, kernel: Kernel, t: float, t_next: float, x: Tensor, basis: Array, u: Tensor | None = None
) -> Step:
    """A step from x (n, D), the control u (n, D) held over it; the noise moves along the basis (D, d) only."""
    nodes, weights = normal_rule(basis.shape[1])
    transition, state = kernel.transition(process, t, t_next), process.state(t, x)
    n, m = len(x), len(nodes)
    z = torch.as_tensor(nodes @ basis.T).expand(n, m, -1)
    z = z if u is None else z + math.sqrt(t_next - t) * u[:, None]
    spread = lambda a: a[:, None].expand(n, m, -1).reshape(n * m, -1)  # noqa: E731
    wide = type(state)(process, t, spread(state.x), spread(state.field))
    ends = transition.finish(process, wide, spread(transition.mean(state)), z.reshape(n * m, -1))
    return Step(t_next - t, t_next, ends.view(n, m, -1), nodes, weights)


class Steps:
    """Steps of ever shorter length from the same states of one problem at one time."""

    def __init__(self, bench: Workbench, t: float):
        self.bench, self.t = bench, t
        self.x = bench.points(t, POINTS, bench.rng("local"))
        self.basis = self.bench.latent.frame.basis
        scale = (self.bench.narrowest(t) / self.bench.process.amplitude(t)) ** 2
        self.longest = min(LONGEST * scale, LATEST * (self.bench.horizon - t))

    @property
    def ends(self) -> list[float]:
        return [self.t + self.longest / k for k in HALVINGS]

    def of(self, kernel: Kernel, u: Tensor | None = None) -> Iterator[Step]:
        for t_next in self.ends:
            yield take_step(self.bench.process, kernel, self.t, t_next, self.x, self.basis, u)

    @cached_property
    def control(self) -> Tensor:
        """u* at the states: (n, D)."""
        return self.bench.answers.control(self.t, self.x)

    @property
    def running(self) -> Array | float:
        """The running reward over the temperature at the states."""
        if self.bench.problem.running_reward is None:
            return 0.0
        return self.bench.problem.running_rate(self.t, self.x).numpy() / self.bench.temperature

    @cached_property
    def value(self) -> Array:
        """v/temperature at the states: (n,)."""
        return self.bench.answers.value(self.t, self.x).numpy() / self.bench.temperature

    @cached_property
    def free(self) -> list[tuple[Step, Array]]:
        """Steps of the process's own kernel without control, and how much v/temperature changes: (n, m) each."""
        found = list(self.of(self.bench.process.default_kernel))
        return [(step, step.values(self.bench) - self.value[:, None]) for step in found]

    @property
    def size(self) -> float:
        return max(1.0, float(np.abs(self.value).max()))


def steps_at(bench: Workbench, t: float) -> Steps:
    """The steps of a workbench at a time, made once."""
    return bench.once(("steps", t), lambda: Steps(bench, t))


def rms(values: Array) -> float:
    """Root mean square over points of the length over the rest."""
    return math.sqrt(float(np.square(values).reshape(len(values), -1).sum(1).mean()))


def order_row(case: Case, quantity: str, errors: Sequence[float], declared: float, size: float) -> None:
    """The order of errors >= 0 over the halvings of a step; that they vanish, where they are rounding of `size`."""
    rounded = 1e4 * EPS * size
    if max(errors) <= rounded:
        case.zero(f"{quantity}: vanishes at any step", max(errors), rounded, scale=size)
        return
    found = observed_order(errors, HALVINGS)
    tolerance = min(LARGEST_ORDER_ERROR, ORDER_ERROR + SAFETY * found.uncertainty)
    note = f"errors {', '.join(f'{e:.2g}' for e in errors)}"
    case.identity(f"{quantity}: order in the step", found.limit, declared, tolerance, note=note)


def vanishing_row(case: Case, quantity: str, gaps: Sequence[Array], size: float, accuracy: float = 0.0) -> None:
    """Gaps at n points (n,), one array for each length of the step, that are to vanish with it; extrapolated.

    size: of the numbers that they are differences of; accuracy: relative, of those where it is not rounding.
    """
    limits = [extrapolated(values) for values in np.stack(gaps, 1)]
    worst = max(range(len(limits)), key=lambda i: abs(limits[i][0]))
    error = SAFETY * max(error for _, error in limits) + (1e4 * EPS + accuracy) * size
    scale = max(1.0, float(np.abs(gaps[0]).max()))
    case.zero(f"{quantity}, as the steps vanish", limits[worst][0], error, scale=scale)
