"""A verification run: which claims on which problems, what came out, and how it ends."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sdecontrol.claims import Report, verify
from sdecontrol.problems.base import Problem

VERDICTS = ("holds", "violated", "inconclusive", "not applicable")
PACKAGES = ("sdecontrol", "torch", "numpy", "scipy", "torchsde", "scikit-learn")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions by name, Python first; "not installed" where a package is absent."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True)
class Failure:
    """A check that raised instead of coming to a verdict."""

    claim: str
    problem: str
    error: str
    traceback: str

    @classmethod
    def of(cls, claim: str, problem: str, error: Exception) -> Failure:
        return cls(claim, problem, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))

    def __str__(self) -> str:
        return f"{self.claim} on {self.problem} failed with {self.error}"


@dataclass
class Run:
    """Claims on problems, both by name; `reports` grows while `execute` is iterated, so what is done survives a stop.

    fits: what was fitted to make a problem, by its name. notes: what a reader should know beside the verdicts.
    """

    ids: Sequence[str]
    problems: Sequence[str]
    seed: int = 0
    quick: bool = False
    fits: Mapping[str, str] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    figures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, reports: Sequence[Report]) -> Run:
        """The run that made these reports, as far as they tell."""
        ids = list(dict.fromkeys(report.claim for report in reports))
        problems = list(dict.fromkeys(report.problem for report in reports))
        seconds = sum(report.seconds for report in reports)
        return cls(ids, problems, seed=reports[0].seed, reports=list(reports), seconds=seconds)

    @property
    def size(self) -> int:
        return len(self.ids) * len(self.problems)

    @property
    def complete(self) -> bool:
        return len(self.reports) + len(self.failures) == self.size

    def execute(
        self, problems: Iterable[Problem], verify: Callable[..., Report] = verify
    ) -> Iterator[Report | Failure]:
        """Verify each claim on each problem, problem by problem; the problems are those named by `self.problems`."""
        for name, problem in zip(self.problems, problems, strict=True):
            for claim in self.ids:
                start = time.perf_counter()
                try:
                    result: Report | Failure = verify(claim, problem, quick=self.quick, seed=self.seed)
                except Exception as error:  # the other claims are worth having whatever went wrong in this one
                    result = Failure.of(claim, name, error)
                self.seconds += time.perf_counter() - start
                if isinstance(result, Failure):
                    self.failures.append(result)
                else:
                    self.reports.append(result)
                yield result

    def count(self, verdict: str) -> int:
        return sum(report.verdict == verdict for report in self.reports)

    def matrix(self) -> dict[str, dict[str, str]]:
        """Verdict by claim and problem name, for the pairs that are done."""
        table: dict[str, dict[str, str]] = {claim: {} for claim in self.ids}
        for report in self.reports:
            table[report.claim][report.problem] = report.verdict
        return table

    @property
    def exit_code(self) -> int:
        """1 when something is violated, else 3 when a check failed, else 130 when the run was stopped, else 0."""
        if self.count("violated"):
            return 1
        if self.failures:
            return 3
        return 0 if self.complete else 130

    def to_dict(self) -> dict[str, Any]:
        return {
            "versions": versions(),
            "seed": self.seed,
            "quick": self.quick,
            "seconds": round(self.seconds, 3),
            "complete": self.complete,
            "counts": {verdict: self.count(verdict) for verdict in VERDICTS},
            "fits": dict(self.fits),
            "figures": self.figures,
            "notes": self.notes,
            "failures": [asdict(failure) for failure in self.failures],
            "reports": [report.to_dict() for report in self.reports],
        }
