"""Doob's h-transform from any value: u = amplitude grad v / temperature, in the three forms that agree as dt -> 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.guidance.base import Guidance
from sdecontrol.rewards import Reward
from sdecontrol.step import StepView

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


class Doob(Guidance):
    """value: what has `control(t, x)` = amplitude grad v / temperature, such as problem.exact or a grid solution."""

    def __init__(self, problem: Problem, value: Any = None):
        super().__init__(problem)
        control = getattr(problem.exact if value is None else value, "control", value)
        check(callable(control), f"a value of type {type(value).__name__}",
              "an object with control(t, x), or such a function")  # fmt: skip
        self._control: Callable[[float, Tensor], Tensor] = control
        self.elementwise = self.elementwise and bool(getattr(control, "elementwise", False))

    def gradient(self, t: float, x: Tensor) -> Tensor:
        """grad v(t, x), (n, *event): the reward's own gradient at the last time, temperature u / amplitude before."""
        if t == self.problem.process.horizon and isinstance(self.reward, Reward):
            return self.reward.gradient(x)
        return self._control(t, x) * (self.temperature / self.problem.process.amplitude(t))


class DoobValue(Doob):
    """u = amplitude(t) grad v(t, x) / temperature: the optimum of the continuous problem, held over the step."""

    continuum = True

    def at(self, t: float, x: Tensor) -> Tensor:
        return self._control(t, x)

    def shift(self, step: StepView) -> Tensor:
        return self._control(step.t, step.x)


class DoobLookahead(Doob):
    """sqrt(dt) u = std' grad v(t_next, mean) / temperature: the chain's own first-order optimum.

    For quadratic values its continuum limit is approached from the chain's best mean shift (derived).
    """

    continuum = True

    def shift(self, step: StepView) -> Tensor:
        return step.from_value(self.gradient(step.t_next, step.mean), self.temperature)


class DoobScore(Doob):
    """The step's mean as if the score were score + grad v(t, x) / temperature: the score of the tilted, noised law."""

    continuum = True

    def shift(self, step: StepView) -> Tensor:
        return step.from_score(self.gradient(step.t, step.x) / self.temperature)


FORMS: dict[str, type[Doob]] = {"lookahead": DoobLookahead, "value": DoobValue, "score": DoobScore}


def doob(problem: Problem, value: Any = None, form: str = "lookahead") -> Doob:
    """The optimal control by a value (default problem.exact): form "lookahead", "value" or "score".

    "value": u* of the continuum at the step's start. "lookahead": grad v at (t_next, mean), what the chain itself wants
    to first order. "score": moves the kernel's mean as if the score were that of the tilted law.
    Raises: BadInput for an unknown form or a value without a control; NoClosedForm where problem.exact has no control.
    Source: Tang 2403.06279, (3.27); CTRL 2406.12120, Lemma 2.
    """
    check(form in FORMS, f"form={form!r}", ", ".join(f'"{name}"' for name in FORMS))
    return FORMS[form](problem, value)
