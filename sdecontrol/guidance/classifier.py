"""Classifier guidance: the score moved by the gradient of a time-dependent log p(y | x_s)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdecontrol.errors import NotDefined, check
from sdecontrol.guidance.base import Guidance
from sdecontrol.processes import ReverseProcess
from sdecontrol.step import StepView

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

LogClassifier = Callable[[Tensor, float], Tensor]  # (x (n, *event), s) -> log p(y | x_s), (n,)


class ClassifierGuidance(Guidance):
    """Score + scale grad_x log p(y | x_s)."""

    def __init__(self, problem: Problem, classifier: LogClassifier, scale: float):
        super().__init__(problem)
        self.classifier, self.scale, self.elementwise = classifier, float(scale), False

    def shift(self, step: StepView) -> Tensor:
        s = self.problem.process.noise_level(step.t)
        with torch.enable_grad():
            x = step.x.detach().requires_grad_()
            log_p = self.classifier(x, s)
            if log_p.shape != (len(x),):
                check(False, f"a classifier output of shape {tuple(log_p.shape)}",
                      f"({len(x)},): log p(y | x) of the wanted label")  # fmt: skip
            slope = torch.autograd.grad(log_p.sum(), x)[0]
        return step.from_score(self.scale * slope)


def classifier(problem: Problem, classifier: LogClassifier, scale: float = 1.0) -> ClassifierGuidance:
    """Guidance by a classifier that knows the noise level: (x, s) -> log p(y | x_s), differentiable in x.

    With the exact p(y | x_s) = E[p(y | X_0) | x_s] and scale 1 it is Doob's h-transform in its score form. Any other
    scale gamma moves by gamma grad log E[p], not by grad log E[p^gamma], and does not sample p(y | x)^gamma p_pre.
    Raises: NotDefined for a process that is not a ReverseProcess; BadInput for a scale that is not finite.
    Source: classifier guidance (2105.05233); CTRL 2406.12120, Lemma 1 at scale 1, the caution derived from its Lemma 2.
    """
    if not isinstance(problem.process, ReverseProcess):
        raise NotDefined("classifier guidance moves a score; a general diffusion has none. Use sc.guidance.doob.")
    check(
        callable(classifier), f"a classifier of type {type(classifier).__name__}", "a function (x, s) -> log p(y | x_s)"
    )
    check(abs(scale) < float("inf"), f"scale = {scale}", "a finite number")
    return ClassifierGuidance(problem, classifier, scale)
