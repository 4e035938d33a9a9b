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
from sdecontrol.girsanov import effective

_ROUNDING = 1e-14  # of a log mean, relative
RELIABLE = 0.7  # largest Pareto k at which a mean of weights and its error can be trusted
FEWEST = 2.0  # effective samples under which nothing is known
FEWEST_CARRIERS = 16.0  # samples under which a variance is not known to a quarter of itself


class UnreliableWeights(UserWarning):
    """The largest weights have a Pareto tail with k above 0.7, fewer than two samples are effective, or the error bar
    hangs on fewer than sixteen.

    The mean and its standard error are then both too small.
    """


@dataclass(frozen=True, kw_only=True)
class ValueEstimate(Estimate):
    """v = temperature log h at the rows (t, x), each an entry of `value` and `stderr`.

    stderr: sampling and step error in quadrature. log_h: log E exp((r + int rho)/temperature). ess: effective samples
    of the n weights. pareto_k: tail index of the largest weights. step_error: what Richardson's extrapolation may have
    left, 0 where the transition is exact. carriers: samples that carry the error bar, (sum e^2)^2/sum e^4 of their
    contributions e to the error. methods: the method of each row.
    """

    log_h: Estimate
    ess: Estimate
    pareto_k: np.ndarray
    carriers: np.ndarray
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
    carriers: Tensor
    n: int
    methods: tuple[str, ...]

    @classmethod
    def join(cls, parts: Sequence[LogMean], order: Sequence[int] | None = None) -> LogMean:
        """Rows of several results, put in their original `order`."""
        rows = sum(len(part.log_h) for part in parts)
        back = torch.arange(rows) if order is None else torch.argsort(torch.tensor(order))
        names = ("log_h", "stderr", "step_error", "ess", "pareto_k", "carriers")
        methods = [name for part in parts for name in part.methods]
        log_h, error, step, ess, k, held = (torch.cat([getattr(p, name) for p in parts])[back] for name in names)
        n, ordered = max(part.n for part in parts), tuple(methods[i] for i in back.tolist())
        return cls(log_h, error, step, ess, k, held, n, ordered)

    @property
    def total_error(self) -> Tensor:
        return torch.hypot(self.stderr, self.step_error)

    def trusted(self, margin: float = 1.0) -> Tensor:
        """Whether a row's weights and error bar can be believed, with `margin` times the carriers that this takes."""
        return (self.pareto_k <= RELIABLE) & (self.carriers >= margin * FEWEST_CARRIERS)

    def value(self, temperature: float) -> ValueEstimate:
        error = self.total_error.numpy()
        route = ", ".join(dict.fromkeys(self.methods))
        log_h = Estimate(self.log_h.numpy(), error, self.n, route)
        return ValueEstimate(
            log_h.value * temperature, error * temperature, self.n, route,
            log_h=log_h, ess=Estimate(self.ess.numpy(), np.zeros_like(error), self.n, "effective samples of n"),
            pareto_k=self.pareto_k.numpy(), carriers=self.carriers.numpy(),
            step_error=self.step_error.numpy() * temperature, methods=self.methods,
        )  # fmt: skip


def warn_of(pareto_k: Tensor, ess: Tensor, carriers: Tensor, advice: str, wanted: float = FEWEST_CARRIERS) -> None:
    """Warn when a row (rows,) has a tail index above 0.7, under 2 effective samples or too few carriers."""
    heaviest, fewest, thinnest = int(pareto_k.argmax()), int(ess.argmin()), int(carriers.argmin())
    if float(ess[fewest]) < FEWEST:
        seen = f"an effective sample size of {float(ess[fewest]):.2f} in row {fewest}; wanted at least {FEWEST:g}"
    elif float(pareto_k[heaviest]) > RELIABLE:
        seen = f"weights with Pareto k = {float(pareto_k[heaviest]):.2f} in row {heaviest}; wanted at most {RELIABLE}"
    elif float(carriers[thinnest]) < wanted:
        hangs = f"an error bar that hangs on {float(carriers[thinnest]):.1f} samples in row {thinnest}"
        seen = f"{hangs}; wanted at least {wanted:g}"
    else:
        return
    warnings.warn(f"saw {seen}: the error bar cannot be trusted. {advice}", UnreliableWeights, stacklevel=3)


