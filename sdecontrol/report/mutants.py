"""Wrong answers that claims were run on: how many each claim rejected, and which it missed where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from sdecontrol.claims import Report


@dataclass
class Tally:
    """How often a wrong answer was tried and rejected, and where it was missed."""

    tried: int = 0
    rejected: int = 0
    missed: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return "missed" if self.missed else "caught"

    def __str__(self) -> str:
        return f"{self.rejected} of {self.tried}"


Tallies = dict[str, dict[str, Tally]]


def tallies(reports: Iterable[Report]) -> Tallies:
    """By claim and name of the mutant, over the problems; claims without mutants are left out."""
    table: Tallies = defaultdict(lambda: defaultdict(Tally))
    for report in reports:
        for mutant in report.mutants:
            tally = table[report.claim][mutant["name"]]
            tally.tried += 1
            tally.rejected += mutant["rejected"]
            if not mutant["rejected"]:
                tally.missed.append(report.problem)
    return {claim: dict(row) for claim, row in table.items()}


def totals(table: Tallies) -> dict[str, Tally]:
    """All mutants of each claim together; what was missed reads "problem: mutant, mutant"."""
    return {claim: _total(row) for claim, row in table.items()}


def _total(row: dict[str, Tally]) -> Tally:
    missed: dict[str, list[str]] = defaultdict(list)
    for name, tally in row.items():
        for problem in tally.missed:
            missed[problem].append(name)
    tried, rejected = (sum(counts) for counts in zip(*((tally.tried, tally.rejected) for tally in row.values())))
    return Tally(tried, rejected, [f"{problem}: {', '.join(names)}" for problem, names in missed.items()])


def summary(reports: Iterable[Report]) -> list[str]:
    """One line a claim: "prop-3.2: mutants rejected 17 of 17", with what was missed."""
    return [
        f"{claim}: mutants rejected {tally}" + (f"; missed on {'; '.join(tally.missed)}" if tally.missed else "")
        for claim, tally in totals(tallies(reports)).items()
    ]
