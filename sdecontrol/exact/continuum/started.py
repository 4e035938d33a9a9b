"""A mixture data law started from a Gaussian: what is not closed is integrated over the start by quadrature.

    C = int p_noise sum_i omega_i E_i,    Q_t = varrho_t p_s,    varrho_t(x) = E[p_noise(Z)/p_T(Z)],
    Z ~ N((a_T/a_s) x, q) the noised point,    Q*_t = e^{v(t, .)/temperature} varrho_t p_s / C

(derived). One and two dimensions; the error of log C is that of the rule, stated.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from sdecontrol.exact.continuum.flow import DataLaw, Function
from sdecontrol.exact.continuum.quadrature import (
    LARGEST_DIMENSION,
    Integral,
    Piece,
    integrate,
    log_integrals,
    mean_under,
    piece_at,
)
from sdecontrol.exact.continuum.score import ScoreExact
from sdecontrol.exact.continuum.step import StepScore
from sdecontrol.laws import Gaussian, GaussianMixture, Law, Posterior, TiltedLaw
from sdecontrol.noise import Block
from sdecontrol.rewards import Step
from sdecontrol.schedules import Schedule

ADVICE = 'pass initial="marginal" to the process, then C and every law are closed'
_ROWS = 1024  # points whose varrho is computed at once
_NEWTON_STEPS = 8


class StartedLaw(TiltedLaw):
    """A tilted law that is drawn by running: a draw of the start, then of the exact transition from it."""

    def __init__(
        self, base: Law, log_weight: Function, log_normalizer: float, start: Law, transition: Posterior
    ):
        super().__init__(base, log_weight, log_normalizer)
        self.start, self.transition = start, transition

    def draw(self, block: Block) -> Tensor:
        return self.transition.draw(self.start.draw(block), block)


class StartedScore(ScoreExact):
    """What the two kinds of reward share."""

    law: GaussianMixture
    start: Gaussian

    @abstractmethod
    def pieces(self, f: Function) -> list[Piece]:
        """The terms of int p_noise e^{v(0, .)/temperature} f."""

    def _growth(self, y: Tensor) -> Tensor:
        """v(0, y) / temperature."""
        return self.level(self.horizon).log_growth(y)

    @cached_property
    def _integral(self) -> Integral:
        """C and the mean of v(0, .)/temperature under nu*."""
        self._check_dimension("C")
        return integrate(self.pieces(self._growth))

    def _check_dimension(self, what: str) -> None:
        if self.dim > LARGEST_DIMENSION:
            raise self._no(what)

    @property
    def log_normalizer(self) -> float:
        return self._integral.log_total

    @property
    def log_normalizer_error(self) -> float:
        """The difference between the last two quadrature rules for log C."""
        return self._integral.log_total_error

    @property
    def kl_initial(self) -> float:
        return self._integral.mean - self.log_normalizer

    @cached_property
    def objective_untilted(self) -> float:
        return self.temperature * mean_under(self.start, self._growth)

    @cached_property
    def reference(self) -> Law:
        return self._uncontrolled(0.0)

    @cached_property
    def initial(self) -> Law:
        return TiltedLaw(self.start, self._growth, self.log_normalizer)

    def marginal(self, t: float) -> Law:
        """Q*_t = e^{v(t, .)/temperature} Q_t / C."""
        self._check_dimension("the law of Y_t under the optimum")
        s = self._noise_level(t)
        return self.initial if s == self.horizon else self._tilted(s)

    @abstractmethod
    def _tilted(self, s: float) -> Law:
        """Q*_t at a noise level s below the horizon."""

    def _noised(self, s: float) -> GaussianMixture:
        return self.law.noised(self.schedule.alpha(s), self.schedule.h(s))

    def _transition(self, s: float) -> Posterior:
        """Y_t given Y_0, without control."""
        ratio, q = self.schedule.ratio(self.horizon, s), self.schedule.transition_variance(self.horizon, s)
        return self._noised(s).posterior(ratio, q)

    def _uncontrolled(self, s: float) -> Law:
        """Q_t = varrho_t p_s."""
        return StartedLaw(self._noised(s), self._log_varrho(s), 0.0, self.start, self._transition(s))

    def _log_varrho(self, s: float) -> Function:
        """log varrho_t as a function of x (n, d), by quadrature over Z."""
        self._check_dimension("the law of Y_t")
        ratio = self.schedule.ratio(self.horizon, s)
        noising = Gaussian([0.0] * self.dim, self.schedule.transition_variance(self.horizon, s))
        ratios = StartRatio(self.start, self._noised(self.horizon), noising)
        return lambda x: torch.cat([ratios.log_mean(ratio * part.double()) for part in x.split(_ROWS)])


class StartRatio:
    """E p_noise(Z)/p_T(Z) for Z = centre + noising: Newton finds the integrand, quadrature sums it."""

    def __init__(self, start: Gaussian, noised: GaussianMixture, noising: Gaussian):
        self.start, self.noised, self.noising = start, noised, noising
        self._precisions = torch.linalg.inv(noised.covariances)
        self._outer = torch.linalg.inv(start.covariance) + torch.linalg.inv(noising.covariance)

    def _log_integrand(self, y: Tensor, centre: Tensor) -> Tensor:
        """log of the integrand at y (n, m, d) for centres (n, d): (n, m)."""
        flat, shift = y.flatten(0, 1), (y - centre[:, None]).flatten(0, 1)
        log_terms = self.start.log_prob(flat) - self.noised.log_prob(flat) + self.noising.log_prob(shift)
        return log_terms.view(y.shape[:2])

    def _curvature(self, y: Tensor) -> Tensor:
        """(n, d, d), positive as p_T is wider than the noising; exact where one component of p_T prevails."""
        omega = self.noised.log_responsibilities(y).exp()
        return self._outer - torch.einsum("nk,kij->nij", omega, self._precisions)

    def log_mean(self, centre: Tensor) -> Tensor:
        """(n, d) -> (n,)."""
        y = centre
        for _ in range(_NEWTON_STEPS):
            slope = self.start.score(y) - self.noised.score(y) + self.noising.score(y - centre)
            y = y + torch.linalg.solve(self._curvature(y), slope)
        roots = torch.linalg.cholesky(torch.linalg.inv(self._curvature(y)))
        sizes = self.start.log_prob(y).abs() + self.noised.log_prob(y).abs()
        return log_integrals(y, roots, lambda nodes: self._log_integrand(nodes, centre), sizes)


class StartedStep(StartedScore, StepScore):
    """A step reward: bounded, so the start itself says where to look."""

    def __init__(self, law: DataLaw, schedule: Schedule, reward: Step, temperature: float, start: Gaussian):
        super().__init__(law, schedule, reward, temperature, None, ADVICE)
        self.start = start

    def _tilted(self, s: float) -> Law:
        log_bound = max(self.height, 0.0)
        return TiltedLaw(self._uncontrolled(s), self.level(s).log_growth, self.log_normalizer, log_bound)

    def pieces(self, f: Function) -> list[Piece]:
        return [piece_at(self.start, lambda y: self.start.log_prob(y) + self._growth(y), f)]