def exact_log_mean(log_h: Tensor) -> LogMean:
    """A log mean without error: the reward itself at t = T."""
    zero = torch.zeros_like(log_h)
    many = zero + math.inf
    return LogMean(log_h, zero, zero, many, -many, many, 0, ("exact",) * len(log_h))


def of_weights(log_w: Tensor, order: int, method: str) -> LogMean:
    """Mean of n independent weights: (n, levels, rows), finest level first."""
    top = log_w.amax(0)
    return of_units(torch.exp(log_w - top), top, log_w[:, 0], order, len(log_w), method)


def of_units(units: Tensor, scale: Tensor, log_w: Tensor, order: int, n: int, method: str) -> LogMean:
    """log of e^scale mean(units) from independent units (N, levels, rows); log_w (n, rows): the weights behind them."""
    mean = units.mean(0)
    log_h, step_error, influence = extrapolated(scale + mean.log(), units / mean - 1, order)
    stderr, held = spread(influence)
    rounding = _ROUNDING * (1 + log_h.abs())
    held = torch.where(stderr > rounding, held, torch.inf)
    return LogMean(log_h, torch.hypot(stderr, rounding), step_error, *tails(log_w), held, n, (method,) * len(log_h))


def of_nets(log_w: Tensor, order: int, method: str) -> LogMean:
    """Mean over R independent nets of m dependent weights each: (R, m, levels, rows).

    The error is that of the net means, and in quadrature that of the R largest weights, one a net: their excesses over
    the next one, as R independent draws.
    """
    nets, size = log_w.shape[:2]
    flat = log_w[:, :, 0].flatten(0, 1)
    top = log_w.amax((0, 1))
    means = torch.exp(log_w - top).mean(1)
    mean = means.mean(0)
    log_h, step_error, influence = extrapolated(top + mean.log(), means / mean - 1, order)
    largest = torch.exp(flat.topk(nets + 1, 0).values - flat.logsumexp(0))  # shares of the sum
    rare = (largest[:-1] - largest[-1]).std(0) * math.sqrt(nets)
    stderr = torch.hypot(influence.std(0) / math.sqrt(nets), rare)
    stderr = torch.hypot(stderr, _ROUNDING * (1 + log_h.abs()))
    held = torch.full_like(log_h, math.inf)
    return LogMean(log_h, stderr, step_error, *tails(flat), held, nets * size, (method,) * len(log_h))


def tails(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Effective samples and Pareto k of the columns of (n, rows)."""
    k = [pareto_k(column) for column in log_w.unbind(1)]
    return effective(log_w, 0), torch.tensor(k, dtype=torch.float64)


def spread(*contributions: Tensor) -> tuple[Tensor, Tensor]:
    """Standard error of a sum of means of independent contributions (n, ...) each, and how many of them carry it.

    With e = (contribution - mean)/n: carriers = (sum e^2)^2/sum e^4, which is n/kurtosis for one mean. The variance has
    the relative error (1/carriers - 1/n)^{1/2}, and is taken two of these above its estimate: of heavy contributions
    too small a mean comes with too small a variance.
    """
    parts = [((c - c.mean(0)) / len(c)).square() for c in contributions]
    second = torch.stack([e2.sum(0) for e2 in parts])
    fourth = torch.stack([e2.square().sum(0) for e2 in parts])
    counts = second.new_tensor([len(c) for c in contributions]).reshape(-1, *[1] * (second.ndim - 1))
    variance = second.sum(0)
    carriers = variance.square() / fourth.sum(0)
    own = (fourth - second.square() / counts).clamp(min=0).sum(0).sqrt()
    unbiased = (second * counts / (counts - 1)).sum(0)
    return (unbiased + 2 * own).sqrt(), torch.where(carriers.isnan(), torch.inf, carriers)


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
