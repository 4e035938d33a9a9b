"""Assertions that say how sure they are: tolerances from rounding, sampling tests with declared rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from sdecontrol.claims.base import HOLDS, INCONCLUSIVE, VIOLATED
from sdecontrol.errors import BadInput, check
from sdecontrol.estimate import Estimate
from sdecontrol.noise import Noise
from sdecontrol.testing.ledger import Record, current_test, record
from sdecontrol.testing.statements import tolerance_of

Numbers = Any  # a float, an array or a tensor


def assert_identity(left: Numbers, right: Numbers, tolerance: float | None = None, *, condition: float = 1.0) -> None:
    """left = right, entry by entry, within the tolerance; NaN is never equal, an infinity equals itself.

    tolerance None: what rounding leaves, 1 000 eps times `condition` times the largest finite magnitude; give the
    condition number where one enters (the ratio of eigenvalues, or |terms| / |sum| of a sum that cancels).
    Raises: AssertionError with the worst entry; BadInput for shapes that differ.
    """
    a, b = _pair(left, right)
    allowed = tolerance_of(a, b, condition=condition) if tolerance is None else tolerance
    with np.errstate(invalid="ignore"):
        gap = np.where(a == b, 0.0, np.abs(a - b))
    _require(gap, a, b, allowed, "==", tolerance)


def assert_bound(left: Numbers, right: Numbers, slack: float | None = None) -> None:
    """left <= right + slack, entry by entry; slack None: what rounding leaves, as in `assert_identity`.

    Raises: AssertionError with the worst entry; BadInput for shapes that differ.
    """
    a, b = _pair(left, right)
    allowed = tolerance_of(a, b) if slack is None else slack
    with np.errstate(invalid="ignore"):
        gap = np.where(a == b, 0.0, a - b)
    _require(gap, a, b, allowed, "<=", slack)


def _pair(left: Numbers, right: Numbers) -> tuple[np.ndarray, np.ndarray]:
    a, b = _array(left), _array(right)
    scalar = a.ndim == 0 or b.ndim == 0
    check(scalar or a.shape == b.shape, f"shapes {a.shape} and {b.shape}", "equal shapes, or one number")
    a, b = np.broadcast_arrays(a, b)
    return a, b


def _array(values: Numbers) -> np.ndarray:
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.asarray(values, dtype=np.float64)


def _require(gap: np.ndarray, a: np.ndarray, b: np.ndarray, allowed: float, sign: str, given: float | None) -> None:
    """Fail with the entry of the largest gap; a gap that is NaN fails too."""
    bad = np.atleast_1d(~(gap <= allowed))
    if not bad.any():
        return
    worst = int(np.argmax(np.where(np.isnan(gap), np.inf, gap)))
    place = f" at entry {tuple(map(int, np.unravel_index(worst, gap.shape)))} of {gap.shape}" if gap.ndim else ""
    why = "rounding" if given is None else "given"
    raise AssertionError(
        f"saw {a.flat[worst]!r} {sign} {b.flat[worst]!r} fail by {gap.flat[worst]:.3g}{place}; "
        f"wanted at most {allowed:.3g} ({why}); {int(bad.sum())} of {bad.size} entries fail"
    )


class Inconclusive(AssertionError):
    """The samples could not have seen the gap that was asked for; `record.needed` samples would."""

    def __init__(self, entry: Record):
        super().__init__(
            f"{entry}; wanted a smaller one, for which {entry.needed:.3g} samples would do. "
            "Raise max_samples, ask for a larger detectable_gap, or lower the variance."
        )
        self.record = entry


def assert_unbiased(
    estimator: Callable[[Noise], Estimate | Numbers],
    truth: Estimate | Numbers,
    *,
    false_fail_rate: float = 1e-6,
    detectable_gap: float | None = None,
    false_pass_rate: float = 0.01,
    max_samples: int = 1_000_000,
    seed: int = 0,
    name: str = "",
) -> Record:
    """E estimator = truth, by a test whose two kinds of error are declared.

    estimator: Noise -> an Estimate, or independent samples along dimension 0; it is called with Noise(seed),
    Noise(seed + 1), ... and the calls are pooled, until a gap of `detectable_gap` in any entry would be seen with
    probability 1 - false_pass_rate. truth: a number, an array, or an independent Estimate. A correct estimator fails
    with probability `false_fail_rate`, which the entries of an array share (Bonferroni); quantiles are Student's.
    detectable_gap None: one call, and the gap that it sees is in the record.
    Accuracy: of the central limit theorem; give each call the samples to know its own standard error (some hundreds,
    more for heavy tails). How long to draw is read from standard errors alone.
    Raises: AssertionError when it fails; Inconclusive, with the samples needed, beyond `max_samples`; BadInput for
    rates outside (0, 1), or an estimator that ignores the noise. Returns the record, kept for the session's summary.
    """
    check(0 < false_fail_rate < 1, f"false_fail_rate = {false_fail_rate}", "a probability in (0, 1)")
    check(0 < false_pass_rate < 1, f"false_pass_rate = {false_pass_rate}", "a probability in (0, 1)")
    check(detectable_gap is None or detectable_gap > 0, f"detectable_gap = {detectable_gap}", "a positive number")
    target = truth if isinstance(truth, Estimate) else Estimate.exact(truth)
    test = _Test(target, false_fail_rate, false_pass_rate)
    pooled = _ask(estimator, seed)
    calls = 1
    if detectable_gap is not None:
        while pooled.n < (needed := test.samples_for(pooled, detectable_gap)) <= max_samples:
            for _ in range(max(1, math.ceil((needed - pooled.n) * calls / pooled.n))):
                pooled = _pool(pooled, _ask(estimator, seed + calls))
                calls += 1
    entry = test.judge(pooled, detectable_gap, name or current_test(getattr(estimator, "__qualname__", "estimator")))
    record(entry)
    if entry.verdict == VIOLATED:
        raise AssertionError(f"saw {pooled}; wanted {target}. {entry}")
    if entry.verdict == INCONCLUSIVE:
        raise Inconclusive(entry)
    return entry


@dataclass(frozen=True)
class _Test:
    """The two-sided test of an estimate against `truth` with the declared rates."""

    truth: Estimate
    false_fail_rate: float
    false_pass_rate: float

    def critical(self, estimate: Estimate) -> float:
        """The |z| that a true statement exceeds with probability false_fail_rate, over all entries."""
        rate = self.false_fail_rate / max(1, np.size(estimate.value))
        return float(stats.t.isf(rate / 2, estimate.n - 1))

    def resolution(self, estimate: Estimate) -> float:
        """Standard errors of a gap that is seen with probability 1 - false_pass_rate."""
        return self.critical(estimate) + float(stats.t.isf(self.false_pass_rate, estimate.n - 1))

    def detectable(self, estimate: Estimate) -> float:
        return self.resolution(estimate) * float(np.max(np.hypot(estimate.stderr, self.truth.stderr)))

    def samples_for(self, estimate: Estimate, gap: float) -> float:
        """Samples at which `gap` is detectable: n (k stderr)^2 / (gap^2 - (k stderr of the truth)^2)."""
        if self.detectable(estimate) <= gap:
            return estimate.n
        k = self.resolution(estimate)
        room = np.square(gap / k) - np.square(self.truth.stderr)
        wanted = np.where(room > 0, np.square(estimate.stderr) / np.where(room > 0, room, 1.0), np.inf)
        return max(math.nextafter(estimate.n, math.inf), estimate.n * float(np.max(wanted)))

    def z(self, estimate: Estimate) -> float:
        """The largest |value - truth| / stderr; entries without error count when they differ beyond rounding."""
        gap = np.abs(np.asarray(estimate.value) - np.asarray(self.truth.value))
        scale = np.hypot(estimate.stderr, self.truth.stderr)
        rounding = tolerance_of(estimate.value, self.truth.value)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where((scale == 0) & (gap <= rounding), 0.0, gap / scale)
        return float(np.max(np.where(np.isnan(z), np.inf, z)))

    def judge(self, estimate: Estimate, gap: float | None, name: str) -> Record:
        z, critical, detectable = self.z(estimate), self.critical(estimate), self.detectable(estimate)
        needed = estimate.n if gap is None else self.samples_for(estimate, gap)
        blind = gap is not None and detectable > gap
        return Record(
            name=name,
            verdict=VIOLATED if z > critical else INCONCLUSIVE if blind else HOLDS,
            z=z,
            z_critical=critical,
            n=estimate.n,
            needed=needed,
            stderr=float(np.max(estimate.stderr)),
            detectable_gap=detectable,
            false_fail_rate=self.false_fail_rate,
            false_pass_rate=self.false_pass_rate,
        )


def _ask(estimator: Callable[[Noise], Estimate | Numbers], seed: int) -> Estimate:
    answer = estimator(Noise(seed))
    estimate = answer if isinstance(answer, Estimate) else Estimate.mean(answer)
    check(estimate.n >= 2, f"an estimate from {estimate.n} samples", "at least two",
          "An exact value needs assert_identity.")  # fmt: skip
    return estimate


def _pool(a: Estimate, b: Estimate) -> Estimate:
    """The mean over the samples of two independent estimates."""
    if np.array_equal(a.value, b.value) and np.any(a.stderr):
        raise BadInput("saw the same estimate from two noises; wanted one that depends on the noise it is given.")
    n = a.n + b.n
    value = (a.n * np.asarray(a.value) + b.n * np.asarray(b.value)) / n
    stderr = np.hypot(a.n * np.asarray(a.stderr), b.n * np.asarray(b.stderr)) / n
    return Estimate(value, stderr, n, a.route)
