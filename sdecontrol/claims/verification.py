"""Claims run on problems: the rows, the verdict, and the mutants that the verdict must not be blind to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sdecontrol.claims.base import HOLDS, Report, claims, get_claim
from sdecontrol.claims.mutants import trials, unless_blind
from sdecontrol.problems.base import Problem


def verify(id: str, problem: Problem, *, quick: bool = False, seed: int = 0, mutants: bool | None = None) -> Report:
    """Run every check of a claim on a problem; verdict "holds", "violated", "inconclusive" or "not applicable".

    mutants: run a claim that holds on wrong answers too (by default unless `quick`); one that it does not reject makes
    it inconclusive. Raises: UnknownName for an unknown id.
    """
    claim = get_claim(id)
    report = claim.run(problem, quick=quick, seed=seed)
    if (not quick if mutants is None else mutants) and report.verdict == HOLDS:
        report.mutants = trials(claim, problem, quick, seed)
    return unless_blind(report)


def iterate_all(
    problem: Problem,
    ids: Iterable[str] | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    mutants: bool | None = None,
) -> Iterator[Report]:
    """Reports one after another, so that what is done can be kept when a run is interrupted."""
    for id in ids or [claim.id for claim in claims()]:
        yield verify(id, problem, quick=quick, seed=seed, mutants=mutants)


def verify_all(problem: Problem, *, quick: bool = False, seed: int = 0, mutants: bool | None = None) -> list[Report]:
    """Every claim on one problem."""
    return list(iterate_all(problem, quick=quick, seed=seed, mutants=mutants))
