"""Wrong answers: what a check is worth is what it would catch.

A mutant is a mistake that people make (a sign, g for g^2, a forgotten initial law, a standard deviation reported as a
standard error), put in place of a problem's exact answers or of a case's arithmetic. Each claim that a mutant concerns
must stop holding; a claim that cannot tell one of its mutants from the truth is inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.claims.base import HOLDS, INCONCLUSIVE, MONTE_CARLO, VIOLATED, Case, Claim, Report, Row
from sdecontrol.controls import StateControl
from sdecontrol.errors import NoClosedForm, NotDefined, NoTilt, SDEControlError
from sdecontrol.estimate import Estimate
from sdecontrol.laws import Gaussian, GaussianMixture, Law, Subspace, TiltedLaw, kl
from sdecontrol.rewards import Quadratic, as_quadratic

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

Replacement = Callable[["Problem", Any], dict[str, Any]]


class Replaced:
    """The exact answers of a problem with some of them replaced."""

    def __init__(self, answers: Any, replaced: dict[str, Any]):
        self._answers, self._replaced = answers, replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced[name] if name in self._replaced else getattr(self._answers, name)


class DoesNotApply(Exception):
    """The mutant is not a mistake on this problem (a temperature of 1 forgotten, say)."""


@dataclass(frozen=True)
class Mutant:
    """A named mistake in the answers, and the claims that must notice it: on every problem, or on affine ones."""

    name: str
    always: frozenset[str]
    affine: frozenset[str]
    replace: Replacement

    def concerns(self, claim: Claim, problem: Problem) -> bool:
        return claim.id in self.always or (claim.id in self.affine and problem.process.is_affine)

    def case(self, claim: Claim, problem: Problem, quick: bool, seed: int) -> Case | None:
        """The claim's case with the wrong answers in it; None where the mistake cannot be made."""
        try:
            return Case(claim, problem, wrong_answers(self, problem), quick, seed)
        except (DoesNotApply, NoClosedForm, NotDefined, NoTilt):
            return None


@lru_cache(maxsize=64)
def wrong_answers(mutant: Mutant, problem: Problem) -> Replaced:
    """The same object for every claim, so that what one claim solved for it serves the next."""
    return Replaced(problem.exact, mutant.replace(problem, problem.exact))


class _SpreadForError(Case):
    """Standard errors that forgot to divide by the root of the number of samples."""

    used = False

    def sample(self, quantity: str, estimate: Estimate, truth: float | Estimate, **options: Any) -> None:
        self.used |= estimate.stderr > 0
        super().sample(quantity, replace(estimate, stderr=estimate.stderr * estimate.n**0.5), truth, **options)


_PRECISE = {"eq-3.13", "eq-3.32"}  # estimates so precise that even their standard deviation would decide


def trials(claim: Claim, problem: Problem, quick: bool, seed: int) -> list[dict[str, Any]]:
    """Each mutant that concerns the claim on this problem: {"name", "rejected", "by"}, the first row that saw it.

    A quick case is tried first: what it rejects needs no more paths.
    """
    found = []
    if claim.id not in _PRECISE:  # first: it asks for the simulations that the truth has just made
        spread = _SpreadForError(claim, problem, None, quick, seed)
        doubt = claim.first_doubt(spread, [MONTE_CARLO], [VIOLATED, INCONCLUSIVE])
        found += [_trial("standard error without root n", doubt)] if spread.used else []
    for mutant in MUTANTS:
        case = mutant.case(claim, problem, True, seed) if mutant.concerns(claim, problem) else None
        if case is not None:
            doubt = claim.first_doubt(case)
            if doubt is None and not quick:
                doubt = claim.first_doubt(Case(claim, problem, case.answers, False, seed))
            found.append(_trial(mutant.name, doubt))
    return found


def _trial(name: str, doubt: Row | SDEControlError | None) -> dict[str, Any]:
    if doubt is None:
        return {"name": name, "rejected": False, "by": ""}
    by = f"{doubt.rung}: {doubt.quantity}" if isinstance(doubt, Row) else f"{type(doubt).__name__}: {doubt}"
    return {"name": name, "rejected": True, "by": by}


def unless_blind(report: Report) -> Report:
    """The report, inconclusive instead of holding when one of its mutants was not rejected."""
    missed = [trial["name"] for trial in report.mutants if not trial["rejected"]]
    if missed and report.verdict == HOLDS:
        report.verdict, report.reason = INCONCLUSIVE, f"cannot tell the truth from: {'; '.join(missed)}"
    return report


MUTANTS: list[Mutant] = []


def mutant(name: str, always: str = "", affine: str = "") -> Callable[[Replacement], Replacement]:
    """Register a mistake; the claims are ids separated by blanks."""

    def register(replace: Replacement) -> Replacement:
        MUTANTS.append(Mutant(name, frozenset(always.split()), frozenset(affine.split()), replace))
        return replace

    return register


