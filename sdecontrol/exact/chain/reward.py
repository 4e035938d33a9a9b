"""Affine chains with rewards that are not quadratic: value, normaliser and laws where E exp(r/T) is known."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdecontrol.exact.chain.base import ChainAnswers
from sdecontrol.exact.pushforward import gaussian_law
from sdecontrol.laws import Law, TiltedLaw
from sdecontrol.laws.divergences import kl


class ClosedRewardChain(ChainAnswers):
    """An affine chain with any reward whose exponential moment is known under Gaussians, and no running reward.

    x_K given x_k = x is N(A_k x + a_k, C_k), so v(t_k, x) = T log E exp(r/T) of that Gaussian: closed for Step, a
    quadrature (1e-11) for any reward on the line, NoClosedForm otherwise. The best mean shift stays open.
    """

    reason = "the reward is not quadratic, and there is a running reward or no closed exponential moment"

    @property
    def _reward(self) -> Any:
        if self.problem.running_reward is not None:
            raise self._no("the optimum")
        return self.problem.reward

    def value(self, t: float, x: Tensor) -> Tensor:
        reward, k = self._reward, self._index(t)
        means, covariance = x.to(torch.float64), torch.zeros(self.chain.dim, self.chain.dim, dtype=torch.float64)
        for step in self.chain.steps[k:]:
            means = means @ step.matrix.mT + step.offset
            covariance = step.moments(step.offset, covariance)[1]
        if not bool(covariance.any()):
            return reward(means)
        logs = [gaussian_law(mean, covariance).log_expectation(reward, self.temperature) for mean in means]
        return self.temperature * torch.tensor(logs, dtype=torch.float64)

    @cached_property
    def log_normalizer(self) -> float:
        return float(self.reference.log_expectation(self._reward, self.temperature))

    @cached_property
    def initial(self) -> Law:
        return TiltedLaw(
            self.chain.initial, lambda y: self.value(self.chain.times[0], y) / self.temperature, self.log_normalizer
        )

    @cached_property
    def terminal(self) -> Law:
        return self.reference.tilt(self._reward, self.temperature)

    @cached_property
    def path_kl(self) -> float:
        """KL(P* || P) = KL(terminal || reference): the density ratio depends on x_K alone."""
        return float(kl(self.terminal, self.reference))
