"""What a claim is: a statement of a paper, the checks that could refute it, and the verdict.

A check compares the library's answer with a route that shares no code with it and adds rows to the case. Tolerances
are computed: from rounding and the route's own error on the exact and discrete rungs, from the standard error on the
Monte Carlo rung. Checks read the library's answers from `case.answers` only, so a wrong variant of the answers can be
put in their place to see that the check would have caught it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import ndtri

from sdecontrol.errors import NoClosedForm, NotDefined, NoTilt, SDEControlError, UnknownName
from sdecontrol.estimate import Estimate
from sdecontrol.noise import Noise

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

EXACT, DISCRETE, MONTE_CARLO = RUNGS = ("exact", "discrete", "monte carlo")
HOLDS, VIOLATED, INCONCLUSIVE, NOT_APPLICABLE = "holds", "violated", "inconclusive", "not applicable"

FAMILY_RATE = 1e-3  # probability that a run of true statements shows any false alarm
FAMILY_ROWS = 2_000  # Monte Carlo rows among which it is split (Bonferroni)
Z_CRITICAL = -float(ndtri(FAMILY_RATE / (2 * FAMILY_ROWS)))
DETECTION = Z_CRITICAL + -float(ndtri(0.01))  # standard errors at which a gap is seen in 99 of 100 runs
RESOLUTION = 0.25  # largest detectable gap, relative to the scale of the quantity, that still decides
EPS = float(np.finfo(np.float64).eps)


class NotApplicable(SDEControlError):
    """The statement (or one check of it) says nothing about this problem; the message is the reason."""


@dataclass(frozen=True)
class Row:
    """One comparison. error: tolerance on the exact and discrete rungs, standard error on the Monte Carlo rung."""

    claim: str
    problem: str
    rung: str
    quantity: str
    left: float
    right: float
    error: float
    digits: float | None
    z: float | None
    verdict: str
    note: str = ""


@dataclass
class Report:
    """The verdict of one claim on one problem, with every row behind it."""

    claim: str
    title: str
    source: str
    problem: str
    rows: list[Row]
    verdict: str
    reason: str
    seconds: float
    seed: int
    skipped: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    mutants: list[dict[str, Any]] = field(default_factory=list)  # {"name", "rejected", "by"}, where they were tried

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, directory: str | FilePath) -> None:
        """report.html, report.md and report.json in `directory`, written atomically."""
        from sdecontrol.report.files import save_reports

        save_reports([self], FilePath(directory))


def rounding(*values: float, condition: float = 1.0, operations: int = 1_000) -> float:
    """Tolerance of an identity between float64 results: operations * eps * condition * largest magnitude."""
    return operations * EPS * condition * max(1e-300, *(abs(float(v)) for v in values))


def agreeing_digits(left: float, right: float, scale: float | None = None) -> float:
    """-log10 of the difference relative to the larger magnitude (or a given scale), at most 16."""
    gap = abs(left - right)
    size = max(abs(left), abs(right)) if scale is None else scale
    return 16.0 if gap == 0 or size == 0 else min(16.0, max(0.0, -math.log10(gap / abs(size))))


class Case:
    """One problem under one claim: its answers, its randomness, and the rows found so far."""

    def __init__(self, claim: Claim, problem: Problem, answers: Any = None, quick: bool = False, seed: int = 0):
        self.claim, self.problem, self.quick, self.seed = claim, problem, quick, seed
        self.answers = problem.exact if answers is None else answers
        self.rows: list[Row] = []
        self.rung = EXACT

    @cached_property
    def noise(self) -> Noise:
        return Noise(self.seed)

    @property
    def paths(self) -> int:
        """Paths of a Monte Carlo row."""
        return 4_000 if self.quick else 20_000

    @property
    def rng(self) -> np.random.Generator:
        """For the choice of test points and test controls; the same at every call."""
        return np.random.default_rng([self.seed, *self.claim.id.encode()])

    def _add(
        self,
        quantity: str,
        left: float,
        right: float,
        error: float,
        digits: float | None,
        z: float | None,
        verdict: str,
        note: str,
    ) -> None:
        name = self.problem.name or "problem"
        self.rows.append(
            Row(
                self.claim.id,
                name,
                self.rung,
                quantity,
                float(left),
                float(right),
                float(error),
                digits,
                z,
                verdict,
                note,
            )
        )

    def identity(
        self, quantity: str, left: float, right: float, error: float, *, scale: float | None = None, note: str = ""
    ) -> None:
        """left = right within the computed error (of rounding, quadrature or an ODE solver)."""
        left, right, error = float(left), float(right), float(error)
        verdict = HOLDS if abs(left - right) <= error else VIOLATED
        self._add(quantity, left, right, error, agreeing_digits(left, right, scale), None, verdict, note)

    def zero(self, quantity: str, residual: float, error: float, *, scale: float = 1.0, note: str = "") -> None:
        """A largest deviation that should vanish: |residual| <= error; digits are relative to `scale`."""
        self.identity(quantity, residual, 0.0, error, scale=scale, note=note)

    def bound(self, quantity: str, left: float, right: float, error: float = 0.0, *, note: str = "") -> None:
        """left <= right up to the computed error."""
        left, right = float(left), float(right)
        verdict = HOLDS if left <= right + error else VIOLATED
        slack = f"slack {right - left:.3g}"
        self._add(quantity, left, right, error, None, None, verdict, f"{slack}; {note}" if note else slack)

    def sample(
        self,
        quantity: str,
        estimate: Estimate,
        truth: float | Estimate,
        *,
        bias: float = 0.0,
        scale: float | None = None,
        note: str = "",
    ) -> None:
        """estimate = truth within Z_CRITICAL standard errors (plus a computed bias of the discretisation).

        Inconclusive, with the number of samples that would decide, when a gap of RESOLUTION times the scale of the
        quantity could not have been seen.
        """
        other = truth if isinstance(truth, Estimate) else Estimate.exact(truth)
        stderr = math.hypot(float(estimate.stderr), float(other.stderr))
        gap = float(estimate.value) - float(other.value)
        size = scale if scale is not None else max(abs(float(other.value)), abs(float(estimate.value)))
        excess = math.copysign(abs(gap) - bias, gap) if abs(gap) > bias else 0.0
        z = excess / stderr if stderr > 0 else (0.0 if excess == 0 else math.copysign(math.inf, excess))
        detectable = DETECTION * stderr + bias
        said = f"sees {detectable:.2g}" + (f", of which discretisation {bias:.1g}, taken off before z" if bias else "")
        verdict = VIOLATED if abs(z) > Z_CRITICAL or not math.isfinite(gap) else HOLDS
        if verdict == HOLDS and detectable > RESOLUTION * size:
            verdict = INCONCLUSIVE
            wanted = estimate.n * (DETECTION * stderr / (RESOLUTION * size)) ** 2 if size else math.inf
            said += f"; n = {wanted:.2g} would decide"
        self._add(quantity, estimate.value, other.value, stderr, None, z, verdict, f"{said}; {note}" if note else said)

    def sample_bound(self, quantity: str, estimate: Estimate, right: float | Estimate, *, note: str = "") -> None:
        """estimate <= right up to Z_CRITICAL standard errors."""
        other = right if isinstance(right, Estimate) else Estimate.exact(right)
        stderr = math.hypot(float(estimate.stderr), float(other.stderr))
        gap = float(estimate.value) - float(other.value)
        z = gap / stderr if stderr > 0 else (0.0 if gap <= 0 else math.inf)
        verdict = VIOLATED if z > Z_CRITICAL else HOLDS
        slack = f"slack {-gap:.3g}"
        self._add(
            quantity, estimate.value, other.value, stderr, None, z, verdict, f"{slack}; {note}" if note else slack
        )


Check = Callable[[Case], None]


class Claim:
    """A statement with its source, and the checks on each rung."""

    def __init__(self, id: str, title: str, source: str, statement: str, listed: bool = True):
        """listed: False for claims about one kind of process, found by id but not among those of the papers."""
        self.id, self.title, self.source, self.statement = id, title, source, statement
        self.checks: list[tuple[str, Check]] = []
        (REGISTRY if listed else UNLISTED)[id] = self

    def check(self, rung: str) -> Callable[[Check], Check]:
        """Register a check; it may raise NotApplicable (or meet NoClosedForm), which skips it with the reason."""

        def register(function: Check) -> Check:
            self.checks.append((rung, function))
            return function

        return register

    def run(
        self, problem: Problem, *, answers: Any = None, quick: bool = False, seed: int = 0, rungs: Iterable[str] = RUNGS
    ) -> Report:
        started = time.perf_counter()
        skipped: list[str] = []
        try:
            case = Case(self, problem, answers, quick, seed)
        except (NoClosedForm, NoTilt) as reason:
            return self._report(problem, [], [f"{reason}"], started, seed)
        for _ in self._checked(case, rungs, skipped):
            pass
        return self._report(problem, case.rows, skipped, started, seed)

    def _checked(self, case: Case, rungs: Iterable[str], skipped: list[str]) -> Iterator[Case]:
        """Run the checks in the order of the rungs; the case after each, and the reasons of those that do not apply."""
        chosen = set(rungs)
        for rung, function in sorted(self.checks, key=lambda entry: RUNGS.index(entry[0])):
            if rung not in chosen:
                continue
            case.rung = rung
            try:
                with torch.no_grad():
                    function(case)
            except (NotApplicable, NoClosedForm, NotDefined, NoTilt) as reason:
                skipped.append(f"{rung}, {function.__name__.replace('_', ' ')}: {reason}")
            yield case

    def first_doubt(
        self, case: Case, rungs: Iterable[str] = RUNGS, verdicts: Iterable[str] = (VIOLATED,)
    ) -> Row | SDEControlError | None:
        """The first row with one of the verdicts, or the error a check ended with; the checks after it are not run."""
        wanted = set(verdicts)
        try:
            for _ in self._checked(case, rungs, []):
                for row in case.rows:
                    if row.verdict in wanted:
                        return row
        except SDEControlError as error:
            return error
        return None

    def _report(self, problem: Problem, rows: list[Row], skipped: list[str], started: float, seed: int) -> Report:
        verdict, reason = overall(rows, skipped)
        name = problem.name or "problem"
        return Report(
            self.id, self.title, self.source, name, rows, verdict, reason, time.perf_counter() - started, seed, skipped
        )


def overall(rows: list[Row], skipped: list[str]) -> tuple[str, str]:
    """The worst verdict of the rows with its reason; not applicable when no check applied."""
    for verdict in (VIOLATED, INCONCLUSIVE):
        found = [row for row in rows if row.verdict == verdict]
        if found:
            return verdict, "; ".join(f"{row.rung}: {row.quantity}" for row in found[:3])
    if not rows:
        return NOT_APPLICABLE, "; ".join(dict.fromkeys(s.split(": ", 1)[-1] for s in skipped))
    return HOLDS, f"{len(rows)} comparisons"


REGISTRY: dict[str, Claim] = {}
UNLISTED: dict[str, Claim] = {}


def claims() -> list[Claim]:
    """All claims, in the order of the papers; each has .id .title .source .statement."""
    return list(REGISTRY.values())


def get_claim(id: str) -> Claim:
    """The claim of that id. Raises UnknownName with the nearest ids."""
    known = REGISTRY | UNLISTED
    if id not in known:
        raise UnknownName("claim", id, REGISTRY)
    return known[id]