def _needs(condition: bool) -> None:
    if not condition:
        raise DoesNotApply


def _of_another(problem: Problem, reward: Any = None, temperature: float | None = None) -> Any:
    """The answers to a problem that differs in its reward or its temperature."""
    from sdecontrol.problems.base import Problem

    return Problem(problem.process, reward or problem.reward, temperature or problem.temperature).exact


def _static(answers: Any) -> dict[str, Any]:
    return {name: getattr(answers, name) for name in ("log_normalizer", "optimum", "path_kl", "terminal")}


# -------------------------------------------------------------------------------------------------- the control


@mutant("control x 0.9", "prop-3.3 eq-3.13 prop-3.5 prop-3.6 eq-3.27 eq-3.29 prop-3.7")
def _scaled(problem: Problem, e: Any) -> dict[str, Any]:
    return {"control": 0.9 * e.control}


@mutant("sign of the control", "prop-3.3 eq-3.13 prop-3.5 prop-3.6 eq-3.27 eq-3.29 prop-3.7")
def _negated(problem: Problem, e: Any) -> dict[str, Any]:
    return {"control": -e.control}


@mutant("g^2 for g in the control", "prop-3.3 eq-3.13 prop-3.5 prop-3.6 eq-3.27 eq-3.29 prop-3.7")
def _squared_amplitude(problem: Problem, e: Any) -> dict[str, Any]:
    amplitude = problem.process.amplitude
    return {"control": StateControl(lambda t, x: amplitude(t) * e.control(t, x))}


@mutant("temperature forgotten in the control", "prop-3.3 eq-3.13 prop-3.5 prop-3.6 eq-3.27 eq-3.29 prop-3.7")
def _no_temperature(problem: Problem, e: Any) -> dict[str, Any]:
    _needs(abs(problem.temperature - 1) > 0.05)
    return {"control": problem.temperature * e.control}


@mutant("control in reversed time", "prop-3.5 prop-3.6 eq-3.27 eq-3.29")
def _reversed_control(problem: Problem, e: Any) -> dict[str, Any]:
    return {"control": StateControl(lambda t, x: e.control(problem.process.horizon - t, x))}


# ---------------------------------------------------------------------------------------------------- the value


def _value(of: Callable[[float, Tensor], Tensor]) -> dict[str, Any]:
    return {"value": of}


@mutant("value x 0.9", "eq-3.13 prop-3.4 prop-3.5 prop-3.6 eq-3.24 eq-3.29")
def _scaled_value(problem: Problem, e: Any) -> dict[str, Any]:
    return _value(lambda t, x: 0.9 * e.value(t, x))


@mutant("value in reversed time", "prop-3.4 prop-3.5 eq-3.24 eq-3.29")
def _reversed_value(problem: Problem, e: Any) -> dict[str, Any]:
    return _value(lambda t, x: e.value(problem.process.horizon - t, x))


@mutant("value without its constant", "eq-3.13 prop-3.4 prop-3.5 eq-3.24")
def _shifted_value(problem: Problem, e: Any) -> dict[str, Any]:
    return _value(lambda t, x: e.value(t, x) - 0.1 * problem.temperature)


# ---------------------------------------------------------------------------------------------- log C, KL, optimum


@mutant("log C dropped", "lemma-3.1 prop-3.4 prop-3.6 eq-3.32")
def _no_log_c(problem: Problem, e: Any) -> dict[str, Any]:
    _needs(abs(e.log_normalizer) > 0.01)
    return {"log_normalizer": 0.0}


@mutant("sign of log C", "lemma-3.1 prop-3.4 prop-3.6 eq-3.32")
def _negated_log_c(problem: Problem, e: Any) -> dict[str, Any]:
    _needs(abs(e.log_normalizer) > 0.01)
    return {"log_normalizer": -e.log_normalizer}


@mutant("optimum without the temperature", "lemma-3.1")
def _optimum(problem: Problem, e: Any) -> dict[str, Any]:
    _needs(abs(problem.temperature - 1) > 0.05 and abs(e.log_normalizer) > 0.01)
    return {"optimum": e.log_normalizer}


@mutant("KL reversed", "lemma-3.1", "prop-3.3 prop-3.7")
def _reversed_kl(problem: Problem, e: Any) -> dict[str, Any]:
    reverse = kl(e.reference, e.terminal)
    _needs(abs(reverse - e.path_kl) > 1e-3 * e.path_kl)
    return {"path_kl": reverse}


@mutant("KL of the initial law forgotten", "", "prop-3.3")
def _no_initial_kl(problem: Problem, e: Any) -> dict[str, Any]:
    _needs(e.kl_initial > 1e-3 * e.path_kl)
    return {"path_kl": e.energy}


@mutant("KL of the initial law doubled", "", "prop-3.3")
def _double_initial_kl(problem: Problem, e: Any) -> dict[str, Any]:
    _needs(e.kl_initial > 1e-3 * e.path_kl)
    return {"path_kl": e.path_kl + e.kl_initial}


