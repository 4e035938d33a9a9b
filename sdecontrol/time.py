"""Time grids: the one owner of generation time t, increasing from 0 = noise to horizon = data.

A `TimeGrid` is a recipe; `resolve(process)` turns it into numbers. Each time is a function of a fraction k/K,
evaluated one number at a time: nothing accumulates t += dt, and a refined grid has its parent's bits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdecontrol.errors import NotDefined, check

Floats = NDArray[np.float64]
_ROUNDING = 1e-12  # of the horizon: how far past the horizon a time may lie and still mean the horizon


class Timed(Protocol):
    """What a grid needs of a process: its horizon, and the noise level s = horizon - t."""

    @property
    def horizon(self) -> float: ...

    def noise_level(self, t: float) -> float: ...


@dataclass(frozen=True, eq=False)
class ResolvedGrid:
    """The numbers of a grid: times t_0 < ... < t_K and the noise levels s_k = noise_level(t_k).

    Shapes: `times` and `noise_levels` are (K+1,), `dt` = diff(times) is (K,); float64 and read-only.
    """

    times: Floats
    noise_levels: Floats
    dt: Floats = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dt", np.diff(self.times))
        for array in (self.times, self.noise_levels, self.dt):
            array.setflags(write=False)

    @property
    def steps(self) -> int:
        """K, the number of kernel steps."""
        return len(self.times) - 1


class TimeGrid(ABC):
    """A frozen recipe for times; made by `uniform`, `geometric`, `log_snr` or `explicit`.

    `steps` counts every kernel step, the closing step to s = 0 included.
    """

    @staticmethod
    def uniform(steps: int) -> UniformGrid:
        """t_k = horizon k/K, k = 0..K = `steps`."""
        return UniformGrid(_count("steps", steps))

    @staticmethod
    def geometric(steps: int, s_min: float = 1e-3, close: bool = True) -> GeometricGrid:
        """s_k = horizon s_min^{k/K}, k = 0..K: log s is uniform. Then, if `close`, one step to s = 0.

        `s_min` is a fraction of the horizon, in (0, 1). K = steps - 1 if `close`, else `steps`; one closed
        step goes from s = horizon straight to 0.
        """
        return GeometricGrid(_count("steps", steps) - close, _fraction(s_min), bool(close))

    @staticmethod
    def log_snr(steps: int, s_min: float = 1e-3, close: bool = True) -> LogSNRGrid:
        """log SNR = 2 log(alpha/sigma) is uniform between its values at s = horizon and s = s_min horizon.

        Then, if `close`, one step to s = 0; s_min and the count of steps as in `geometric`. `resolve` raises
        NotDefined for a process without a schedule.
        """
        return LogSNRGrid(_count("steps", steps) - close, _fraction(s_min), bool(close))

    @staticmethod
    def explicit(times: Iterable[float]) -> ExplicitGrid:
        """The given generation times, strictly increasing in [0, horizon], two or more.

        They need not start at 0 nor end at the horizon.
        """
        values = np.array(times if hasattr(times, "__len__") else list(times), dtype=np.float64)
        check(values.ndim == 1 and values.size >= 2, f"times of shape {values.shape}", "two or more times")
        ordered = bool(np.isfinite(values).all() and (np.diff(values) > 0).all() and values[0] >= 0)
        check(ordered, f"times {values}", "finite times, strictly increasing, the first one >= 0",
              "t = 0 is noise and t = horizon is data: reverse a list of noise levels with t = horizon - s.")
        return ExplicitGrid(tuple(values.tolist()))

    @property
    @abstractmethod
    def steps(self) -> int:
        """The total number of kernel steps."""

    @abstractmethod
    def refine(self, factor: int) -> TimeGrid:
        """Each interval in `factor` equal parts of the grid's own coordinate; the closing step stays whole.

        The coordinate is t for uniform and explicit grids, log s or log SNR for those named after them.
        Accuracy: the coarse times are among the fine ones, bit for bit; refine(a).refine(b) = refine(a b).
        """

    @abstractmethod
    def _times(self, process: Timed) -> list[float]:
        """The generation times for this process."""

    def resolve(self, process: Timed) -> ResolvedGrid:
        """The times and noise levels of this grid for `process`.

        A grid from t = 0 starts at exactly 0.0; a closed one ends at exactly `process.horizon`.
        Raises: BadInput when an explicit time lies beyond the horizon, or two times are one float64 number;
        NotDefined for a log-SNR grid and a process without a schedule.
        """
        times = self._times(process)
        check(all(a < b for a, b in zip(times, times[1:], strict=False)), f"{self}: times equal in float64",
              "strictly increasing times", "Use fewer steps or a larger s_min.")
        levels = [process.noise_level(t) for t in times]
        return ResolvedGrid(np.array(times, dtype=np.float64), np.array(levels, dtype=np.float64))


@dataclass(frozen=True)
class UniformGrid(TimeGrid):
    """See `TimeGrid.uniform`."""

    intervals: int

    @property
    def steps(self) -> int:
        return self.intervals

    def refine(self, factor: int) -> UniformGrid:
        return replace(self, intervals=self.intervals * _count("factor", factor))

    def _times(self, process: Timed) -> list[float]:
        return [process.horizon * u for u in _fractions(self.intervals)]


@dataclass(frozen=True)
class _LevelGrid(TimeGrid):
    """A grid made in the noise level, s(u) for u in [0, 1] from horizon to s_min horizon, closed or not."""

    intervals: int
    s_min: float
    close: bool

    @property
    def steps(self) -> int:
        return self.intervals + self.close

    def refine(self, factor: int) -> TimeGrid:
        return replace(self, intervals=self.intervals * _count("factor", factor))

    @abstractmethod
    def _levels(self, process: Timed, fractions: list[float]) -> list[float]:
        """s at fractions strictly inside (0, 1)."""

    def _times(self, process: Timed) -> list[float]:
        horizon = process.horizon
        inside = self._levels(process, _fractions(self.intervals)[1:-1])
        last = [self.s_min * horizon] if self.intervals else []
        return [0.0, *(horizon - s for s in inside + last), *([horizon] if self.close else [])]


@dataclass(frozen=True)
class GeometricGrid(_LevelGrid):
    """See `TimeGrid.geometric`."""

    def _levels(self, process: Timed, fractions: list[float]) -> list[float]:
        return [process.horizon * self.s_min**u for u in fractions]


@dataclass(frozen=True)
class LogSNRGrid(_LevelGrid):
    """See `TimeGrid.log_snr`."""

    def _levels(self, process: Timed, fractions: list[float]) -> list[float]:
        schedule: Any = getattr(process, "schedule", None)
        if schedule is None:
            raise NotDefined(f"{type(process).__name__} has no schedule, so log SNR is not defined along it; "
                             "use TimeGrid.uniform, geometric or explicit")
        first, last = schedule.log_snr(process.horizon), schedule.log_snr(self.s_min * process.horizon)
        return [schedule.noise_level_at((1 - u) * first + u * last) for u in fractions]


@dataclass(frozen=True)
class ExplicitGrid(TimeGrid):
    """See `TimeGrid.explicit`; `parts` is the number of equal parts of each given interval."""

    times: tuple[float, ...]
    parts: int = 1

    @property
    def steps(self) -> int:
        return self.parts * (len(self.times) - 1)

    def refine(self, factor: int) -> ExplicitGrid:
        return replace(self, parts=self.parts * _count("factor", factor))

    def _times(self, process: Timed) -> list[float]:
        last = self.times[-1]
        check(last <= process.horizon * (1 + _ROUNDING), f"a last time of {last!r}",
              f"times up to the horizon, {process.horizon!r}", "Divide the times by their own horizon.")
        times = [min(t, process.horizon) for t in self.times]
        return [a + (b - a) * u for a, b in zip(times, times[1:], strict=False)
                for u in _fractions(self.parts)[:-1]] + times[-1:]


def _fractions(intervals: int) -> list[float]:
    """k/K for k = 0..K, each rounded once, so that (c k)/(c K) has the same bits."""
    return [0.0] + [k / intervals for k in range(1, intervals + 1)]


def _count(name: str, value: int) -> int:
    good = isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1
    check(good, f"{name} = {value!r}", "an integer >= 1")
    return int(value)


def _fraction(s_min: float) -> float:
    good = isinstance(s_min, Real) and math.isfinite(s_min) and 0 < s_min < 1
    check(good, f"s_min = {s_min!r}", "a fraction of the horizon, 0 < s_min < 1", "Divide by the horizon.")
    return float(s_min)
