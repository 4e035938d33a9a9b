"""The value function and the optimal control on a grid: the HJB equation in one to three dimensions.

    v_t + b.grad v + g^2/2 lap v + g^2/(2 temperature) |grad v|^2 + f = 0,   v(T) = r,   u* = g grad v/temperature,

which is linear for e^{v/temperature}. Source: Tang 2403.06279, (3.18), with a running reward f added (derived).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from sdecontrol.controls import Control
from sdecontrol.errors import check
from sdecontrol.step import StepView
from sdecontrol.value.hjb_axes import along, check_dimension, check_held, coarser, points_of, read_axes
from sdecontrol.value.hjb_differences import FiniteDifference
from sdecontrol.value.hjb_monotone import Monotone
from sdecontrol.value.hjb_scheme import Field, Scheme
from sdecontrol.value.hjb_smoothing import Smoothing

Array = np.ndarray
_DEFAULTS: tuple[Scheme, ...] = (Monotone(), Smoothing(), FiniteDifference())
_RATIO = 1.5  # between the three grids of the observed order
_TIMES = (0.0, 0.5, 0.9)  # of the horizon, where the grids are compared
_STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))


class GridControl(Control):
    """u = g grad v/temperature of a solution.

    control(t, x) reads as accurately as the scheme can. In a simulation, where the same times come back for many
    points, each time's node values are splined once and the splines are read.
    """

    continuum = True
    elementwise = False

    def __init__(self, problem: Any, field: Field):
        self.problem, self.field = problem, field

    def _scale(self, t: float) -> float:
        return self.problem.process.amplitude(t) / self.problem.temperature

    def at(self, t: float, x: Tensor) -> Tensor:
        _check_reading(self.problem, t, x)
        return (self._scale(t) * self.field.read(float(t), x)[1]).to(x)

    def shift(self, step: StepView) -> Tensor:
        return (self._scale(step.t) * self.field.splined(step.t)(step.x)[1]).to(step.x)


@dataclass(frozen=True)
class Convergence:
    """Three grids, each 1.5 times coarser than the one before, compared in the middle half of the box.

    order: log of the ratio of the two differences of v over log 1.5, infinite once the finer one is within what the
    scheme loses elsewhere (rounding, time steps).
    value, control: estimated largest errors of v and u on the finest grid, difference/(1.5^min(order, 2) - 1).
    """

    order: float
    value: float
    control: float


class HJBSolution:
    """v and u* of one problem on a grid. Shapes: x (n, d) -> value (n,), control (n, d); t is generation time.

    Between nodes: Smoothing sums at the points themselves, FiniteDifference reads quintic splines, Monotone linear
    ones. Points outside the box: Smoothing answers as long as the box explains them, else BadInput; the other two
    continue v as its second-order Taylor polynomial at the nearest point of the box, so that u grows linearly there.
    """

    def __init__(self, problem: Any, scheme: Scheme, axes: list[Array], field: Field):
        self.problem, self.scheme, self.axes, self.field = problem, scheme, axes, field
        self.control = GridControl(problem, field)

    def value(self, t: float, x: Tensor) -> Tensor:
        """v(t, x): (n, d) -> (n,), float64. Raises: BadInput for t outside [0, horizon] or points of another shape."""
        _check_reading(self.problem, t, x)
        return self.field.read(float(t), x)[0]

    def as_control(self) -> Control:
        """u* as an sc.Control."""
        return self.control

    def residual(self, t: float) -> Tensor:
        """v_t + b.grad v + g^2 lap v/2 + g^2 |grad v|^2/(2 temperature) + f on the nodes: (n_1, ..., n_d).

        From node values alone: quintic splines in space, fourth-order differences in time; so it shares no
        derivative with any scheme. In units of the reward per unit of time. Needs 0 < t < horizon.
        """
        end, process, temperature = self.problem.process.horizon, self.problem.process, self.problem.temperature
        check(0 < t < end, f"t = {t}", f"a time strictly between 0 and {end:g}", "The residual has a time derivative.")
        v, points = self.field.on_nodes(t, self.axes), points_of(self.axes)
        delta = min(t / 2, (end - t) / 50, end / 100)
        total = torch.zeros_like(v)
        for k, weight in _STENCIL:
            total += weight / delta * self.field.on_nodes(t + k * delta, self.axes)
        half_g2 = process.amplitude(t) ** 2 / 2
        drift = process.state(t, points.to(process.dtype)).drift.detach().double().reshape(*v.shape, -1)
        for axis, x in enumerate(self.axes):
            first, second = (torch.from_numpy(make_interp_spline(x, np.eye(len(x)), k=5)(x, nu=nu)) for nu in (1, 2))
            slope = along(first, v, axis)
            total += drift[..., axis] * slope + half_g2 * (along(second, v, axis) + slope**2 / temperature)
        if self.problem.running_reward is not None:
            total += self.problem.running_rate(t, points).double().reshape(v.shape)
        return total

    @cached_property
    def convergence(self) -> Convergence:
        """Observed order and error estimates; solves the problem on two coarser grids when first asked.

        Raises: BadInput when the coarsest of them would have too few points.
        """
        grids = [self.axes, coarser(self.axes, _RATIO), coarser(self.axes, _RATIO**2)]
        few = min(len(x) for x in grids[-1])
        check(few >= self.scheme.smallest, f"{few} points on an axis of the coarsest of three grids",
              f"at least {self.scheme.smallest}", "Solve with more points an axis.")  # fmt: skip
        fields = [self.field, *(self.scheme.solve(self.problem, axes) for axes in grids[1:])]
        fine, middle, coarse = (_middle_readings(self.problem, self.axes, field) for field in fields)
        near, far = [float((a[0] - b[0]).abs().max()) for a, b in ((fine, middle), (middle, coarse))]
        floor = self.scheme.floor(len(self.axes)) * (1 + float(fine[0].abs().max()))
        order = math.inf if near <= floor else math.log(far / near) / math.log(_RATIO)
        gain = _RATIO ** min(max(order, 0.5), 2.0) - 1
        return Convergence(order, near / gain, float((fine[1] - middle[1]).abs().max()) / gain)

    @property
    def order(self) -> float:
        """Observed order of v in the node distance; see `convergence`."""
        return self.convergence.order

    @property
    def error(self) -> float:
        """Estimated largest error of v in the middle of the box; see `convergence`."""
        return self.convergence.value


def _check_reading(problem: Any, t: float, x: Tensor) -> None:
    end, d = problem.process.horizon, problem.process.dim
    check(0 <= t <= end, f"t = {t}", f"a generation time in [0, {end:g}]")
    check(x.ndim == 2 and x.shape[1] == d, f"points of shape {tuple(x.shape)}", f"(n, {d})")


def _middle_readings(problem: Any, axes: list[Array], field: Field) -> tuple[Tensor, Tensor]:
    """v and u at 256 points of a Sobol sequence in the middle half of the box, at three times."""
    from scipy.stats import qmc  # here: it takes a quarter of a second to load

    unit = qmc.Sobol(len(axes), scramble=False).random(256)
    x = torch.from_numpy(np.stack([a[0] + (a[-1] - a[0]) * (0.25 + 0.5 * c) for a, c in zip(axes, unit.T)], 1))
    values, controls = [], []
    for t in (fraction * problem.process.horizon for fraction in _TIMES):
        v, slope = field.read(t, x)
        values.append(v)
        controls.append(slope * (problem.process.amplitude(t) / problem.temperature))
    return torch.cat(values), torch.cat(controls)


def default_scheme(problem: Any) -> Scheme:
    """The first of Monotone, Smoothing and FiniteDifference that says it suits the problem."""
    return next(scheme for scheme in _DEFAULTS if scheme.suits(problem))


def axes_for(problem: Any, points: int | Sequence[int], scheme: Scheme | None = None) -> list[Array]:
    """Equally spaced axes on a box that holds the law of the states and its tilt.

    points: one number, or one an axis. For Smoothing: every point where the data density or its tilt exceeds e^-36 of
    its maximum. Else five standard deviations around 4096 uncontrolled paths, plain and weighted by
    e^{reward/temperature}, at all times, or less where their tails end before; when few paths carry the weight, or
    nodes are cheap, compare with wider boxes.
    Raises: BadInput for more than three dimensions, too few points, or a tilt that no box holds.
    """
    dim, scheme = check_dimension(problem.process), scheme or default_scheme(problem)
    counts = [points] * dim if isinstance(points, int) else list(points)
    check(len(counts) == dim, f"{len(counts)} numbers of points", f"one, or {dim}")
    check(min(counts) >= scheme.smallest, f"{min(counts)} points on an axis", f"at least {scheme.smallest}")
    scheme.check(problem)
    return [np.linspace(a, b, n) for a, b, n in zip(*scheme.box(problem), counts)]


def solve_hjb(problem: Any, axes: Sequence[Any], scheme: Scheme | None = None) -> HJBSolution:
    """Solve v_t + b.grad v + g^2 lap v/2 + g^2 |grad v|^2/(2 temperature) + f = 0, v(T) = r, on a grid.

    axes: for each of 1 to 3 coordinates an increasing array or (low, high, points); `sc.value.axes_for` makes them.
    scheme: sc.value.Smoothing() (exact scores, no time step), FiniteDifference(order) (any drift, running rewards) or
    Monotone() (rewards that jump); None takes Monotone for a Step reward, else Smoothing where it applies, else
    FiniteDifference. The accuracy of each is in its docstring, the one reached in `.order`, `.error`, `.residual(t)`.
    Raises, before work: BadInput for the dimension, the axes, or a box that leaves more than 0.1 % of the tilted law
    outside (it says how much); NotDefined where the scheme does not apply. ValueBlowUp with `.time` where the value
    is infinite before t = 0 is reached; NotFinite where the grid fails.
    Source: Tang 2403.06279, (3.18) and (3.24); the schemes are derived in their modules.
    """
    dim, scheme = check_dimension(problem.process), scheme or default_scheme(problem)
    scheme.check(problem)
    nodes = read_axes(axes, dim, scheme.smallest)
    check_held(scheme.outside(problem, nodes))
    return HJBSolution(problem, scheme, nodes, scheme.solve(problem, nodes))
