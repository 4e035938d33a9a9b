"""Mistakes that people make with labels and strengths, put in place of the answers to the label problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sdecontrol.claims.mutants import Replaced, mutant
from sdecontrol.claims.routes.labels import Subject, labels_of
from sdecontrol.controls import StateControl
from sdecontrol.errors import NoClosedForm

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

Wrong = Callable[[Subject, Any, float], Any]  # (labels, label, strength) -> answers


def _mistake(name: str, claims: str) -> Callable[[Wrong], Wrong]:
    """Register a mistake in the answers to every label problem of the named claims."""

    def register(wrong: Wrong) -> Wrong:
        def replace(problem: Problem, answers: Any) -> dict[str, Any]:
            subject = labels_of(problem)
            return {"conditional": lambda label, strength: wrong(subject, label, strength)}

        mutant(name, claims)(replace)
        return wrong

    return register


@_mistake("label: drift scaled by the strength", "ctrl-lemma-2 ctrl-lemma-4")
def _scaled_drift(subject: Subject, label: Any, strength: float) -> Any:
    one = subject.exact(label, 1.0)
    wrong = {"control": strength * one.control, "value": lambda t, x: strength * one.value(t, x)}
    return Replaced(subject.exact(label, strength), wrong)


@_mistake("label: strength forgotten", "ctrl-lemma-2 ctrl-lemma-3 ctrl-lemma-4 ctrl-theorem-1")
def _no_strength(subject: Subject, label: Any, strength: float) -> Any:
    return subject.exact(label, 1.0)


@_mistake("label: another label", "ctrl-lemma-1 ctrl-lemma-2 ctrl-lemma-3 ctrl-lemma-4 ctrl-theorem-1")
def _swapped(subject: Subject, label: Any, strength: float) -> Any:
    return subject.exact(label.other, strength)


@_mistake("label: amplitude squared in the drift", "ctrl-lemma-1 ctrl-lemma-2")
def _squared_amplitude(subject: Subject, label: Any, strength: float) -> Any:
    exact, amplitude = subject.exact(label, strength), subject.problem.process.amplitude
    return Replaced(exact, {"control": StateControl(lambda t, x: amplitude(t) * exact.control(t, x))})


@_mistake("label: normaliser dropped", "ctrl-lemma-1 ctrl-lemma-3 ctrl-theorem-1")
def _no_normaliser(subject: Subject, label: Any, strength: float) -> Any:
    return Replaced(subject.exact(label, strength), {"log_normalizer": 0.0})


@_mistake("label: KL without its half", "ctrl-lemma-3")
def _double_energy(subject: Subject, label: Any, strength: float) -> Any:
    exact = subject.exact(label, strength)
    try:
        start = exact.kl_initial
    except NoClosedForm:
        return Replaced(exact, {"path_kl": 2 * exact.path_kl})
    return Replaced(exact, {"energy": 2 * exact.energy, "path_kl": 2 * exact.path_kl - start})


@_mistake("label: p_gamma = p_pre", "ctrl-theorem-1")
def _no_label(subject: Subject, label: Any, strength: float) -> Any:
    exact = subject.exact(label, strength)
    return Replaced(exact, {"terminal": exact.reference})


@_mistake("label: sign of the drift", "ctrl-lemma-1 ctrl-lemma-2")
def _negated(subject: Subject, label: Any, strength: float) -> Any:
    exact = subject.exact(label, strength)
    return Replaced(exact, {"control": -1.0 * exact.control})
