"""A verification run: which claims on which problems, what came out, and how it ends."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
        return len(self.reports) == self.size

    def execute(self, problems: Iterable[Problem], verify: Callable[..., Report] = verify) -> Iterator[Report]:
        """Verify each claim on each problem, problem by problem; the problems are those named by `self.problems`."""
        for problem in problems:
            for claim in self.ids:
                start = time.perf_counter()
                report = verify(claim, problem, quick=self.quick, seed=self.seed)
                self.seconds += time.perf_counter() - start
                self.reports.append(report)
                yield report

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
        """1 when something is violated; else 0 when the run is complete, 130 when it was stopped."""
        if self.count("violated"):
            return 1
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
            "reports": [report.to_dict() for report in self.reports],
        }
