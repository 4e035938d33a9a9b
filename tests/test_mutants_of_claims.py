"""Every claim rejects the wrong answers that concern it, and says so when it cannot."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

import sdecontrol as sc
from sdecontrol.claims import claims, get_claim
from sdecontrol.claims.base import EXACT, Case, Claim
from sdecontrol.claims.mutants import MUTANTS, Mutant, Replaced, trials, unless_blind
from sdecontrol.problems.builtin import resolve

FAST = ("gaussian-1d-vp", "mixture-2d-vp")


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("id", [claim.id for claim in claims()])
def test_every_claim_rejects_its_mutants(id, name):
    report = sc.verify(id, resolve(name).problem, mutants=True)
    assert report.verdict == "holds", report.reason
    assert [trial["name"] for trial in report.mutants if not trial["rejected"]] == []
    assert all(trial["by"] for trial in report.mutants)


def test_every_claim_has_a_mutant_and_every_mutant_a_claim():
    named = {id for mutant in MUTANTS for id in mutant.always | mutant.affine}
    listed = {claim.id for claim in claims()}
    assert listed <= named
    assert all(get_claim(id).id == id for id in named - listed)  # claims that a plugin brought
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.always | mutant.affine for mutant in MUTANTS)


def test_mutants_are_tried_by_default_but_not_in_a_quick_run():
    problem = resolve("gaussian-1d-vp").problem
    assert sc.verify("lemma-3.1", problem).mutants
    assert not sc.verify("lemma-3.1", problem, quick=True).mutants


@pytest.fixture
def blind(monkeypatch) -> Claim:
    """A claim whose only check looks at log C, and a registry in which a wrong control concerns it too."""
    claim = Claim.__new__(Claim)
    claim.id, claim.title, claim.source, claim.statement, claim.checks = "blind", "", "", "", []

    @claim.check(EXACT)
    def log_c_is_itself(case: Case) -> None:
        case.identity("log C", case.answers.log_normalizer, case.problem.exact.log_normalizer, 1e-12)

    concerned = [replace(m, always=frozenset({"blind"})) for m in MUTANTS if m.name in ("log C dropped", "value x 0.9")]
    monkeypatch.setattr(sys.modules["sdecontrol.claims.mutants"], "MUTANTS", concerned)
    return claim


def test_a_claim_that_cannot_see_its_mutant_is_inconclusive(blind):
    problem = resolve("gaussian-1d-vp").problem
    report = blind.run(problem)
    assert report.verdict == "holds"
    report.mutants = trials(blind, problem, False, 0)
    assert {t["name"]: t["rejected"] for t in report.mutants} == {"log C dropped": True, "value x 0.9": False}
    assert unless_blind(report).verdict == "inconclusive"
    assert report.reason == "cannot tell the truth from: value x 0.9"


def test_a_check_that_stops_with_an_error_counts_as_a_rejection_and_a_skip_does_not():
    problem = resolve("gaussian-1d-vp").problem

    def trial(error: Exception) -> Any:
        def raises(case: Case) -> None:
            raise error

        claim = Claim.__new__(Claim)
        claim.id, claim.checks = "raises", [(EXACT, raises)]
        return claim.first_doubt(Case(claim, problem))

    assert isinstance(trial(sc.InfiniteKL("no")), sc.InfiniteKL)
    assert trial(sc.NoClosedForm("no")) is None


def test_a_mistake_that_cannot_be_made_is_not_a_mutant():
    problem = resolve("gaussian-1d-vp").problem
    same = sc.Problem(problem.process, problem.reward, temperature=1.0, name="temperature 1")
    forgotten = next(m for m in MUTANTS if m.name == "temperature forgotten in the control")
    assert isinstance(forgotten, Mutant)
    claim = get_claim("prop-3.5")
    assert forgotten.case(claim, same, True, 0) is None
    assert isinstance(forgotten.case(claim, problem, True, 0).answers, Replaced)
