"""The axes of a tensor grid: reading them, differentiating along them, and boxes that hold a law."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import BadInput, check
from sdecontrol.noise import Noise
from sdecontrol.processes import Process
from sdecontrol.simulate import simulate

Array = np.ndarray
LARGEST_DIMENSION = 3
LARGEST_OUTSIDE = 1e-3  # share of the tilted law that may lie outside the box
_REACH = 8  # an end node continues the parabola through itself and two nodes 1/8 and 1/4 of the axis away
_PILOT_PATHS = 4096
_TAILS = (1 / 16, 1 / 256)  # shares of the simulated states from whose quantiles a tail is continued
_TAIL_REACH = 2.1  # times the distance of these quantiles: the box of a Gaussian ends at five standard deviations
_BOX_STDS = 5.0  # half width of a box around simulated states, in standard deviations
_EFFECTIVE = 1024  # states from which on their quantiles are read
_DEPTH = 36.0  # a box around a density holds every point above e^-36 of its largest value
_SURVEY_POINTS = {1: 4097, 2: 257, 3: 65}  # an axis, when a density is surveyed


def check_dimension(process: Process) -> int:
    """The dimension d of the states, 1 to 3. Raises: BadInput otherwise."""
    shape = process.event_shape
    check(
        len(shape) == 1 and shape[0] <= LARGEST_DIMENSION,
        f"states of shape {shape}",
        f"(d,) with d <= {LARGEST_DIMENSION}",
        "A grid has n^d nodes; beyond three dimensions use sc.feynman_kac.",
    )
    return shape[0]


def read_axes(axes: Sequence[Any], dim: int, smallest: int) -> list[Array]:
    """One increasing float64 array an axis, from arrays or (low, high, points).

    Raises: BadInput for a wrong number of axes, axes that do not increase, or fewer than `smallest` points.
    """
    check(
        not isinstance(axes, str) and hasattr(axes, "__len__") and len(axes) == dim,
        f"axes {axes!r}" if not hasattr(axes, "__len__") else f"{len(axes)} axes",
        f"a list of {dim}, one for each coordinate",
        "Each is an increasing array or (low, high, points); sc.value.axes_for(problem, points) makes them.",
    )
    return [_read_axis(axis, smallest) for axis in axes]


def _read_axis(axis: Any, smallest: int) -> Array:
    if isinstance(axis, tuple):
        check(len(axis) == 3, f"a tuple of {len(axis)}", "(low, high, points)")
        low, high, points = axis
        check(int(points) == points and points >= smallest, f"{points} points on an axis", f"at least {smallest}")
        axis = np.linspace(float(low), float(high), int(points))
    nodes = np.array(axis, dtype=np.float64)
    check(nodes.ndim == 1, f"an axis of shape {nodes.shape}", "a vector of nodes")
    check(len(nodes) >= smallest, f"{len(nodes)} points on an axis", f"at least {smallest}")
    check(
        bool(np.isfinite(nodes).all() and (np.diff(nodes) > 0).all()),
        f"an axis from {nodes[0]:g} to {nodes[-1]:g} that does not increase throughout",
        "finite nodes in increasing order",
    )
    return nodes


def coarser(axes: Sequence[Array], ratio: float) -> list[Array]:
    """The same maps from index to coordinate with 1/ratio of the intervals."""
    return [np.interp(np.linspace(0, len(x) - 1, round((len(x) - 1) / ratio) + 1), np.arange(len(x)), x) for x in axes]


def points_of(axes: Sequence[Any]) -> Tensor:
    """The nodes in row-major order: (n_1 ... n_d, d)."""
    mesh = torch.meshgrid(*[torch.as_tensor(x, dtype=torch.float64) for x in axes], indexing="ij")
    return torch.stack(mesh, -1).reshape(-1, len(axes))


def along(matrix: Tensor, values: Tensor, axis: int) -> Tensor:
    """matrix (m, n) applied along one axis of values (..., n, ...)."""
    return torch.tensordot(matrix, values, dims=([1], [axis])).movedim(0, axis)


def derivative_matrices(x: Array, order: int) -> tuple[Tensor, Tensor]:
    """First and second derivative on the nodes x (n,), as matrices (n, n).

    Interior rows differentiate the polynomial through the order + 1 nearest nodes, of any spacing. Towards an end the
    stencil shrinks symmetrically down to three nodes. The end node differentiates a parabola through itself and two
    nodes an eighth and a quarter of the axis away: quadratics are differentiated exactly everywhere, and a kink of v
    that meets the border is not taken for a curvature. Accuracy: dx^order inside on smoothly spaced nodes.
    """
    n = len(x)
    first, second = np.zeros((n, n)), np.zeros((n, n))
    for i in range(n):
        half = min(order // 2, i, n - 1 - i)
        reach = n // _REACH
        ends = range(0, 2 * reach + 1, reach) if i == 0 else range(n - 1 - 2 * reach, n, reach)
        stencil = list(range(i - half, i + half + 1) if half else ends)
        first[i, stencil], second[i, stencil] = _weights(x[i], x[stencil])
    return torch.from_numpy(first), torch.from_numpy(second)


def _weights(z: float, x: Array) -> tuple[Array, Array]:
    """Weights of the first and second derivative at z of the polynomial through the nodes x."""
    scale = (x[-1] - x[0]) / 2
    powers = np.vander((x - z) / scale, increasing=True).T
    unit = np.eye(len(x))
    weights = np.linalg.solve(powers, unit[:, 1:3])
    return weights[:, 0] / scale, 2 * weights[:, 1] / scale**2


LogDensities = Callable[[Tensor], Tensor]  # (n, d) -> (k, n), each up to a constant


def survey(log_densities: LogDensities, low: Array, high: Array) -> tuple[list[Array], Tensor]:
    """Log-densities on a coarse grid over a box: (axes, values (k, n_1, ..., n_d))."""
    count = _SURVEY_POINTS[len(low)]
    axes = [np.linspace(a, b, count) for a, b in zip(low, high)]
    return axes, log_densities(points_of(axes)).reshape(-1, *[count] * len(low))


def box_of_density(log_densities: LogDensities, centre: Array, spread: Array) -> tuple[Array, Array]:
    """(low, high) of the smallest box of surveyed nodes that holds every point above e^-36 of a density's maximum.

    Starts from centre +- 10 spread and widens while the wanted region reaches the border.
    Raises: BadInput when it never closes: one of the densities does not decay.
    """
    low, high = centre - 10 * spread, centre + 10 * spread
    for _ in range(24):
        axes, values = survey(log_densities, low, high)
        top = values.flatten(1).amax(1).reshape(-1, *[1] * len(low))
        wanted = (values > top - _DEPTH).any(0)
        ends = [_extent(wanted, axis) for axis in range(len(low))]
        if all(i > 0 and j < len(x) - 1 for (i, j), x in zip(ends, axes)):
            return (np.array([x[i - 1] for (i, _), x in zip(ends, axes)]),
                    np.array([x[j + 1] for (_, j), x in zip(ends, axes)]))  # fmt: skip
        grown = [(0.5 * (i == 0), 0.5 * (j == len(x) - 1)) for (i, j), x in zip(ends, axes)]
        width = high - low
        low, high = low - width * [g[0] for g in grown], high + width * [g[1] for g in grown]
    raise BadInput(
        f"saw a density that does not decay within {np.array2string(high - low, precision=3)} of its centre; "
        "wanted a tilted law that a box can hold. Raise the temperature or lower the upward curvature of the reward."
    )


def _extent(wanted: Tensor, axis: int) -> tuple[int, int]:
    """First and last index along `axis` of the true entries."""
    others = [k for k in range(wanted.ndim) if k != axis]
    line = wanted.any(dim=others) if others else wanted
    found = torch.nonzero(line)
    return int(found[0]), int(found[-1])


def density_outside(log_density: LogDensities, axes: Sequence[Array]) -> float:
    """Share of a density, surveyed over three times the box, that lies outside of it."""
    low, high = np.array([x[0] for x in axes]), np.array([x[-1] for x in axes])
    around, values = survey(log_density, 2 * low - high, 2 * high - low)
    mass = (values[0] - values[0].max()).exp()
    inside = [(torch.from_numpy(x) >= a) & (torch.from_numpy(x) <= b) for x, a, b in zip(around, low, high)]
    held = mass * reduce(torch.logical_and, [m.reshape([-1 if k == i else 1 for k in range(len(axes))])
                                             for i, m in enumerate(inside)])  # fmt: skip
    return float(1 - held.sum() / mass.sum())


class Pilot:
    """States of uncontrolled paths and their weights e^{reward/temperature}: where the tilted process lives.

    Shapes: states (m, n, d) at m times, t = 0 and the horizon among them; weights (n,), which sum to 1.
    """

    def __init__(self, problem: Any):
        process = problem.process
        path = simulate(process, n=_PILOT_PATHS, noise=Noise(0))
        assert path.states is not None
        states = path.states.double()
        total = problem.reward(states[-1]).double()
        if problem.running_reward is not None:
            rates = [problem.running_rate(float(t), x) for t, x in zip(path.times[:-1], states[:-1])]
            total = total + sum(rate.double() * dt for rate, dt in zip(rates, np.diff(path.times)))
        self.states, self.weights = states, (total / problem.temperature).softmax(0)

    def outside(self, axes: Sequence[Array]) -> float:
        """Weight of the paths that leave the box at some of the times."""
        low, high = (torch.tensor([x[k] for x in axes], dtype=torch.float64) for k in (0, -1))
        left = ((self.states < low) | (self.states > high)).any(-1).any(0)
        return float(self.weights[left].sum())

    def box(self) -> tuple[Array, Array]:
        """Five standard deviations around the mean, or less where the tails end before, with and without weights."""
        edges = [self._edges(w) for w in (self.weights, torch.full_like(self.weights, 1 / len(self.weights)))]
        low = torch.stack([e[0] for e in edges]).amin((0, 1))
        high = torch.stack([e[1] for e in edges]).amax((0, 1))
        return low.numpy(), high.numpy()

    def _edges(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Low and high end at every time, (m, d) twice; quantiles only of enough effective states."""
        mean = torch.einsum("n,mnd->md", w, self.states)
        std = torch.einsum("n,mnd->md", w, (self.states - mean[:, None]).square()).sqrt()
        low, high = mean - _BOX_STDS * std, mean + _BOX_STDS * std
        if 1 / float(w.square().sum()) < _EFFECTIVE:
            return low, high
        bottom, top = self._tails(w)
        return torch.maximum(low, bottom), torch.minimum(high, top)

    def _tails(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Each tail's quantiles of shares 1/16 and 1/256, continued: (m, d) twice. Two wells need no more than one."""
        x, order = self.states.sort(1)
        mass = w[order].cumsum(1)

        def quantile(share: float) -> Tensor:
            return x.gather(1, (mass < share).sum(1, keepdim=True).clamp(max=x.shape[1] - 1))[:, 0]

        (inner, outer), (upper, top) = map(quantile, _TAILS), (quantile(1 - share) for share in _TAILS)
        return outer - _TAIL_REACH * (inner - outer), top + _TAIL_REACH * (top - upper)


def check_held(outside: float) -> None:
    """Raise BadInput when more of the tilted law lies outside the box than LARGEST_OUTSIDE."""
    check(
        math.isfinite(outside) and outside <= LARGEST_OUTSIDE,
        f"a box that leaves {100 * outside:.3g} % of the tilted law outside",
        f"at most {100 * LARGEST_OUTSIDE:g} %",
        "Take sc.value.axes_for(problem, points), or wider axes.",
    )
