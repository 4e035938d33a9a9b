"""Marching v back from the horizon in the clock tau = int_t^T g^2, with the heat flow taken exactly.

    dv/dtau = lap v / 2 + N(tau, v),    N = (b.grad v + f)/g^2 + |grad v|^2/(2 temperature).

In the frame w = e^{-tau lap/2} v only N is left, and its steps are classical Runge-Kutta steps (an integrating-factor,
or Lawson, method), whose heat factors are products of one small matrix an axis. An embedded third-order solution sets
the step: error estimate = step (k4 - k5)/10, k5 the first stage of the next step. Derived.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from torch import Tensor

from sdecontrol.errors import NotFinite, check
from sdecontrol.exact.continuum.base import BlowUp
from sdecontrol.processes import Process
from sdecontrol.value.hjb_axes import along

Rate = Callable[[float, Tensor], Tensor]
_PROBES = 257
_SAFETY, _SMALLEST_FACTOR, _LARGEST_EXPONENT = 0.9, 0.2, 2
_FIRST_STEP = 2.0**-16  # of the clock
_SHORTEST_STEP = 2.0**-44
_POLE = 1e6  # -clock/temperature times the curvature of v at which v has blown up
_EVERYWHERE = 0.1  # share of it that half of the nodes must have: a value that blows up is a parabola, not a kink
_MARGIN = 10  # the outer tenth of an axis on either side, where v is continued by parabolas, does not set the steps
_KEPT_ENTRIES = 2**25  # float64 numbers of all slices together
_FEWEST_KEPT, _MOST_KEPT = 32, 8192


class Clock:
    """tau(t) = int_t^T g^2 and its inverse, both to 1e-12 relative by DOP853."""

    def __init__(self, process: Process):
        self.process, self.horizon = process, process.horizon
        amplitudes = [process.amplitude(float(t)) for t in np.linspace(0, process.horizon, _PROBES)]
        check(
            min(amplitudes) > 0 and math.isfinite(max(amplitudes)),
            f"an amplitude between {min(amplitudes):g} and {max(amplitudes):g}",
            "a positive finite one at every time",
            "Without noise the control does nothing and the equation is of first order.",
        )
        options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-14, "dense_output": True}
        forward = solve_ivp(lambda s, y: [self._rate(s)], (0.0, self.horizon), [0.0], **options)
        self.total, self._elapsed = float(forward.y[0, -1]), forward.sol
        backward = solve_ivp(lambda tau, s: [1 / self._rate(float(s[0]))], (0.0, self.total), [0.0], **options)
        self._level = backward.sol

    def _rate(self, s: float) -> float:
        return self.process.amplitude(self.horizon - min(max(s, 0.0), self.horizon)) ** 2

    def tau(self, t: float) -> float:
        return min(max(float(self._elapsed(self.horizon - t)[0]), 0.0), self.total)

    def time(self, tau: float) -> float:
        return self.horizon - min(max(float(self._level(tau)[0]), 0.0), self.horizon)


class Heat:
    """e^{tau lap/2} on the nodes, one matrix an axis, kept for the step sizes in use."""

    def __init__(self, seconds: list[Tensor]):
        self._seconds = seconds
        self._kept: dict[float, list[Tensor]] = {}

    def __call__(self, tau: float, v: Tensor) -> Tensor:
        if tau not in self._kept:
            if len(self._kept) > 16:
                self._kept.clear()
            self._kept[tau] = [torch.from_numpy(expm(d.numpy() * (tau / 2))) for d in self._seconds]
        for axis, matrix in enumerate(self._kept[tau]):
            v = along(matrix, v, axis)
        return v

    def rate(self, v: Tensor) -> Tensor:
        """lap v / 2."""
        parts = [along(d, v, axis) for axis, d in enumerate(self._seconds)]
        return torch.stack(parts).sum(0) / 2

    def steepest(self, v: Tensor) -> tuple[float, float]:
        """Largest second derivative of v along an axis, and the median over the nodes of that derivative."""
        bends = [along(d, v, axis) for axis, d in enumerate(self._seconds)]
        worst = max(bends, key=lambda bend: float(bend.max()))
        return float(worst.max()), float(worst.median())


class Record:
    """(tau, v) after each step, in one block of memory; when it is full every second one is dropped."""

    def __init__(self, v: Tensor):
        rows = min(max(_KEPT_ENTRIES // v.numel(), _FEWEST_KEPT), _MOST_KEPT)
        self._block, self._taus, self._stride, self._offered = v.new_empty(rows, *v.shape), list[float](), 1, 0

    def offer(self, tau: float, v: Tensor, last: bool) -> None:
        """Keep v if it is its turn, and the last one always."""
        if len(self._taus) == len(self._block):
            kept = self._block[::2].clone()
            self._block[: len(kept)] = kept
            self._taus, self._stride = self._taus[::2], 2 * self._stride
        if self._offered % self._stride == 0 or last:
            self._block[len(self._taus)] = v
            self._taus.append(tau)
        self._offered += 1

    def slices(self) -> list[tuple[float, Tensor]]:
        return list(zip(self._taus, self._block))


class March:
    """The slices from tau = 0 to the clock's total, their steps set by the tolerance.

    tolerance: error of a step relative to 1 + |v|. Raises: ValueBlowUp with the time of the pole when the largest
    second derivative k of v reaches 1e6 temperature/total in half of the box: the pole of k' = k^2/temperature lies
    temperature/k ahead. NotFinite when it does so in a smaller part, which is a failure of the grid.
    """

    def __init__(self, clock: Clock, heat: Heat, rate: Rate, temperature: float, tolerance: float):
        self.clock, self.heat, self.rate = clock, heat, rate
        self.temperature, self.tolerance = temperature, tolerance

    def run(self, v: Tensor) -> list[tuple[float, Tensor]]:
        """(tau, v) after each step, or after every second, fourth, ... where memory asks for it."""
        total, tau, exponent = self.clock.total, 0.0, math.log2(_FIRST_STEP)
        k = self.rate(0.0, v)
        record, count = Record(v), 0
        record.offer(0.0, v, last=False)
        while tau < total:
            step = total * 2.0 ** (math.floor(2 * exponent) / 2)
            step, last = (total - tau, True) if tau + 1.0001 * step >= total else (step, False)
            new, k_new, error = self._step(tau, v, k, step)
            self._check_pole(tau, v, step, count)
            if error <= 1:
                tau, v, k, count = total if last else tau + step, new, k_new, count + 1
                record.offer(tau, v, last)
            factor = _SAFETY * error**-0.25 if error > 0 else math.inf
            exponent = math.log2(step / total) + math.log2(min(max(factor, _SMALLEST_FACTOR), 2.0**_LARGEST_EXPONENT))
        return record.slices()

    def slope(self, tau: float, v: Tensor) -> Tensor:
        """dv/dtau = lap v/2 + N(tau, v)."""
        return self.heat.rate(v) + self.rate(tau, v)

    def _step(self, tau: float, v: Tensor, k1: Tensor, step: float) -> tuple[Tensor, Tensor, float]:
        """One step: the new v, its N, and the error in units of the tolerance."""
        half, heat, rate = step / 2, self.heat, self.rate
        v_half, k1 = heat(half, v), heat(half, k1)
        k2 = rate(tau + half, v_half + half * k1)
        k3 = rate(tau + half, v_half + half * k2)
        k4 = rate(tau + step, heat(half, v_half + step * k3))
        new = heat(half, v_half + step / 6 * (k1 + 2 * k2 + 2 * k3)) + step / 6 * k4
        k5 = rate(tau + step, new)
        inner = tuple(slice(n // _MARGIN, n - n // _MARGIN) for n in v.shape)
        error = step / 10 * (k4 - k5)[inner].abs() / (self.tolerance * (1 + v[inner].abs()))
        worst = float(error.max()) if bool(torch.isfinite(new).all()) else math.inf
        return new, k5, worst

    def _check_pole(self, tau: float, v: Tensor, step: float, step_index: int) -> None:
        (steepest, median), total = self.heat.steepest(v), self.clock.total
        if steepest * total > _POLE * self.temperature and median > _EVERYWHERE * steepest:
            raise BlowUp(self.clock.time(min(tau + self.temperature / steepest, total)))
        if step < _SHORTEST_STEP * total or steepest * total > _POLE * self.temperature:
            raise NotFinite(
                "the HJB march",
                step_index,
                self.clock.time(tau),
                "a value that steepens without bound in a part of the box",
                "Take more points or another box; for a reward that jumps take sc.value.Monotone().",
            )
