"""Any drift: high-order finite differences in space, adaptive fourth-order steps in the clock of the noise."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import NotDefined, NotFinite, check
from sdecontrol.rewards import Step
from sdecontrol.value.hjb_axes import Pilot, along, derivative_matrices, points_of
from sdecontrol.value.hjb_marching import Clock, Heat, March
from sdecontrol.value.hjb_scheme import Field, Nodes, Scheme

Array = np.ndarray
_CHUNK = 2**13  # points a call of the drift
_KEPT_SLOPES = 4
_FIRST_LEVEL = 1e-6  # of the horizon: where the march starts when the drift is singular at t = T


@dataclass(frozen=True)
class FiniteDifference(Scheme):
    """Central differences of `order` on any smoothly spaced axes; see `hjb_marching` for the steps in time.

    order: even; None means 8 in one and two dimensions, 6 in three. tolerance: error of a time step, relative to
    1 + |v|. Near the ends of an axis the stencils shrink to three nodes, so v is continued as a parabola: exact for
    quadratic values, and the control may grow linearly. A drift that is singular at t = T (data on a subspace) is
    entered at s = 1e-6 horizon with v = r there; the steps are then geometric in s by themselves. The drift is computed
    in the dtype of the process: for a float32 network v is good to about 1e-6.
    """

    order: int | None = None
    tolerance: float = 1e-8
    smallest = 16

    def floor(self, dim: int) -> float:
        return 10 * self.tolerance

    def suits(self, problem: Any) -> bool:
        return not isinstance(problem.reward, Step)

    def check(self, problem: Any) -> None:
        check(self.order is None or (self.order >= 2 and self.order % 2 == 0), f"order = {self.order}",
              "an even order >= 2")  # fmt: skip
        check(0 < self.tolerance < 1, f"tolerance = {self.tolerance}", "a number in (0, 1)")

    def box(self, problem: Any) -> tuple[Array, Array]:
        return Pilot(problem).box()

    def outside(self, problem: Any, axes: list[Array]) -> float:
        return Pilot(problem).outside(axes)

    def solve(self, problem: Any, axes: list[Array]) -> MarchedField:
        equation = Equation(problem, axes, self.order or (6 if len(axes) == 3 else 8))
        clock = Clock(problem.process)
        march = March(clock, Heat(equation.seconds), equation.rate(clock), problem.temperature, self.tolerance)
        return MarchedField(equation, march, march.run(equation.reward()))


class Equation:
    """The right-hand side N(tau, v) = (b.grad v + f)/g^2 + |grad v|^2/(2 temperature) on the nodes."""

    def __init__(self, problem: Any, axes: list[Array], order: int):
        self.problem, self.process, self.temperature, self.axes = problem, problem.process, problem.temperature, axes
        matrices = [derivative_matrices(x, order) for x in axes]
        self.firsts, self.seconds = [m[0] for m in matrices], [m[1] for m in matrices]
        self.points, self.shape = points_of(axes), [len(x) for x in axes]
        self._kept: tuple[float, list[Tensor], Tensor | float] | None = None
        self._latest = self._start()

    def _start(self) -> float:
        """The last time at which the drift is finite: T, or a little before where it is singular there."""
        end = self.process.horizon
        for t in (end, end * (1 - _FIRST_LEVEL)):
            with suppress(NotDefined):  # the score of a law without a density
                if bool(torch.isfinite(self._drift(t)).all()):
                    return t
        raise NotFinite("the drift", 0, end * (1 - _FIRST_LEVEL))

    def _drift(self, t: float) -> Tensor:
        """b on the nodes (n, d), in the dtype of the process, as in a simulation."""
        parts = self.points.to(self.process.dtype).split(_CHUNK)
        with torch.no_grad():
            return torch.cat([self.process.state(t, x).drift.double() for x in parts])

    def reward(self) -> Tensor:
        value = self.problem.reward(self.points).detach().double().reshape(self.shape)
        check(bool(torch.isfinite(value).all()), "a reward that is not finite on the nodes", "finite numbers")
        return value

    def gradient(self, v: Tensor) -> list[Tensor]:
        return [along(d, v, axis) for axis, d in enumerate(self.firsts)]

    def forces(self, t: float) -> tuple[list[Tensor], Tensor | float]:
        """(b_1, ..., b_d)/g^2 and f/g^2 on the nodes at time t; the last one is kept, as stages share times."""
        t = min(t, self._latest)
        if self._kept is None or self._kept[0] != t:
            g2 = self.process.amplitude(t) ** 2
            drift = self._drift(t) / g2
            running: Tensor | float = 0.0
            if self.problem.running_reward is not None:
                running = self.problem.running_rate(t, self.points).detach().double().reshape(self.shape) / g2
            self._kept = t, [b.reshape(self.shape) for b in drift.unbind(1)], running
        return self._kept[1], self._kept[2]

    def rate(self, clock: Clock) -> Any:
        def n(tau: float, v: Tensor) -> Tensor:
            drift, running = self.forces(clock.time(tau))
            total = torch.zeros_like(v) + running
            for b, slope in zip(drift, self.gradient(v)):
                total += slope * (b + slope / (2 * self.temperature))
            return total

        return n


class MarchedField(Field):
    """v at the steps of the march, cubic Hermite between them; grad v by the differences of the scheme."""

    def __init__(self, equation: Equation, march: March, slices: list[tuple[float, Tensor]]):
        super().__init__()
        self.equation, self.axes, self.march, self.slices = equation, equation.axes, march, slices
        self._taus = [tau for tau, _ in slices]
        self._slopes: dict[int, Tensor] = {}

    def on_nodes(self, t: float, axes: list[Array]) -> Tensor:
        tau = self.march.clock.tau(t)
        k = min(max(bisect_right(self._taus, tau), 1), len(self._taus) - 1)
        (start, left), (end, right) = self.slices[k - 1], self.slices[k]
        x, width, rise = (tau - start) / (end - start), end - start, right - left
        bend = (self._slope(k - 1) * width - rise) * (1 - x) - (self._slope(k) * width - rise) * x
        return left + x * rise + x * (1 - x) * bend

    def _slope(self, k: int) -> Tensor:
        """dv/dtau of slice k; a few are kept, as times come back and follow one another."""
        if k not in self._slopes:
            if len(self._slopes) >= _KEPT_SLOPES:
                self._slopes.clear()
            self._slopes[k] = self.march.slope(*self.slices[k])
        return self._slopes[k]

    def nodes(self, t: float) -> Nodes:
        v = self.on_nodes(t, self.axes)
        return Nodes(self.axes, v, torch.stack(self.equation.gradient(v), -1))
