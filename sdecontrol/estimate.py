"""Numbers with errors: every stochastic result of the library is an `Estimate`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri

from sdecontrol.errors import check


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _plain(a: Any) -> Any:
    return float(a) if np.ndim(a) == 0 else np.asarray(a)


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, the number of independent samples behind it and the route that made it.

    `value` and `stderr` are floats, or arrays of equal shape for several quantities at once. `stderr` is 0 for
    exact routes. The standard error is the sample standard deviation (denominator n - 1) over sqrt(n).
    """

    value: Any
    stderr: Any
    n: int
    route: str = "monte carlo"

    @classmethod
    def exact(cls, value: Any, route: str = "closed form") -> Estimate:
        return cls(_plain(_array(value)), _plain(np.zeros_like(_array(value))), 0, route)

    @classmethod
    def mean(cls, samples: Any, route: str = "monte carlo", offset: float = 0.0) -> Estimate:
        """Mean over dimension 0 of independent samples, shifted by the exact number `offset`."""
        a = _array(samples)
        check(a.ndim >= 1 and len(a) >= 2, f"{a.shape} samples", "at least two independent samples along dimension 0")
        stderr = a.std(axis=0, ddof=1) / math.sqrt(len(a))
        return cls(_plain(a.mean(axis=0) + offset), _plain(stderr), len(a), route)

    @classmethod
    def log_mean_exp(cls, log_weights: Any, route: str = "log of the mean weight") -> Estimate:
        """log E e^w by the log of the mean: error by the delta method, biased low by about half its variance."""
        w = _array(log_weights)
        top = w.max(axis=0)
        ratio = cls.mean(np.exp(w - top))
        return cls(_plain(top + np.log(ratio.value)), _plain(ratio.stderr / ratio.value), len(w), route)

    @classmethod
    def difference(cls, a: Any, b: Any, route: str = "paired difference") -> Estimate:
        """Mean of a - b over paired samples (common random numbers)."""
        return cls.mean(_array(a) - _array(b), route)

    def z(self, truth: Any) -> Any:
        """(value - truth) / stderr; `truth` a number or an independent Estimate. Infinite when exact and different."""
        other = truth if isinstance(truth, Estimate) else Estimate.exact(truth)
        gap = np.asarray(self.value) - np.asarray(other.value)
        scale = np.hypot(self.stderr, other.stderr)
        with np.errstate(divide="ignore", invalid="ignore"):
            return _plain(np.where(gap == 0, 0.0, gap / scale))

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """Central interval of the given level from the normal approximation."""
        half = ndtri(0.5 + level / 2) * np.asarray(self.stderr)
        return _plain(self.value - half), _plain(self.value + half)

    def samples_for(self, gap: float, z: float = 4.0) -> int:
        """Samples at which a discrepancy `gap` is z standard errors: n (z stderr / gap)^2."""
        return math.ceil(self.n * (z * float(np.max(self.stderr)) / gap) ** 2)

    def __add__(self, other: Estimate | float) -> Estimate:
        """Sum with a number or an independent estimate."""
        o = other if isinstance(other, Estimate) else Estimate.exact(other)
        return Estimate(self.value + o.value, _plain(np.hypot(self.stderr, o.stderr)), self.n or o.n, self.route)

    def __mul__(self, scale: float) -> Estimate:
        return Estimate(self.value * scale, self.stderr * abs(scale), self.n, self.route)

    __radd__ = __add__
    __rmul__ = __mul__

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        if np.ndim(self.value):
            return f"{self.value} ± {self.stderr} (n = {self.n}, {self.route})"
        if self.stderr == 0:
            return f"{self.value:.10g} ({self.route})"
        digits = max(0, 1 - math.floor(math.log10(self.stderr))) if math.isfinite(self.stderr) else 3
        return f"{self.value:.{digits}f} ± {self.stderr:.1g} (n = {self.n}, {self.route})"

    def to_dict(self) -> dict[str, Any]:
        as_list = lambda a: a.tolist() if isinstance(a, np.ndarray) else a  # noqa: E731
        return {"value": as_list(self.value), "stderr": as_list(self.stderr), "n": self.n, "route": self.route}
