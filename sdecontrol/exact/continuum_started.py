"""A mixture data law started from a Gaussian that is not the noised data law: everything over the start by quadrature.

    C = int p_noise sum_i omega_i E_i,    Q_t = varrho_t p_s,    varrho_t(x) = E[p_noise(Z)/p_T(Z)],
    Z ~ N((a_T/a_s) x, q) the noised point,    Q*_t = e^{v(t, .)/temperature} varrho_t p_s / C

(theory 1.1 item 5; derived). One and two dimensions; the error of log C is that of the rule, stated.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from scipy.optimize import brentq
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NoTilt
from sdecontrol.exact.continuum_flow import DataLaw
from sdecontrol.exact.continuum_level import QuadraticLevel, about
from sdecontrol.exact.continuum_quadrature import (
    LARGEST_DIMENSION,
    Integral,
    Piece,
    box,
    integrate,
    mean_under,
    piece_at,
)
from sdecontrol.exact.continuum_score import QuadraticScore, ScoreExact
from sdecontrol.exact.continuum_step import StepScore
from sdecontrol.exact.quadratic import LogQuadratic, covariance_root, symmetric
from sdecontrol.laws import Gaussian, Law, TiltedLaw
from sdecontrol.rewards import Quadratic, Step
from sdecontrol.schedules import Schedule

_ADVICE = 'pass initial="marginal" to the process, then C and every law are closed'
_CHUNK = 2**18


class StartedScore(ScoreExact):
    """What the two kinds of reward share, given the pieces of the integral of p_noise e^{v(0, .)/temperature} f."""

    start: Gaussian

    @abstractmethod
    def pieces(self, f: Callable[[Tensor], Tensor]) -> list[Piece]: ...

    def _growth(self, y: Tensor) -> Tensor:
        """v(0, y) / temperature."""
        return self.level(self.horizon).log_growth(y)

    @cached_property
    def _integral(self) -> Integral:
        """C and the mean of v(0, .)/temperature under nu*."""
        return integrate(self.pieces(self._growth))

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
        return TiltedLaw(self.law, self._log_varrho(0.0), 0.0)

    def marginal(self, t: float) -> Law:
        s = self._noise_level(t)
        if s == self.horizon:
            return TiltedLaw(self.start, self._growth, self.log_normalizer)
        varrho, noised = self._log_varrho(s), self._noised(s)
        return TiltedLaw(noised, lambda x: varrho(x) + self.value(t, x) / self.temperature, self.log_normalizer)

    def _noised(self, s: float) -> Law:
        return self.law.noised(self.schedule.alpha(s), self.schedule.h(s))

    def _log_varrho(self, s: float) -> Callable[[Tensor], Tensor]:
        """log varrho_t as a function of x (n, d): quadrature around the Gaussian N(ratio x, q) p_noise / N(p_T's moments)."""
        if self.dim > LARGEST_DIMENSION:
            raise self._no("the law of Y_t")
        end = self.schedule.horizon
        ratio, q = self.schedule.ratio(end, s), self.schedule.transition_variance(end, s)
        noised = self._noised(end)
        eye = torch.eye(self.dim, dtype=torch.float64)
        inverse, around = torch.linalg.inv(self.start.covariance), torch.linalg.inv(noised.covariance)
        spread = torch.linalg.inv(symmetric(eye / q + inverse - around))
        root = torch.linalg.cholesky(spread)
        pull = inverse @ self.start.mean - around @ noised.mean
        z = box(self.dim, *_RULE[self.dim])
        log_cell = self.dim * math.log(_RULE[self.dim][1]) + float(root.diagonal().log().sum())
        kernel = Gaussian(torch.zeros(self.dim, dtype=torch.float64), q * eye)

        def log_varrho(x: Tensor) -> Tensor:
            moved = ratio * x.to(torch.float64)
            y = ((moved / q + pull) @ spread)[:, None] + z @ root.mT
            flat = y.flatten(0, 1)
            log_terms = self.start.log_prob(flat) - noised.log_prob(flat) + kernel.log_prob((y - moved[:, None]).flatten(0, 1))
            return log_terms.view(len(x), len(z)).logsumexp(1) + log_cell

        rows = max(1, _CHUNK // len(z))
        return lambda x: torch.cat([log_varrho(part) for part in x.split(rows)])


_RULE = {1: (12.0, 0.2), 2: (8.0, 0.4)}  # radius and spacing in units of the Gaussian the rule is centred on


class StartedQuadratic(StartedScore, QuadraticScore):
    """A quadratic reward: component i is looked for around the Gaussian p_noise E_i omega_i / omega_j, omega_j <= 1."""

    def __init__(
        self, law: DataLaw, schedule: Schedule, reward: Quadratic, temperature: float, start: Gaussian
    ):
        super().__init__(law, schedule, reward, temperature, None, _ADVICE)
        self.start = start

    def _no_tilt(self) -> NoTilt | None:
        """C is finite iff p_noise sum_i omega_i E_i decays in every direction; not asked above two dimensions."""
        if self.dim > LARGEST_DIMENSION or self._lowest(self.horizon) <= 0:
            return None
        margin = self._margin(1.0)
        if margin > 0:
            return None
        steepest = -float(torch.linalg.eigvalsh(self.quadratic.curvature)[0])
        largest = steepest * brentq(self._margin, 0.0, 1.0, xtol=1e-15, rtol=1e-14)
        return NoTilt(
            f"E exp(reward/temperature) is infinite: in units of the start its exponent has the curvature {margin:.6g} in "
            f"some direction; wanted a positive one. The reward curves upwards by {steepest:.6g}; shrink its curvature below "
            f"{largest:.6g} or raise the temperature.",
            margin,
            largest,
        )

    def _margin(self, scale: float) -> float:
        """Lowest curvature, in units of the start, of -log(p_noise omega_i E_i) far out, for `scale` times the reward."""
        root = covariance_root(self.start.covariance)
        return min(
            _lowest_in_any_direction([symmetric(root.mT @ bound.curvature @ root) for bound in bounds])
            for bounds in self._bounds(scale)
        )

    def _bounds(self, scale: float) -> list[list[LogQuadratic]]:
        """For each i, logs of p_noise E_i omega_i/omega_j for j = i and then every j: bounds of p_noise omega_i E_i."""
        a, h = self.schedule.alpha(self.horizon), self.schedule.h(self.horizon)
        start = _log_density(self.start)
        densities = [_log_density(component.law.noised(a, h)) for component in self.components]
        growths = [about(c.scaled(scale).growth(a, h), a * c.law.mean) for c in self.components]
        return [
            [start + growth + own + other * -1.0 for other in [own, *densities]]
            for own, growth in zip(densities, growths)
        ]

    @cached_property
    def _envelopes(self) -> list[Gaussian]:
        return [_gaussian(bounds) for bounds in self._bounds(1.0)]

    def marginal(self, t: float) -> Law:
        """varrho_t p^r_s / C', p^r the tilted data law, nearly constant weights, where p^r exists; else on p_s."""
        s = self._noise_level(t)
        try:
            tilted, log_c = self.law.tilt(self.reward, self.temperature), self.law.log_expectation(self.reward, self.temperature)
        except NoTilt:
            return super().marginal(t)
        if s == self.horizon:
            return super().marginal(t)
        noised = tilted.noised(self.schedule.alpha(s), self.schedule.h(s))
        return TiltedLaw(noised, self._log_varrho(s), self.log_normalizer - log_c)

    def pieces(self, f: Callable[[Tensor], Tensor]) -> list[Piece]:
        return [piece_at(law, self._log_integrand(i), f) for i, law in enumerate(self._envelopes)]

    def _log_integrand(self, i: int) -> Callable[[Tensor], Tensor]:
        level = self.level(self.horizon)
        assert isinstance(level, QuadraticLevel)

        def log_integrand(y: Tensor) -> Tensor:
            log_omega, growth = level.terms(y)
            return self.start.log_prob(y) + log_omega[i] + growth[i]

        return log_integrand

    @cached_property
    def expected_reward(self) -> float:
        """E_{p_ft} r: the closed mean of r given the start and the component, integrated over both."""
        pieces = [
            piece_at(law, self._log_integrand(i), self._mean_reward(i)) for i, law in enumerate(self._envelopes)
        ]
        return integrate(pieces).mean

    def _mean_reward(self, i: int) -> Callable[[Tensor], Tensor]:
        """E[r | Y_0 = y, component i] under Q*, quadratic in y."""
        a, h = self.schedule.alpha(self.horizon), self.schedule.h(self.horizon)
        component = self.components[i]
        mean = component.tilted_mean_reward(a, h)
        centre = a * component.law.mean
        return lambda y: self.temperature * mean(y - centre)


class StartedStep(StartedScore, StepScore):
    """A step reward: bounded, so the start itself says where to look."""

    def __init__(self, law: DataLaw, schedule: Schedule, reward: Step, temperature: float, start: Gaussian):
        super().__init__(law, schedule, reward, temperature, None, _ADVICE)
        self.start = start

    def pieces(self, f: Callable[[Tensor], Tensor]) -> list[Piece]:
        return [piece_at(self.start, lambda y: self.start.log_prob(y) + self._growth(y), f)]


def _log_density(law: Gaussian) -> LogQuadratic:
    """log of the density, up to a constant."""
    precision = torch.linalg.inv(law.covariance)
    return LogQuadratic(symmetric(precision), precision @ law.mean, 0.0)


def _gaussian(bounds: list[LogQuadratic]) -> Gaussian:
    """The first integrable e^{bound}, normalised."""
    found = next((bound for bound in bounds if float(torch.linalg.eigvalsh(bound.curvature)[0]) > 0), None)
    if found is None:
        raise NoClosedForm("no single Gaussian bounds the integrand over the start: quadrature does not know where to look")
    covariance = symmetric(torch.linalg.inv(found.curvature))
    return Gaussian(covariance @ found.linear, covariance)


def _lowest_in_any_direction(curvatures: list[Tensor]) -> float:
    """min over directions of the largest of the curvatures there, in one and two dimensions: e^{min of all} decays iff > 0."""
    angles = torch.linspace(0, math.pi, 721, dtype=torch.float64)
    directions = torch.stack([angles.cos(), angles.sin()], 1)[:, : len(curvatures[0])]
    directions = directions / directions.norm(dim=1, keepdim=True)
    return float(torch.stack([((directions @ k) * directions).sum(1) for k in curvatures]).amax(0).min())