@mutant("energy without its half", "prop-3.3 prop-3.7")
def _double_energy(problem: Problem, e: Any) -> dict[str, Any]:
    return {"energy": 2 * e.energy, "path_kl": e.path_kl + e.energy}


# ------------------------------------------------------------------------------------------------------ the laws


def _prior(problem: Problem) -> Law:
    return problem.process.initial_law(0.0)


@mutant("initial law forgotten", "prop-3.4", "prop-3.3 eq-3.13 prop-3.6 eq-3.32")
def _no_initial(problem: Problem, e: Any) -> dict[str, Any]:
    _needs(problem.process.is_affine and e.kl_initial > 1e-3 or not problem.process.is_affine)
    return {"initial": _prior(problem)}


@mutant("initial law tilted twice", "", "prop-3.3 prop-3.4 eq-3.13 prop-3.6")
def _double_initial(problem: Problem, e: Any) -> dict[str, Any]:
    nu, prior = e.initial, _prior(problem)
    _needs(isinstance(nu, Gaussian) and isinstance(prior, Gaussian) and e.kl_initial > 1e-3)
    one, other = torch.linalg.inv(nu.covariance), torch.linalg.inv(prior.covariance)
    covariance = torch.linalg.inv(2 * one - other)
    _needs(bool(torch.linalg.eigvalsh(covariance)[0] > 0))
    pull = 2 * one @ nu.mean - other @ prior.mean
    return {"initial": Gaussian(covariance @ pull, (covariance + covariance.mT) / 2)}


@mutant("p_ft = p_pre", "lemma-3.1 prop-3.2", "prop-3.6 prop-3.7")
def _no_tilt(problem: Problem, e: Any) -> dict[str, Any]:
    return {"terminal": e.reference}


@mutant("p_ft from the untilted start", "", "lemma-3.1 prop-3.6 prop-3.7")
def _untilted(problem: Problem, e: Any) -> dict[str, Any]:
    _needs(e.kl_initial > 1e-3)
    return {"terminal": e.untilted_terminal}


@mutant("untilted start declared harmless", "", "prop-3.6")
def _harmless(problem: Problem, e: Any) -> dict[str, Any]:
    _needs(e.kl_initial > 1e-3)
    return {"untilted_terminal": e.terminal}


@mutant("p_ft with untilted weights", "lemma-3.1")
def _untilted_weights(problem: Problem, e: Any) -> dict[str, Any]:
    before, after = e.reference, e.terminal
    subspace = isinstance(after, Subspace)
    one, other = (before.latent, after.latent) if subspace else (before, after)
    _needs(isinstance(one, GaussianMixture) and isinstance(other, GaussianMixture))
    law: Law = GaussianMixture(one.weights, other.means, other.covariances)
    return {"terminal": Subspace(after.basis, law, after.offset) if subspace else law}


@mutant("p_pre = p_data", "", "lemma-3.1 prop-3.2 f-divergence")
def _mismatch_forgotten(problem: Problem, e: Any) -> dict[str, Any]:
    data = problem.process.data_law  # type: ignore[attr-defined]
    _needs(kl(data, e.reference) > 1e-4)
    return {"reference": data}


@mutant("p_pre = p_ft", "prop-3.2 f-divergence")
def _swapped(problem: Problem, e: Any) -> dict[str, Any]:
    _needs(not isinstance(e.terminal, TiltedLaw))  # else no route knows the other law
    return {"reference": e.terminal}


@mutant("temperature doubled", "lemma-3.1 prop-3.2")
def _double_temperature(problem: Problem, e: Any) -> dict[str, Any]:
    return _static(_of_another(problem, temperature=2 * problem.temperature))


@mutant("reward minimised", "lemma-3.1 prop-3.2")
def _minimised(problem: Problem, e: Any) -> dict[str, Any]:
    reward = as_quadratic(problem.reward)
    _needs(reward is not None)
    assert reward is not None
    return _static(_of_another(problem, reward=Quadratic(-reward.linear, -reward.curvature, -reward.constant)))


@mutant("marginals in reversed time", "prop-3.6")
def _reversed_marginals(problem: Problem, e: Any) -> dict[str, Any]:
    return {"marginal": lambda t: e.marginal(problem.process.horizon - t)}


@mutant("swap of log and E taken for the value", "eq-3.28")
def _swapped_value(problem: Problem, e: Any) -> dict[str, Any]:
    """E[r|y] lies below v; a value that lies far below it breaks Jensen's inequality."""
    return _value(lambda t, x: e.value(t, x) - 50 * problem.temperature)


@mutant("swap of log and E taken for the control", "", "eq-3.28")
def _swapped_control(problem: Problem, e: Any) -> dict[str, Any]:
    return {"control": 0.9 * e.control}
