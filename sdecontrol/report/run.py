"""A verification run: which claims on which problems, what came out, and how it ends."""

from __future__ import annotations

import platform
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

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


class Pair(NamedTuple):
    """A claim and a problem, by name."""

    claim: str
    problem: str


class Picture(NamedTuple):
    """A figure: its file without suffix, a heading, what it shows, and whether it needs the width of a page."""

    name: str
    title: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Failure:
    """A check that raised, or whose process died, instead of coming to a verdict."""

    claim: str
    problem: str
    error: str
    traceback: str

    @classmethod
    def of(cls, pair: Pair, error: Exception) -> Failure:
        return cls(*pair, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))

    def __str__(self) -> str:
        return f"{self.claim} on {self.problem} failed with {self.error}"


Result = Report | Failure
Results = Generator[Result, None, None]


@dataclass(frozen=True)
class Checking:
    """How a pair is checked: with which seed, how thoroughly, and whether on wrong answers too."""

    seed: int = 0
    quick: bool = False
    mutants: bool = False

    def attempt(self, pair: Pair, problem: Callable[[str], Problem], verify: Callable[..., Report] = verify) -> Result:
        """The report, or the failure: the other claims are worth having whatever goes wrong in this one."""
        try:
            return verify(pair.claim, problem(pair.problem), quick=self.quick, seed=self.seed, mutants=self.mutants)
        except Exception as error:
            return Failure.of(pair, error)

    def each(self, pairs: Iterable[Pair], problem: Callable[[str], Problem]) -> Results:
        """Pairs checked one after another in this process."""
        for pair in pairs:
            yield self.attempt(pair, problem)


@dataclass
class Run:
    """Claims on problems, both by name; `reports` grows while `collect` is iterated, so what is done survives a stop.

    fits: what was fitted to make a problem, by its name. notes: what a reader should know beside the verdicts.
    """

    ids: Sequence[str]
    problems: Sequence[str]
    checking: Checking = Checking()
    fits: Mapping[str, str] = field(default_factory=dict)
    reports: list[Report] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    figures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, reports: Sequence[Report]) -> Run:
        """The run that made these reports, as far as they tell."""
        ids = list(dict.fromkeys(report.claim for report in reports))
        problems = list(dict.fromkeys(report.problem for report in reports))
        seconds = sum(report.seconds for report in reports)
        checking = Checking(reports[0].seed, mutants=any(report.mutants for report in reports))
        return cls(ids, problems, checking, reports=list(reports), seconds=seconds)

    @property
    def pairs(self) -> list[Pair]:
        """Problem by problem: the order of every report."""
        return [Pair(claim, problem) for problem in self.problems for claim in self.ids]

    @property
    def size(self) -> int:
        return len(self.ids) * len(self.problems)

    @property
    def complete(self) -> bool:
        return len(self.reports) + len(self.failures) == self.size

    def collect(self, results: Iterable[Result]) -> Results:
        """Keep results that come in any order, and pass each on when all before it, in the order of `pairs`, are there.

        Results that still wait when the iteration is stopped are kept too.
        """
        started = time.perf_counter()
        left, waiting = deque(self.pairs), dict[Pair, Result]()
        try:
            for result in results:
                waiting[Pair(result.claim, result.problem)] = result
                while left and left[0] in waiting:
                    self.seconds = time.perf_counter() - started
                    yield self._keep(waiting.pop(left.popleft()))
        finally:
            for pair in left:
                if pair in waiting:
                    self._keep(waiting[pair])
            self.seconds = time.perf_counter() - started

    def _keep(self, result: Result) -> Result:
        if isinstance(result, Failure):
            self.failures.append(result)
        else:
            self.reports.append(result)
        return result

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
            **asdict(self.checking),
            "seconds": round(self.seconds, 3),
            "complete": self.complete,
            "counts": {verdict: self.count(verdict) for verdict in VERDICTS},
            "fits": dict(self.fits),
            "figures": [picture.name for picture in self.figures],
            "captions": {picture.name: picture.caption for picture in self.figures},
            "notes": self.notes,
            "failures": [asdict(failure) for failure in self.failures],
            "reports": [report.to_dict() for report in self.reports],
        }
