"""Conditioning as control on a finite chain, exact in numpy: the discrete-state h-transform.

A chain x_0 ~ nu, x_{k+1} ~ p_k(. | x_k) on states 0 .. S-1, and a label weight w(x_K) = prod_j p(y_j | x)^g_j:

    h_K = w,   h_k(x) = sum_x' p_k(x' | x) h_{k+1}(x'),   p*_k(x' | x) = p_k(x' | x) h_{k+1}(x') / h_k(x),
    nu* = nu h_0 / C,   C = sum nu h_0,   law of x_K under p*:  w p_K / C

(Doob; CTRL 2406.12120, Lemmas 2 and 4 in discrete state, derived). Everything is kept as logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp

from sdecontrol.errors import NoTilt, check

Array = np.ndarray
_ROUNDING = 1e-9  # by which rows may miss a sum of 1


@dataclass(frozen=True, eq=False)
class FiniteChain:
    """log_initial (S,), log_kernels (K, S, S): row x of kernel k is log p_k(. | x). Made by `FiniteChain.of`."""

    log_initial: Array
    log_kernels: Array

    @classmethod
    def of(cls, initial: Any, kernels: Any) -> FiniteChain:
        """From probabilities. Raises BadInput for wrong shapes, negative entries, or rows that do not sum to 1."""
        nu, p = np.asarray(initial, dtype=np.float64), np.asarray(kernels, dtype=np.float64)
        check(nu.ndim == 1 and len(nu) > 0, f"initial of shape {nu.shape}", "a vector (S,)")
        check(p.ndim == 3 and p.shape[1:] == (len(nu), len(nu)), f"kernels of shape {p.shape}",
              f"(K, {len(nu)}, {len(nu)})")  # fmt: skip
        for name, rows in (("initial", nu), ("kernels", p)):
            check(bool((rows >= 0).all()), f"{name} with a negative or NaN entry", "probabilities")
            off = float(np.abs(rows.sum(-1) - 1).max())
            check(off <= _ROUNDING, f"{name} with a row that misses a sum of 1 by {off:.3g}", "rows that sum to 1")
        return cls(_log(nu), _log(p))

    @property
    def states(self) -> int:
        return len(self.log_initial)

    def log_values(self, log_weight: Any) -> Array:
        """log h_k(x) = log E[w(x_K) | x_k = x]: (S,) -> (K + 1, S). Raises BadInput unless w is a weight a state."""
        w = np.asarray(log_weight, dtype=np.float64)
        check(w.shape == (self.states,), f"a log weight of shape {w.shape}", f"({self.states},), one a state")
        check(not bool((np.isnan(w) | (w == np.inf)).any()), "a log weight that is NaN or infinite",
              "numbers, or minus infinity for a label that cannot be")  # fmt: skip
        found = [w]
        for log_p in self.log_kernels[::-1]:
            found.append(logsumexp(log_p + found[-1], axis=1))
        return np.stack(found[::-1])

    def log_normalizer(self, log_weight: Any) -> float:
        """log C = log E w(x_K)."""
        return float(logsumexp(self.log_initial + self.log_values(log_weight)[0]))

    def conditioned(self, log_weight: Any) -> FiniteChain:
        """The h-transform from nu*: the path law tilted by w(x_K). Raises NoTilt when E w(x_K) = 0."""
        log_h, log_c = self.log_values(log_weight), self.log_normalizer(log_weight)
        if log_c == -math.inf:
            raise NoTilt("E w(x_K) = 0: no path ends where the label has weight; wanted a label that can be")
        return FiniteChain(self.log_initial + log_h[0] - log_c, self._moved(log_h, 1.0))

    def scaled(self, log_weight: Any, strength: float) -> FiniteChain:
        """The start and kernels of the label at strength 1, h_k and h_{k+1} raised to `strength`, normalised.

        It is what scaling a classifier's guidance does; its output is not w^strength p_K / C unless strength is 1.
        """
        log_h = self.log_values(log_weight)
        start = self.log_initial + strength * log_h[0]
        return FiniteChain(start - logsumexp(start), self._moved(log_h, strength))

    def _moved(self, log_h: Array, strength: float) -> Array:
        """log of p_k(x'|x) h_{k+1}(x')^strength, normalised; a state from which no weight is reached keeps p_k."""
        moved = self.log_kernels + strength * log_h[1:, None, :]
        total = logsumexp(moved, axis=2, keepdims=True)
        return np.where(np.isneginf(total), self.log_kernels, moved - np.where(np.isneginf(total), 0.0, total))

    def marginals(self) -> Array:
        """P(x_k = x): (K + 1, S)."""
        found = [np.exp(self.log_initial)]
        for log_p in self.log_kernels:
            found.append(found[-1] @ np.exp(log_p))
        return np.stack(found)

    def path_kl(self, other: FiniteChain) -> tuple[float, float]:
        """(KL of the starts, sum_k E KL(p_k || other_k)): their sum is the KL of the two path laws."""
        marginals = self.marginals()
        steps = sum(float(m @ _kl(a, b)) for m, a, b in zip(marginals, self.log_kernels, other.log_kernels))
        return float(_kl(self.log_initial, other.log_initial)), steps


def label_weight(log_likelihoods: Sequence[Any], strengths: Sequence[float]) -> Array:
    """log prod_j p(y_j | x)^g_j for labels that are independent given x: each (S,) -> (S,).

    Raises BadInput for strengths that are not finite, or another number of them than of labels.
    """
    check(len(log_likelihoods) == len(strengths) > 0, f"{len(log_likelihoods)} labels, {len(strengths)} strengths",
          "a strength for each label")  # fmt: skip
    for strength in strengths:
        check(math.isfinite(strength), f"a strength of {strength}", "a finite number")
    return np.sum([g * np.asarray(log_p, dtype=np.float64) for g, log_p in zip(strengths, log_likelihoods)], axis=0)


def _log(p: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(p)


def _kl(log_p: Array, log_q: Array) -> Array:
    """sum p log(p/q) over the last axis, with 0 log 0 = 0; infinite where p is not below q."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        return np.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
