"""Sums over the clean state for Smoothing: int e^{f(x)} N(y; x, ratio I) dx and the mean of X - y under the integrand.

Everything is scaled by alpha: y stands for y/alpha, `ratio` for h/alpha^2. Log-weights keep the tails: a node where a
density is e^-500 of its largest value still gets the relative accuracy of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import BadInput, check
from sdecontrol.value.hjb_axes import points_of

Array = np.ndarray
_ROWS = 16  # outputs that share a shift of the exponents, where one shift for all would underflow
_SHALLOW = 600.0  # range of the exponents along an axis that one shift can serve
_CELLS = {1: 1.4, 2: 1.4, 3: 0.75}  # node distances^2 a kernel must be wide: errors e^{-2 pi^2 cells} relative
_FINEST = {1: 8, 2: 2, 3: 2}  # refinements of the trapezoidal rule on a tensor grid of y
_FINEST_AT_POINTS = {1: 8, 2: 1, 3: 1}  # and for single points, where its nodes are not shared
_HERMITE = {1: 20, 2: 10, 3: 5}  # Gauss-Hermite nodes an axis below that
_HERMITE_AT_POINTS = {1: 20, 2: 16, 3: 10}
_PADDING = 6  # the box is widened by 1/6 of its width on either side
_EDGE = 1e-9  # share of an integrand on the outermost nodes that says that it leaves them
_POINTS = 2**18
_GROUP = 64  # points read at once


class TrapezoidRule:
    """Equally spaced nodes on the padded box, as many times finer than the axes as the kernel asks for."""

    def __init__(self, log_weights: Callable[[Tensor], Tensor], axes: Sequence[Array]):
        self._log_weights, self._axes, self._dim = log_weights, axes, len(axes)
        self._grids: dict[int, tuple[list[Tensor], Tensor]] = {}
        self._lines: dict[torch.Size, Lines] = {}  # along the first axis, for single points

    def _refinement(self, ratio: float) -> int:
        widest = max((x[-1] - x[0]) / (len(x) - 1) for x in self._axes)
        return max(math.ceil(widest * math.sqrt(_CELLS[self._dim] / ratio)), 1)

    def resolves(self, ratio: float, at_points: bool) -> bool:
        return self._refinement(ratio) <= (_FINEST_AT_POINTS if at_points else _FINEST)[self._dim]

    def _grid(self, ratio: float) -> tuple[list[Tensor], Tensor]:
        """Nodes, and the log-weights on them (2, m_1, ..., m_d)."""
        fine = 1 << (self._refinement(ratio) - 1).bit_length()
        if fine not in self._grids:
            nodes = [_padded(x, fine) for x in self._axes]
            values = self._log_weights(points_of(nodes))
            self._grids[fine] = nodes, values.reshape(len(values), *[len(x) for x in nodes])
        return self._grids[fine]

    def on_axes(self, axes: Sequence[Array], ratio: float) -> tuple[Tensor, Tensor]:
        """Log masses (2, n_1, ..., n_d) and mean shifts (2, n_1, ..., n_d, d) on a tensor grid of y."""
        nodes, weights = self._grid(ratio)
        shifts: list[Tensor] = []
        for axis, (x, y) in enumerate(zip(nodes, axes), start=1):
            gaps = x - torch.from_numpy(np.ascontiguousarray(y))[:, None]
            lines = [w.movedim(axis, 0) for w in (weights, *shifts)]
            rest = lines[0].shape[1:]
            total, means = Lines(lines[0].flatten(1)).smoothed(gaps, ratio, [c.flatten(1) for c in lines[1:]])
            back = [w.reshape(len(y), *rest).movedim(0, axis) for w in (total, *means)]
            weights, shifts = back[0], [*back[2:], back[1]]
        return weights, torch.stack(shifts, -1)

    def at_points(self, y: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        """The same at points y (n, d): (2, n) and (2, n, d). Raises BadInput where the integrand leaves the nodes."""
        nodes, weights = self._grid(ratio)
        lines = self._lines.setdefault(weights.shape, Lines(weights.movedim(1, 0).flatten(1)))
        order = y[:, 0].argsort()
        parts = [self._group(y[rows], nodes, lines, ratio) for rows in order.split(_GROUP)]
        mass, shift = torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)
        back = order.argsort()
        return mass[:, back], shift[:, back]

    def _group(self, y: Tensor, nodes: list[Tensor], lines: Lines, ratio: float) -> tuple[Tensor, Tensor]:
        """Neighbouring points: the first axis by a product, the others term by term."""
        n = len(y)
        gaps = [x - y[:, [axis]] for axis, x in enumerate(nodes)]
        total, (first,) = lines.smoothed(gaps[0], ratio, [])
        terms = total.reshape(n, 2, *[len(x) for x in nodes[1:]])
        for axis in range(1, self._dim):
            size = [len(nodes[axis]) if k == axis else 1 for k in range(1, self._dim)]
            terms = terms - gaps[axis].square().reshape(n, 1, *size) / (2 * ratio)
        mass = terms.reshape(n, 2, -1).logsumexp(2)
        share = (terms.reshape(n, 2, -1) - mass[..., None]).exp()
        shifts = [(share * first.reshape(n, 2, -1)).sum(2)]
        for axis in range(1, self._dim):
            marginal = share.reshape(terms.shape).movedim(axis + 1, 2).reshape(n, 2, len(nodes[axis]), -1).sum(3)
            _check_edges(marginal, y, axis)
            shifts.append((marginal * gaps[axis][:, None]).sum(2))
        _check_first(shifts[0], gaps[0], y)
        return mass.T, torch.stack(shifts, -1).movedim(0, 1)


def _padded(x: Array, fine: int) -> Tensor:
    """Equally spaced nodes over the box of x and a sixth of its width beyond, `fine` times denser."""
    intervals = (len(x) - 1) * fine
    pad = -(-intervals // _PADDING)
    index = torch.arange(-pad, intervals + pad + 1, dtype=torch.float64)
    return float(x[0]) + index * (float(x[-1] - x[0]) / intervals)


def _check_edges(marginal: Tensor, y: Tensor, axis: int) -> None:
    """Raise BadInput where the clean state given y sits on the outermost nodes of an axis."""
    edge = torch.maximum(marginal[..., 0], marginal[..., -1]).amax(1)
    _refuse(edge > _EDGE, y, axis)


def _check_first(shift: Tensor, gaps: Tensor, y: Tensor) -> None:
    """The same on the first axis, where only the mean of X - y is at hand: it must keep off the ends."""
    span = gaps[:, -1] - gaps[:, 0]
    low, high = shift.amin(1) - gaps[:, 0], gaps[:, -1] - shift.amax(1)
    _refuse(torch.minimum(low, high) < 0.01 * span, y, 0)


def _refuse(bad: Tensor, y: Tensor, axis: int) -> None:
    if bool(bad.any()):
        at = y[int(bad.nonzero()[0])].tolist()
        raise BadInput(
            f"saw a point with y/alpha = {[round(c, 4) for c in at]}, whose clean state leaves the box along axis "
            f"{axis}; wanted points that the box explains. Widen that axis."
        )


class Lines:
    """Log-weights f (J, R) on the nodes x_j of one axis, to be smoothed along it."""

    def __init__(self, f: Tensor):
        self.f = f
        self._shallow = bool((f.amax(0) - f.amin(0)).max() < _SHALLOW)

    @cached_property
    def _lifted(self) -> tuple[Tensor, Tensor]:
        """e^{f - shift} and the shift, the largest f of each column."""
        shift = self.f.amax(0)
        return (self.f - shift).exp(), shift

    def smoothed(self, gaps: Tensor, ratio: float, carried: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """log sum_j k_ij e^{f_j} and means under the normalised terms, with k_ij = exp(-gaps_ij^2/(2 ratio)).

        Shapes: gaps x_j - y_i (I, J), each carried c (J, R). Returns (I, R) and [mean gap, means of c].
        """
        log_kernel = gaps.square() / (-2 * ratio)
        if self._shallow:
            return self._sums(log_kernel, gaps, *self._lifted, carried)
        parts = []
        for rows in torch.arange(len(gaps)).split(_ROWS):
            lift = log_kernel[rows].amax(0)
            raised = self.f + lift[:, None]
            shift = raised.amax(0)
            parts.append(self._sums(log_kernel[rows] - lift, gaps[rows], (raised - shift).exp(), shift, carried))
        total = torch.cat([p[0] for p in parts])
        return total, [torch.cat(means) for means in zip(*(p[1] for p in parts))]

    @staticmethod
    def _sums(
        log_kernel: Tensor, gaps: Tensor, e: Tensor, shift: Tensor, carried: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        top = log_kernel.amax(1, keepdim=True)
        w = (log_kernel - top).exp()
        total = w @ e
        check(
            bool((total > 0).all()),
            "a density that falls by more than e^700 within sixteen nodes",
            "a smoother law, or a box of fewer standard deviations",
            "Take sc.value.axes_for(problem, points), with more points.",
        )
        means = [(w * gaps) @ e / total, *[w @ (e * c) / total for c in carried]]
        return total.log() + shift + top, means


class HermiteRule:
    """Gauss-Hermite sums over the noise, x = y + sqrt(ratio) z, for kernels much narrower than the law.

    Accuracy: for a law of standard deviations of S or more, with c = ratio/S and q nodes an axis, (c/2)^q relative.
    """

    def __init__(self, log_weights: Callable[[Tensor], Tensor], dim: int, at_points: bool):
        z, w = np.polynomial.hermite_e.hermegauss((_HERMITE_AT_POINTS if at_points else _HERMITE)[dim])
        self._z = points_of([z] * dim)
        self._log_w = points_of([np.log(w)] * dim).sum(1)
        self._log_weights, self._dim = log_weights, dim

    def at_points(self, y: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        """Log masses (2, n) and mean shifts (2, n, d) at points y (n, d)."""
        parts = [self._some(rows, math.sqrt(ratio)) for rows in y.split(max(_POINTS // len(self._z), 1))]
        return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)

    def _some(self, y: Tensor, root: float) -> tuple[Tensor, Tensor]:
        x = (y[:, None] + root * self._z).flatten(0, 1)
        terms = self._log_weights(x).reshape(2, len(y), -1) + self._log_w
        mass = terms.logsumexp(2)
        return mass, root * ((terms - mass[..., None]).exp() @ self._z)

    def on_axes(self, axes: Sequence[Array], ratio: float) -> tuple[Tensor, Tensor]:
        shape = [len(x) for x in axes]
        mass, shift = self.at_points(points_of(axes), ratio)
        return mass.reshape(2, *shape), shift.reshape(2, *shape, self._dim)
