"""Means of exponential weights in the log domain, with errors that say when they cannot be trusted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.estimate import Estimate

_ROUNDING = 1e-14  # of a log mean, relative
RELIABLE = 0.7  # largest Pareto k at which a mean of weights and its error can be trusted
FEWEST = 2.0  # effective samples under which nothing is known


class UnreliableWeights(UserWarning):
    """The largest weights have a Pareto tail with k above 0.7, or fewer than two samples are effective.

    The mean and its standard error are then both too small.
    """


@dataclass(frozen=True, kw_only=True)
class ValueEstimate(Estimate):
    """v = temperature log h at the rows (t, x), each an entry of `value` and `stderr`.

    stderr: sampling and step error in quadrature. log_h: log E exp((r + int rho)/temperature). ess: effective samples
    of the n weights. pareto_k: tail index of the largest weights. step_error: what Richardson's extrapolation may have
    left, 0 where the transition is exact. methods: the method of each row.
    """

    log_h: Estimate
    ess: Estimate
    pareto_k: np.ndarray
    step_error: np.ndarray
    methods: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class LogMean:
    """log h (rows,) with its relative standard error, the step error in it, and what its weights looked like."""

    log_h: Tensor
    stderr: Tensor
    step_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    n: int
    methods: tuple[str, ...]

    @classmethod
    def join(cls, parts: Sequence[LogMean], order: Sequence[int] | None = None) -> LogMean:
        """Rows of several results, put in their original `order`."""
        rows = sum(len(part.log_h) for part in parts)
        back = torch.arange(rows) if order is None else torch.argsort(torch.tensor(order))
        names = ("log_h", "stderr", "step_error", "ess", "pareto_k")
        methods = [name for part in parts for name in part.methods]
        log_h, stderr, step_error, ess, k = (torch.cat([getattr(p, name) for p in parts])[back] for name in names)
        n = max(part.n for part in parts)
        return cls(log_h, stderr, step_error, ess, k, n, tuple(methods[i] for i in back.tolist()))

    @property
    def total_error(self) -> Tensor:
        return torch.hypot(self.stderr, self.step_error)

    def value(self, temperature: float) -> ValueEstimate:
        error = self.total_error.numpy()
        route = ", ".join(dict.fromkeys(self.methods))
        log_h = Estimate(self.log_h.numpy(), error, self.n, route)
        return ValueEstimate(
            log_h.value * temperature, error * temperature, self.n, route,
            log_h=log_h, ess=Estimate(self.ess.numpy(), np.zeros_like(error), self.n, "effective samples of n"),
            pareto_k=self.pareto_k.numpy(), step_error=self.step_error.numpy() * temperature, methods=self.methods,
        )  # fmt: skip


def warn_of(pareto_k: Tensor, ess: Tensor, advice: str) -> None:
    """Warn when a tail index of the rows (rows,) is above 0.7, or an effective sample size below 2."""
    heaviest, fewest = int(pareto_k.argmax()), int(ess.argmin())
    if float(ess[fewest]) < FEWEST:
        seen = f"an effective sample size of {float(ess[fewest]):.2f} in row {fewest}; wanted at least {FEWEST:g}"
    elif float(pareto_k[heaviest]) > RELIABLE:
        seen = f"weights with Pareto k = {float(pareto_k[heaviest]):.2f} in row {heaviest}; wanted at most {RELIABLE}"
    else:
        return
    warnings.warn(f"saw {seen}: the error bar cannot be trusted. {advice}", UnreliableWeights, stacklevel=3)


def exact_log_mean(log_h: Tensor) -> LogMean:
    """A log mean without error: the reward itself at t = T."""
    zero = torch.zeros_like(log_h)
    return LogMean(log_h, zero, zero, zero + math.inf, zero - math.inf, 0, ("exact",) * len(log_h))


def of_weights(log_w: Tensor, order: int, method: str) -> LogMean:
    """Mean of n independent weights: (n, levels, rows), finest level first."""
    top = log_w.amax(0)
    return of_units(torch.exp(log_w - top), top, log_w[:, 0], order, len(log_w), method)


def of_units(units: Tensor, scale: Tensor, log_w: Tensor, order: int, n: int, method: str) -> LogMean:
    """log of e^scale mean(units) from independent units (N, levels, rows); log_w (n, rows): the weights behind them."""
    mean = units.mean(0)
    log_h, step_error, influence = extrapolated(scale + mean.log(), units / mean - 1, order)
    stderr = torch.hypot(influence.std(0) / math.sqrt(len(units)), _ROUNDING * (1 + log_h.abs()))
    k = torch.tensor([pareto_k(column) for column in log_w.unbind(1)], dtype=torch.float64)
    return LogMean(log_h, stderr, step_error, effective(log_w), k, n, (method,) * len(log_h))


def extrapolated(levels: Tensor, influence: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor]:
    """Richardson's limit of (levels, ...) on steps d, 2d, 4d; what it may have left; its influence (N, ...).

    With f_d = f + c d^p + O(d^{p+1}): f is (2^p f_d - f_2d)/(2^p - 1) up to O(d^{p+1}), of which the same limit from
    2d and 4d has 2^{p+1} times as much. One level is exact.
    """
    if len(levels) == 1:
        return levels[0], torch.zeros_like(levels[0]), influence[:, 0]
    q = 2.0**order
    fine, coarse = ((q * levels[i] - levels[i + 1]) / (q - 1) for i in (0, 1))
    left = (fine - coarse).abs() / (2 * q - 1)
    return fine, left, (q * influence[:, 0] - influence[:, 1]) / (q - 1)


def effective(log_w: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of the columns of (n, rows)."""
    return torch.exp(2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0))


def pareto_k(log_w: Tensor) -> float:
    """Tail index of the min(n/5, 3 sqrt(n)) largest weights: a generalised Pareto fit; -inf when they are all equal.

    Source: Vehtari et al. (1507.02646), with the estimator of Zhang and Stephens (2009) and its weak prior.
    """
    n = len(log_w)
    size = int(min(n / 5, 3 * math.sqrt(n)))
    if size < 5:
        return math.inf
    largest = torch.topk(log_w, size + 1).values.numpy()
    w = np.exp(largest - largest[0])
    excess = np.sort(w[:-1] - w[-1])
    excess = excess[excess > 1e-12]  # equal weights are not a tail
    if len(excess) < 5:
        return -math.inf
    size = len(excess)
    k = _generalised_pareto(excess)
    return (size * k + 5) / (size + 10)


def _generalised_pareto(y: np.ndarray) -> float:
    """Shape of a generalised Pareto law from sorted excesses, by the posterior mean over a grid of 1/scale ratios."""
    count = 30 + int(math.sqrt(len(y)))
    b: Any = 1 - np.sqrt(count / (np.arange(1, count + 1) - 0.5))
    b = b / (3 * y[int(len(y) / 4 + 0.5) - 1]) + 1 / y[-1]
    k = np.log1p(-b[:, None] * y).mean(1)
    fit = len(y) * (np.log(-b / k) - k - 1)
    with np.errstate(over="ignore"):  # the weight of a poor fit is zero
        weight = 1 / np.exp(fit - fit[:, None]).sum(1)
    b_mean = float((b * weight).sum() / weight.sum())
    return float(np.log1p(-b_mean * y).mean())
