"""Gradient guidance by a label: the naive law, and G_loss with its two weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from sdecontrol.errors import NotDefined, check
from sdecontrol.guidance.base import Label, ReverseGuidance, check_gradient, dot, gradient_at, label_of, rows
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

    def __init__(self, problem: Problem, beta: Weight, label: Label):
        super().__init__(problem)
        self.label, self.beta = label, beta

    def shift(self, step: StepView) -> Tensor:
        a, h = self.level(step)
        slope = step.pullback(self.label.direction.to(step.x).expand_as(step.x))
        weight = 2 * self.beta(self.label, a, h, slope) * self.label.residual(step.x0_hat)
        return step.from_score(rows(weight, slope) * slope)


BETAS: dict[str, Weight] = {"code": code_beta, "exact": exact_beta}


def g_loss(problem: Problem, beta: str = "code") -> GLoss:
    """Gradient guidance through the look-ahead loss, with the weight of the authors' code or the exact one.

    Raises: NotDefined without x0_hat or for a reward that is not a GaussianLabel; BadInput for an unknown weight.
    Source: Guo et al. 2404.14743, Definition 1 and Theorem 1; beta "code" as in the authors' code, "exact" derived.
    """
    return GLoss(problem, _weight(beta), label_of(problem, "G_loss"))


def surrogate_loss(problem: Problem, samples: Tensor, beta: str = "code") -> GLoss:
    """G_loss for any differentiable reward by its linear surrogate: one round of gradient-guided optimisation.

    samples: (n, *event), draws of the reference. g = grad r at their mean; the label g . x + noise = y has the variance
    s of g . x over the samples as that of its noise, and y = mean of g . x + 2 s / temperature: conditioning Gaussian
    data with these moments on it moves their mean by S g / temperature, as the tilt by g . x / temperature does.
    Raises: NotDefined without x0_hat, for a reward without gradient, or where that is zero; BadInput for samples
    of another shape.
    Source: Guo et al. 2404.14743, Algorithm 1, for the surrogate and G_loss; variance and target derived.
    """
    check_gradient(problem)
    event = tuple(problem.process.event_shape)
    check(len(samples) > 1 and tuple(samples.shape[1:]) == event, f"samples of shape {tuple(samples.shape)}",
          f"(n, {', '.join(map(str, event))}), n >= 2")  # fmt: skip
    g = gradient_at(problem.reward, samples.mean(0))
    along = Label(g, 0.0, 0.0).along(samples).double()
    spread = float(along.var())
    if spread <= 0:
        raise NotDefined("the reward has no gradient at the mean of the samples, so no linear surrogate")
    label = Label(g, float(along.mean()) + 2 * spread / problem.temperature, spread)
    return GLoss(problem, _weight(beta), label)


def _weight(beta: str) -> Weight:
    check(beta in BETAS, f"beta={beta!r}", ", ".join(f'"{name}"' for name in BETAS))
    return BETAS[beta]
