"""The tilt on finitely many points, in plain float64: a problem that costs microseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sdecontrol.errors import check

Floats = NDArray[np.float64]


class StaticTilt:
    """p_ft = e^{r/T} p_pre / C on k points: the optimum of max_p E_p r - T KL(p || p_pre).

    reward (k,) in any unit, temperature T in the same, weights (k,) positive, p_pre = weights / sum (uniform when left
    out). `reference` and `tilt` are the probabilities of p_pre and p_ft, so `p.reference @ f(p.reward)` is E_pre f(r).
    Accuracy: with y = log(p_ft / p_pre), the distances are sums over points of terms of one sign in y and e^y - 1,
    so `tv` and `jeffreys` are right to rounding however small they are; `kl` and `reverse_kl` to eps / max|y|.
    Raises: BadInput for empty or unequal lengths, entries not finite, weights or a temperature not positive.
    Source: Tang 2403.06279, Lemma 3.1.
    """

    def __init__(self, reward: Sequence[float], weights: Sequence[float] | None = None, temperature: float = 1.0):
        self.reward = _column("reward", reward)
        self.weights = _column("weights", np.ones(len(self.reward)) if weights is None else weights)
        self.temperature = float(temperature)
        check(len(self.weights) == len(self.reward), f"{len(self.weights)} weights for {len(self.reward)} rewards",
              "as many of both")  # fmt: skip
        check(bool((self.weights > 0).all()), f"a weight of {self.weights.min():.6g}", "positive weights")
        check(math.isfinite(self.temperature) and self.temperature > 0, f"temperature = {temperature}",
              "a positive finite number")  # fmt: skip

    def __repr__(self) -> str:
        weights = [int(w) if w.is_integer() else w for w in self.weights.tolist()]
        return f"StaticTilt(reward={self.reward.tolist()}, weights={weights}, temperature={self.temperature})"

    @cached_property
    def reference(self) -> Floats:
        """p_pre (k,)."""
        return self.weights / self.weights.sum()

    @cached_property
    def _above_top(self) -> Floats:
        """(r - max r) / T."""
        return (self.reward - self.reward.max()) / self.temperature

    @cached_property
    def _log_mean(self) -> float:
        """log E_pre e^{(r - max r)/T}, to rounding both near 0 and far below."""
        deficit = float(self.reference @ np.expm1(self._above_top))
        return math.log1p(deficit) if deficit > -0.5 else math.log(float(self.reference @ np.exp(self._above_top)))

    @cached_property
    def log_ratio(self) -> Floats:
        """y = log(p_ft / p_pre) = r/T - log C (k,)."""
        return self._above_top - self._log_mean

    @cached_property
    def tilt(self) -> Floats:
        """p_ft (k,)."""
        return self.reference * np.exp(self.log_ratio)

    @property
    def log_normalizer(self) -> float:
        """log C = log E_pre e^{r/T}."""
        return float(self.reward.max()) / self.temperature + self._log_mean

    @property
    def optimum(self) -> float:
        """T log C, the largest E_p r - T KL(p || p_pre)."""
        return self.temperature * self.log_normalizer

    @property
    def tv(self) -> float:
        """d_TV(p_ft, p_pre) = 1/2 E_pre |e^y - 1|."""
        return float(self.reference @ np.abs(np.expm1(self.log_ratio))) / 2

    @property
    def kl(self) -> float:
        """KL(p_ft || p_pre) = E_pre [y e^y - (e^y - 1)]."""
        y = self.log_ratio
        return float(self.reference @ (y * np.exp(y) - np.expm1(y)))

    @property
    def reverse_kl(self) -> float:
        """KL(p_pre || p_ft) = E_pre [(e^y - 1) - y]."""
        y = self.log_ratio
        return float(self.reference @ (np.expm1(y) - y))

    @property
    def jeffreys(self) -> float:
        """D = KL(p_ft || p_pre) + KL(p_pre || p_ft) = (E_ft r - E_pre r) / T = E_pre [y (e^y - 1)]."""
        y = self.log_ratio
        return float(self.reference @ (y * np.expm1(y)))

    @property
    def oscillation(self) -> float:
        """(max r - min r) / T."""
        return -float(self._above_top.min())


def _column(name: str, values: Sequence[float] | Floats) -> Floats:
    column = np.array(values, dtype=np.float64)
    check(column.ndim == 1 and column.size > 0, f"{name} of shape {column.shape}", "a list (k,) of one or more numbers")
    check(bool(np.isfinite(column).all()), f"{name} with NaN or infinite entries", "finite numbers")
    column.setflags(write=False)
    return column
