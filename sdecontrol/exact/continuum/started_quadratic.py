"""A quadratic reward on a mixture data law started from a Gaussian: where to integrate, and whether one can.

Component i contributes p_noise omega_i E_i. As omega_j <= 1, it lies below p_noise E_i omega_i/omega_j for
every j, the exponential of a quadratic: one that is integrable says where to look, and C is infinite iff, in
some direction, their minimum does not decay (derived).
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from scipy.optimize import brentq
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NoTilt
from sdecontrol.exact.continuum.flow import DataLaw, Function, tilted_transition
from sdecontrol.exact.continuum.level import QuadraticLevel, about
from sdecontrol.exact.continuum.quadrature import LARGEST_DIMENSION, Piece, integrate, piece_at
from sdecontrol.exact.continuum.score import QuadraticScore
from sdecontrol.exact.continuum.started import ADVICE, StartedLaw, StartedScore
from sdecontrol.exact.quadratic import LogQuadratic, covariance_root, symmetric
from sdecontrol.laws import Gaussian, Law
from sdecontrol.rewards import Quadratic
from sdecontrol.schedules import Schedule


class StartedQuadratic(StartedScore, QuadraticScore):
    """p_noise sum_i omega_i E_i is integrated component by component, around a Gaussian that bounds each."""

    def __init__(
        self, law: DataLaw, schedule: Schedule, reward: Quadratic, temperature: float, start: Gaussian
    ):
        super().__init__(law, schedule, reward, temperature, None, ADVICE)
        self.start = start

    def _no_tilt(self) -> NoTilt | None:
        """C is finite iff the integrand decays in every direction; not asked above two dimensions."""
        if self.dim > LARGEST_DIMENSION or self._lowest(self.horizon) <= 0:
            return None
        margin = self._margin(1.0)
        if margin > 0:
            return None
        steepest = -float(torch.linalg.eigvalsh(self.quadratic.curvature)[0])
        largest = steepest * brentq(self._margin, 0.0, 1.0, xtol=1e-15, rtol=1e-14)
        return NoTilt(
            "E exp(reward/temperature) is infinite: over the start, in its own units, the exponent falls off "
            f"with the curvature {margin:.6g} in some direction; wanted a positive one. The reward curves "
            f"upwards by {steepest:.6g}; shrink its curvature below {largest:.6g} or raise the temperature.",
            margin,
            largest,
        )

    def _margin(self, scale: float) -> float:
        """Lowest curvature of -log(p_noise omega_i E_i) far out, in units of the start, for `scale` r."""
        root = covariance_root(self.start.covariance)
        return min(
            _lowest_in_any_direction([symmetric(root.mT @ bound.curvature @ root) for bound in bounds])
            for bounds in self._bounds(scale)
        )

    def _bounds(self, scale: float) -> list[list[LogQuadratic]]:
        """For each i the bounds log(p_noise E_i omega_i/omega_j), j = i first, for `scale` times r."""
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

    def _tilted(self, s: float) -> Law:
        """From nu*: component i with probability omega_i E_i(0) / sum, then its Gaussian tilted by E_i(t)."""
        growth = [LogQuadratic.of(reward) for reward in self.growth(s)]
        transition = tilted_transition(self._transition(s), growth, self._tilted_responsibilities)
        varrho, level = self._log_varrho(s), self.level(s)
        return StartedLaw(
            self._noised(s),
            lambda x: varrho(x) + level.log_growth(x),
            self.log_normalizer,
            self.initial,
            transition,
        )

    def _tilted_responsibilities(self, y: Tensor) -> Tensor:
        """log P(component i | Y_0 = y) under Q*: (n, d) -> (n, k)."""
        level = self.level(self.horizon)
        assert isinstance(level, QuadraticLevel)
        log_omega, growth = level.terms(y.to(torch.float64))
        return (log_omega + growth).log_softmax(0).mT

    def pieces(self, f: Function) -> list[Piece]:
        return [piece_at(law, self._log_integrand(i), f) for i, law in enumerate(self._envelopes)]

    def _log_integrand(self, i: int) -> Function:
        level = self.level(self.horizon)
        assert isinstance(level, QuadraticLevel)

        def log_integrand(y: Tensor) -> Tensor:
            log_omega, growth = level.terms(y)
            return self.start.log_prob(y) + log_omega[i] + growth[i]

        return log_integrand

    @cached_property
    def expected_reward(self) -> float:
        """E_{p_ft} r: the closed mean of r given the start and the component, integrated over both."""
        self._check_dimension("E r under p_ft")
        boxes = enumerate(self._envelopes)
        pieces = [piece_at(law, self._log_integrand(i), self._mean_reward(i)) for i, law in boxes]
        return integrate(pieces).mean

    def _mean_reward(self, i: int) -> Function:
        """E[r | Y_0 = y, component i] under Q*, quadratic in y."""
        a, h = self.schedule.alpha(self.horizon), self.schedule.h(self.horizon)
        component = self.components[i]
        mean = component.tilted_mean_reward(a, h)
        centre = a * component.law.mean
        return lambda y: self.temperature * mean(y - centre)


def _log_density(law: Gaussian) -> LogQuadratic:
    """log of the density, up to a constant."""
    precision = torch.linalg.inv(law.covariance)
    return LogQuadratic(symmetric(precision), precision @ law.mean, 0.0)


def _gaussian(bounds: list[LogQuadratic]) -> Gaussian:
    """The first integrable e^{bound}, normalised."""
    found = next((bound for bound in bounds if float(torch.linalg.eigvalsh(bound.curvature)[0]) > 0), None)
    if found is None:
        raise NoClosedForm(
            "no single Gaussian bounds the integrand over the start: where to look is not known"
        )
    covariance = symmetric(torch.linalg.inv(found.curvature))
    return Gaussian(covariance @ found.linear, covariance)


def _lowest_in_any_direction(curvatures: list[Tensor]) -> float:
    """min over directions of the largest curvature (d <= 2): the minimum of the bounds decays iff > 0."""
    angles = torch.linspace(0, math.pi, 721 if len(curvatures[0]) == 2 else 1, dtype=torch.float64)
    directions = torch.stack([angles.cos(), angles.sin()], 1)[:, : len(curvatures[0])]
    return float(torch.stack([((directions @ k) * directions).sum(1) for k in curvatures]).amax(0).min())
