"""Guidance by the posterior mean x0_hat: what replaces E[e^{r(X_0)/temperature} | x], and by how much it misses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdecontrol.errors import NotDefined, check
from sdecontrol.guidance.base import ReverseGuidance, check_gradient, label_of
from sdecontrol.rewards import Quadratic, Reward
from sdecontrol.step import StepView

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

LARGEST_RANK = 64  # pullbacks of one step


class PlugIn(ReverseGuidance):
    """v(t, x) replaced by r(x0_hat(x)): the posterior taken for a point."""

    def shift(self, step: StepView) -> Tensor:
        return step.from_value(step.reward_gradient(self.reward), self.temperature)


def plug_in(problem: Problem) -> PlugIn:
    """sqrt(dt) u = std' grad_x r(x0_hat(x)) / temperature.

    Exact for linear rewards and Gaussian data; for a concave quadratic it is too strong by 1 + k P / temperature, P the
    posterior variance (derived). Raises: NotDefined without x0_hat, or for a step reward.
    Source: the plug-in estimate of reward guidance; compare Tang 2403.06279, (3.28).
    """
    check_gradient(problem)
    return PlugIn(problem)


class DPS(ReverseGuidance):
    """The step's mean moved by scale grad_x of r(x0_hat), of the reward itself (the squared residual of a label)."""

    def __init__(self, problem: Problem, scale: float):
        super().__init__(problem)
        check(abs(scale) < float("inf"), f"scale = {scale}", "a finite number")
        self.scale = float(scale)

    def shift(self, step: StepView) -> Tensor:
        return step.from_mean(self.scale * step.reward_gradient(self.reward))


class NormDPS(DPS):
    """The step's mean moved by -scale grad_x |target - direction . x0_hat|, one residual a sample."""

    def __init__(self, problem: Problem, scale: float):
        super().__init__(problem, scale)
        self.label = label_of(problem, "DPS with the norm")

    def shift(self, step: StepView) -> Tensor:
        sign = torch.sign(self.label.residual(step.x0_hat))
        slope = step.pullback(self.label.direction.to(step.x).expand_as(step.x))
        return step.from_mean(self.scale * sign[:, None] * slope)


def dps(problem: Problem, squared: bool = True, scale: float = 1.0) -> DPS:
    """Diffusion posterior sampling: the mean is moved by a gradient through x0_hat, whatever the step's variance.

    squared: scale grad r(x0_hat); else -scale grad |residual| of a GaussianLabel, the published form, per sample (the
    published code takes the norm over the batch, which ties the samples together).
    Raises: NotDefined without x0_hat, for a step reward, or for the norm of a reward that is no label.
    Source: DPS (2209.14687), Algorithm 1; no scale makes it exact (derived).
    """
    check_gradient(problem)
    return (DPS if squared else NormDPS)(problem, scale)


class PiGDM(ReverseGuidance):
    """Score + grad_x log E e^{r/temperature} under N(x0_hat, r^2 I), r^2 = h / (alpha^2 + h)."""

    def __init__(self, problem: Problem, reward: Reward):
        super().__init__(problem)
        self.active = active = reward.active()  # an isotropic law is one in these directions alone
        self.on_active = reward if active is None else reward.restrict(active, torch.zeros_like(active[:, 0]))

    def shift(self, step: StepView) -> Tensor:
        a, h = self.level(step)
        with torch.enable_grad():
            centre = step.x0_hat.detach().double().requires_grad_()
            active = centre if self.active is None else centre @ self.active
            covariance = torch.eye(active.shape[1], dtype=torch.float64) * (h / (a * a + h))
            log_h = self.on_active.log_expectation(active, covariance, self.temperature)
            slope = torch.autograd.grad(log_h.sum(), centre)[0]
        return step.from_score(step.pullback(slope.to(step.x)))


def pigdm(problem: Problem) -> PiGDM:
    """Pseudoinverse guidance: the posterior of x0 taken for N(x0_hat, r^2 I), the one of unit Gaussian data.

    Raises: NotDefined without x0_hat, or for a reward without Gaussian exponential moments.
    Source: PiGDM (Song et al. 2023), its r_t^2 for VP; for every (alpha, h) and every reward with closed Gaussian
    exponential moments: derived.
    """
    if not isinstance(problem.reward, Reward):
        raise NotDefined("PiGDM needs E e^{r/temperature} under a Gaussian; use sc.Quadratic, sc.Step or plug_in")
    return PiGDM(problem, problem.reward)


class ExactVariance(ReverseGuidance):
    """The posterior of x0 taken for N(x0_hat, P) with its exact covariance P = (h / alpha) grad x0_hat (Tweedie)."""

    def __init__(self, problem: Problem, directions: Tensor, weights: Tensor):
        super().__init__(problem)
        self.directions, self.weights = directions, weights  # curvature = sum_i weights_i directions_i directions_i'

    def shift(self, step: StepView) -> Tensor:
        a, h = self.level(step)
        x0 = step.x0_hat
        slope = self.reward.gradient(x0)  # type: ignore[attr-defined]
        pulled = step.pullback(slope)
        if len(self.weights):
            pulled = pulled - self._shrinkage(step, pulled, h / a)
        return step.from_score(pulled / self.temperature)

    def _shrinkage(self, step: StepView, pulled: Tensor, spread: float) -> Tensor:
        """J' V (temperature / weights + V' P V)^{-1} V' P w with P = spread J, for w the gradient at x0_hat."""
        directions = self.directions.to(step.x)
        images = torch.stack([step.pullback(v.expand_as(step.x)) for v in directions])  # J' v_i: (q, n, d)
        inner = spread * torch.einsum("qnd,pd->npq", images, directions)
        inner = (inner + inner.mT) / 2 + torch.diag(self.temperature / self.weights.to(step.x))
        right = spread * pulled @ directions.mT
        return torch.einsum("nq,qnd->nd", torch.linalg.solve(inner, right[..., None])[..., 0], images)


def exact_variance(problem: Problem) -> ExactVariance:
    """grad_x of log E e^{r/temperature} with the posterior's own covariance, by one pullback more a curved direction.

    With m = x0_hat, w = grad r(m) and curvature K: score + J' (I + K P / temperature)^{-1} w / temperature. Exact for
    Gaussian data; else the posterior's third moments are what is missing. q curved directions cost q + 1 pullbacks.
    Raises: NotDefined without x0_hat, for a reward that is not quadratic, or above 64 curved directions.
    Source: derived (Tweedie's second-order identity, Woodbury's formula).
    """
    reward = problem.reward
    if not isinstance(reward, Quadratic):
        raise NotDefined(f"the exact variance is for quadratic rewards; saw {type(reward).__name__}. Use plug_in.")
    weights, directions = reward.curved()
    if (rank := len(weights)) > LARGEST_RANK:
        raise NotDefined(f"a curvature of rank {rank} costs {rank + 1} pullbacks a step; wanted at most {LARGEST_RANK}")
    return ExactVariance(problem, directions, weights)


__all__ = ["DPS", "ExactVariance", "NormDPS", "PiGDM", "PlugIn", "dps", "exact_variance", "pigdm", "plug_in"]
