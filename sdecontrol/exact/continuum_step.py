"""A step reward on a Gaussian or mixture data law: v = temperature log sum_i omega_i [1 + (e^{c/temperature}
- 1) Phi_i].

The reward takes two values, so C alone gives the mass P of p_pre above the threshold, C = 1 +
(e^{c/temperature} - 1) P, that of p_ft, pi = e^{c/temperature} P / C, and KL(Q* || Q) = pi c/temperature -
log C (theory 1.5; derived).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from sdecontrol.exact.continuum_flow import DataLaw, Flow, components
from sdecontrol.exact.continuum_level import DataLevel, Level, PosteriorLevel
from sdecontrol.exact.continuum_quadrature import mean_under
from sdecontrol.exact.continuum_score import ScoreExact
from sdecontrol.laws import Dirac, Gaussian, GaussianMixture, Law, TiltedLaw
from sdecontrol.rewards import Step
from sdecontrol.schedules import Schedule


class StepScore(ScoreExact):
    """Value, control and C closed; the laws under Q* are the closed laws under Q with a bounded log-weight."""

    def __init__(
        self,
        law: DataLaw,
        schedule: Schedule,
        reward: Step,
        temperature: float,
        flow: Flow | None,
        reason: str = "",
    ):
        super().__init__(law, schedule, reward, temperature, flow, reason)
        self.step, self.height = reward, reward.height / temperature

    def _level(self, s: float) -> Level:
        if s == 0:
            return DataLevel(self.reward, self.temperature)
        return PosteriorLevel(
            self.law, self.reward, self.temperature, self.schedule.alpha(s), self.schedule.h(s)
        )

    def marginal(self, t: float) -> Law:
        s = self._noise_level(t)
        law = self.flow.reference(s)
        if isinstance(law, Dirac):
            return law
        return TiltedLaw(law, self.level(s).log_growth, self.log_normalizer, log_bound=max(self.height, 0.0))

    @cached_property
    def mass_above(self) -> float:
        """pi = p_ft(direction . x > threshold)."""
        if self.height == 0:
            raise self._no("the mass above a threshold that is not rewarded")
        log_p = _log_abs_expm1(self.log_normalizer) - _log_abs_expm1(self.height)
        return math.exp(self.height + log_p - self.log_normalizer)

    @cached_property
    def path_kl(self) -> float:
        return self.mass_above * self.height - self.log_normalizer if self.height else 0.0

    @cached_property
    def kl_initial(self) -> float:
        """E_{nu*} v(0, .)/temperature - log C by quadrature: along the direction for a Gaussian, else up to d
        = 2.
        """
        if isinstance(self.flow.start, Dirac):
            return 0.0
        start, growth = self._start()
        return mean_under(start, growth, log_weight=growth) - self.log_normalizer

    @cached_property
    def objective_untilted(self) -> float:
        return self.temperature * mean_under(*self._start())

    def _start(self) -> tuple[Law, Callable[[Tensor], Tensor]]:
        """The start and v(0, .)/temperature; for a Gaussian data law those of direction . E[Y_T | Y_0], on
        which v depends.
        """
        start = self.flow.start
        if len(components(self.law)) > 1 or not isinstance(start, (Gaussian, GaussianMixture)):
            return start, self.level(self.horizon).log_growth
        n, posterior = (
            self.step.direction,
            self.law.posterior(self.schedule.alpha(self.horizon), self.schedule.h(self.horizon)),
        )
        offset, gain, covariance = posterior.offsets[0], posterior.gains[0], posterior.covariances[0]
        along = start.affine((n @ gain)[None], (n @ offset)[None])
        step, variance = Step([1.0], self.step.threshold, self.step.height), (n @ covariance @ n)[None, None]
        return along, lambda y: step.log_expectation(y, variance, self.temperature)


def _log_abs_expm1(x: float) -> float:
    """log |e^x - 1|."""
    return x + math.log(-math.expm1(-x)) if x > 0 else math.log(-math.expm1(x))
