"""Classifier-free guidance: the score moved along the difference of a conditional and an unconditional model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.errors import NotDefined, check
from sdecontrol.guidance.base import Guidance
from sdecontrol.models import ScoreModel, as_score_model
from sdecontrol.processes import ReverseProcess
from sdecontrol.step import StepView

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


class ClassifierFree(Guidance):
    """Score + strength (score of `to` - score of `of`)."""

    def __init__(self, problem: Problem, to: ScoreModel, of: ScoreModel | None, strength: float):
        super().__init__(problem)
        self.to, self.of, self.strength = to, of, float(strength)
        self.elementwise = problem.process.elementwise and to.elementwise and (of is None or of.elementwise)

    def shift(self, step: StepView) -> Tensor:
        s = self.problem.process.noise_level(step.t)
        start = step.score if self.of is None else self.of.score(step.x, s)[0]
        return step.from_score(torch.sub(self.to.score(step.x, s)[0], start).mul(self.strength))


def cfg(problem: Problem, conditional: Any, strength: float = 1.0, unconditional: Any = None) -> ClassifierFree:
    """score + strength (score(conditional) - score(unconditional)), the problem's own score by default.

    conditional, unconditional: a law (exact score), sc.PerturbedScore, or a wrapped network, on the problem's schedule.
    Strength 1 samples the conditional; another strength w moves along w grad log p(y | x_s), which is not the score of
    p(y | x)^w p_pre noised: at each level another law is aimed at. Two strengths are a sum of two of these controls:
    cfg(problem, c, w_1) + cfg(problem, cy, w_2, unconditional=c).
    Raises: NotDefined for a process that is not a ReverseProcess; BadInput for an unknown model or a strength that is
    not finite. Source: 2207.12598; two strengths: CTRL 2406.12120, appendix B.
    """
    process = problem.process
    if not isinstance(process, ReverseProcess):
        raise NotDefined("classifier-free guidance moves a score; a general diffusion has none. Use sc.guidance.doob.")
    check(abs(strength) < float("inf"), f"strength = {strength}", "a finite number")
    to = as_score_model(conditional, process.schedule)
    of = None if unconditional is None else as_score_model(unconditional, process.schedule)
    return ClassifierFree(problem, to, of, strength)
