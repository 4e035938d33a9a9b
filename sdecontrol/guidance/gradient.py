"""Gradient guidance by a label: the naive law, and G_loss with its two weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.guidance.base import Label, ReverseGuidance, dot, label_of
from sdecontrol.step import StepView

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

Weight = Callable[[Label, float, float, Tensor], Tensor]


class Naive(ReverseGuidance):
    """Score + beta (y - g . x0_hat) g, beta = alpha / (sigma^2 + h |g|^2): no Jacobian, so it leaves a subspace."""

    requires_jacobian = False

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self.label = label_of(problem, "naive gradient guidance")

    def shift(self, step: StepView) -> Tensor:
        (a, h), g = self.level(step), self.label.direction.to(step.x)
        beta = a / (self.label.variance + h * float(g @ g))
        return step.from_score(beta * self.label.residual(step.x0_hat)[:, None] * g)


def naive(problem: Problem) -> Naive:
    """Gradient guidance along g itself, right for data N(mean, I) under a variance-preserving schedule only.

    Raises: NotDefined without x0_hat or for a reward that is not a GaussianLabel.
    Source: Guo et al. 2404.14743, the naive gradient guidance; its weight as in the authors' code.
    """
    return Naive(problem)


def code_beta(label: Label, a: float, h: float, slope: Tensor) -> Tensor:
    """(alpha^2 / 2) / (alpha^2 sigma^2 + h |grad_x(g . x0_hat)|^2): exact where the data covariance is a projector."""
    return (a * a / 2) / (a * a * label.variance + h * dot(slope, slope))


def exact_beta(label: Label, a: float, h: float, slope: Tensor) -> Tensor:
    """1 / (2 sigma_y^2), sigma_y^2 = sigma^2 + (h / alpha) g . grad_x(g . x0_hat): exact for Gaussian data."""
    return 0.5 / (label.variance + (h / a) * dot(slope, label.direction.to(slope)))


class GLoss(ReverseGuidance):
    """Score - beta grad_x (y - g . x0_hat)^2, in the span of the data for an exact score on a subspace."""

    def __init__(self, problem: Problem, beta: Weight):
        super().__init__(problem)
        self.label, self.beta = label_of(problem, "G_loss"), beta

    def shift(self, step: StepView) -> Tensor:
        a, h = self.level(step)
        slope = step.pullback(self.label.direction.to(step.x).expand_as(step.x))
        weight = 2 * self.beta(self.label, a, h, slope) * self.label.residual(step.x0_hat)
        return step.from_score(torch.mul(slope, weight[:, None]))


BETAS: dict[str, Weight] = {"code": code_beta, "exact": exact_beta}


def g_loss(problem: Problem, beta: str = "code") -> GLoss:
    """Gradient guidance through the look-ahead loss, with the weight of the authors' code or the exact one.

    Raises: NotDefined without x0_hat or for a reward that is not a GaussianLabel; BadInput for an unknown weight.
    Source: Guo et al. 2404.14743, Definition 1 and Theorem 1; beta "code" as in the authors' code, "exact" derived.
    """
    check(beta in BETAS, f"beta={beta!r}", ", ".join(f'"{name}"' for name in BETAS))
    return GLoss(problem, BETAS[beta])
