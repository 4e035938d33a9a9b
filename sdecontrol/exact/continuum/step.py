"""A step reward c 1{n.x > xi}: v/temperature = log sum_i omega_i [1 + (e^{c/temperature} - 1) Phi_i].

The reward takes two values, so C alone gives the mass P of p_pre above the threshold and that of p_ft, pi:

    C = 1 + (e^{c/temperature} - 1) P,  pi = e^{c/temperature} P / C,  KL(Q* || Q) = pi c/temperature - log C

(derived).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from sdecontrol.exact.continuum.flow import DataLaw, Flow, components
from sdecontrol.exact.continuum.level import DataLevel, Level, PosteriorLevel
from sdecontrol.exact.continuum.quadrature import mean_under
from sdecontrol.exact.continuum.score import ScoreExact
from sdecontrol.laws import Dirac, Gaussian, GaussianMixture, Law, TiltedLaw
from sdecontrol.rewards import Step
from sdecontrol.schedules import Schedule


class StepScore(ScoreExact):
    """Value, control and C are closed; the laws under Q* are those under Q with a bounded log-weight."""

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
        a, h = self.schedule.alpha(s), self.schedule.h(s)
        return PosteriorLevel(self.law, self.reward, self.temperature, a, h)

    def marginal(self, t: float) -> Law:
        s = self._noise_level(t)
        law = self.flow.reference(s)
        if isinstance(law, Dirac):
            return law
        return TiltedLaw(law, self.level(s).log_growth, self.log_normalizer, log_bound=max(self.height, 0.0))

    @cached_property
    def path_kl(self) -> float:
        """pi c/temperature - log C; 0 where no mass, or no height, leaves C = 1."""
        c, log_c = self.height, self.log_normalizer
        if c == 0 or log_c == 0:
            return 0.0
        log_p = _log_abs_expm1(log_c) - _log_abs_expm1(c)
        return math.exp(c + log_p - log_c) * c - log_c

    @cached_property
    def kl_initial(self) -> float:
        """E_{nu*} v(0, .)/temperature - log C by quadrature: for Gaussian data, else up to d = 2."""
        if isinstance(self.flow.start, Dirac):
            return 0.0
        start, growth = self._start()
        return mean_under(start, growth, log_weight=growth) - self.log_normalizer

    @cached_property
    def objective_untilted(self) -> float:
        return self.temperature * mean_under(*self._start())

    def _start(self) -> tuple[Law, Callable[[Tensor], Tensor]]:
        """The start and v(0, .)/temperature; for Gaussian data those of n . E[Y_T | Y_0], all that v sees."""
        start = self.flow.start
        if len(components(self.law)) > 1 or not isinstance(start, (Gaussian, GaussianMixture)):
            return start, self.level(self.horizon).log_growth
        n, end = self.step.direction, self.horizon
        posterior = self.law.posterior(self.schedule.alpha(end), self.schedule.h(end))
        offset, gain, covariance = posterior.offsets[0], posterior.gains[0], posterior.covariances[0]
        along = start.affine((n @ gain)[None], (n @ offset)[None])
        step, variance = Step([1.0], self.step.threshold, self.step.height), (n @ covariance @ n)[None, None]
        return along, lambda y: step.log_expectation(y, variance, self.temperature)


def _log_abs_expm1(x: float) -> float:
    """log |e^x - 1|."""
    return x + math.log(-math.expm1(-x)) if x > 0 else math.log(-math.expm1(x))
