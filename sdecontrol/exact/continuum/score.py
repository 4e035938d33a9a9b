"""The exact score of a Gaussian or a mixture, and a reward with a closed Gaussian exponential moment.

Value and control are closed for every initial law. Under Q the component of the data and Y_t have the joint
law weight_i F_i(t), see `flow`; under Q* the same tilted by E_i(t, .), see `level`. Where
the F_i are Gaussian, C, nu*, p_ft, Q*_t and the path KL follow (derived).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import OrderedDict
from functools import cached_property

import torch
from scipy.optimize import brentq
from torch import Tensor

from sdecontrol.controls import AffineControl, Control, StateControl
from sdecontrol.errors import NoClosedForm, NoTilt
from sdecontrol.exact.continuum.base import BlowUp, ContinuumExact
from sdecontrol.exact.continuum.flow import (
    DataLaw,
    Flow,
    components,
    log_weights,
    mixture,
    pushed,
    tilted_transition,
)
from sdecontrol.exact.continuum.level import AffineLevel, Component, Level, QuadraticLevel, about
from sdecontrol.exact.continuum.quadrature import mean_under
from sdecontrol.exact.pushforward import gaussian_parameters
from sdecontrol.exact.quadratic import LogQuadratic, covariance_root
from sdecontrol.laws import Dirac, Law
from sdecontrol.rewards import Quadratic, Reward
from sdecontrol.schedules import Schedule

_KEPT_LEVELS = 2048


class ScoreExact(ContinuumExact):
    """What does not depend on the kind of reward. `flow` None: value and control only."""

    def __init__(
        self,
        law: DataLaw,
        schedule: Schedule,
        reward: Reward,
        temperature: float,
        flow: Flow | None,
        reason: str = "",
    ):
        super().__init__(schedule.horizon, temperature, reason)
        self.law, self.schedule, self.reward, self._flow = law, schedule, reward, flow
        self._levels: OrderedDict[float, Level] = OrderedDict()

    @property
    def dim(self) -> int:
        return self.law.dim

    @property
    def flow(self) -> Flow:
        if self._flow is None:
            raise self._no("the law of Y_t without control, on which C, nu* and p_ft rest,")
        return self._flow

    @abstractmethod
    def _level(self, s: float) -> Level:
        """v/temperature at noise level s > 0."""

    def level(self, s: float) -> Level:
        """The level at s, kept for the blocks of paths that come by later."""
        level = self._levels.get(s)
        if level is None:
            level = self._levels[s] = self._level(s)
            if len(self._levels) > _KEPT_LEVELS:
                self._levels.popitem(last=False)
        return level

    def _noise_level(self, t: float) -> float:
        return self.horizon - self._check_time(t)

    def amplitude(self, t: float) -> float:
        return math.sqrt(self.schedule.g2(self.horizon - t))

    def value(self, t: float, x: Tensor) -> Tensor:
        s, x = self._noise_level(t), x.to(torch.float64)
        return self.reward(x) if s == 0 else self.temperature * self.level(s).log_growth(x)

    @cached_property
    def control(self) -> Control:
        return StateControl(self._optimal, elementwise=True).of_the_continuum()

    def _optimal(self, t: float, x: Tensor) -> Tensor:
        return self.level(self._noise_level(t)).gradient(x) * self.amplitude(t)

    @cached_property
    def log_masses(self) -> Tensor:
        """log of weight_i E_{F_i(T)} e^{r/temperature} (k,): their sum is C."""
        masses = [law.log_expectation(self.reward, self.temperature) for law in self.flow.at(0.0)]
        return self.flow.log_weights + torch.tensor(masses, dtype=torch.float64)

    @cached_property
    def log_normalizer(self) -> float:
        return float(self.log_masses.logsumexp(0))

    @cached_property
    def reference(self) -> Law:
        return self.flow.reference(0.0)

    @property
    def untilted_terminal(self) -> Law:
        """From a point there is nothing to tilt: p_ft itself."""
        if self._flow is not None and isinstance(self._flow.start, Dirac):
            return self.terminal
        raise NoClosedForm(
            "the law of Y_T under u* from p_noise is closed for Gaussian data with a quadratic reward"
        )


class QuadraticScore(ScoreExact):
    """A quadratic reward: p_ft and every Q*_t are mixtures of as many Gaussians as the data law."""

    def __init__(
        self,
        law: DataLaw,
        schedule: Schedule,
        reward: Quadratic,
        temperature: float,
        flow: Flow | None,
        reason: str = "",
    ):
        super().__init__(law, schedule, reward, temperature, flow, reason)
        self.quadratic = reward
        self.components = [Component.of(component, reward, temperature) for component in components(law)]

    def _level(self, s: float) -> Level:
        a, h = self.schedule.alpha(s), self.schedule.h(s)
        return QuadraticLevel(log_weights(self.law), self.components, a, h)

    def check_existence(self) -> None:
        """P grows with the noise level, so v is finite at every time iff at t = 0; then C decides."""
        tilt = self._no_tilt()
        if self._lowest(self.horizon) <= 0:
            raise BlowUp(self.horizon - brentq(self._lowest, 0.0, self.horizon, xtol=1e-15, rtol=1e-14), tilt)
        if tilt is not None:
            raise tilt

    def _no_tilt(self) -> NoTilt | None:
        """Why C is infinite, where it is known to be."""
        if self._flow is not None:
            try:
                self.log_normalizer  # noqa: B018  asks whether it exists
            except NoTilt as error:
                return error
        return None

    def _lowest(self, s: float) -> float:
        a, h = self.schedule.alpha(s), self.schedule.h(s)
        return min(component.lowest(a, h) for component in self.components)

    def growth(self, s: float) -> list[Quadratic]:
        """log E_i at level s, as rewards at temperature 1."""
        a, h = self.schedule.alpha(s), self.schedule.h(s)
        return [about(c.growth(a, h), a * c.law.mean).as_reward() for c in self.components]

    def marginal(self, t: float) -> Law:
        s = self._noise_level(t)
        growth, laws = self.growth(s), self.flow.at(s)
        tilted = [law.tilt(growth[source], 1.0) for law, source in zip(laws, self.flow.sources)]
        return mixture(self.log_masses, tilted)

    @cached_property
    def expected_reward(self) -> float:
        """E_{p_ft} r."""
        terminal = self.terminal
        return LogQuadratic.of(self.quadratic).mean(terminal.mean, terminal.covariance)

    @cached_property
    def path_kl(self) -> float:
        """E_{p_ft} r / temperature - log C."""
        return self.expected_reward / self.temperature - self.log_normalizer


class GaussianScore(QuadraticScore):
    """A Gaussian data law and a quadratic reward: v is quadratic and u* affine (derived)."""

    def _level(self, s: float) -> AffineLevel:
        a, component = self.schedule.alpha(s), self.components[0]
        return AffineLevel(component.growth(a, self.schedule.h(s)), a * component.law.mean)

    @cached_property
    def control(self) -> Control:
        return AffineControl(lambda t: self._affine(t)[0], lambda t: self._affine(t)[1]).of_the_continuum()

    def _affine(self, t: float) -> tuple[Tensor, Tensor]:
        level, amplitude = self.level(self._noise_level(t)), self.amplitude(t)
        assert isinstance(level, AffineLevel)
        return -amplitude * level.curvature, amplitude * level.slope

    @cached_property
    def first_growth(self) -> LogQuadratic:
        """v(0, .) / temperature."""
        return LogQuadratic.of(self.growth(self.horizon)[0])

    @cached_property
    def path_kl(self) -> float:
        """KL(p_ft || p_pre)."""
        f = LogQuadratic.of(self.quadratic, 1 / self.temperature)
        return tilt_kl(f, self.reference, self.terminal, self.log_normalizer)

    @cached_property
    def kl_initial(self) -> float:
        return tilt_kl(self.first_growth, self.flow.start, self.initial, self.log_normalizer)

    @cached_property
    def objective_untilted(self) -> float:
        start = self.flow.start
        return self.temperature * self.first_growth.mean(start.mean, start.covariance)

    @cached_property
    def untilted_terminal(self) -> Law:
        """p_noise pushed through the law of Y_T given Y_0 under Q*: the posterior, tilted by the reward."""
        f = LogQuadratic.of(self.quadratic, 1 / self.temperature)
        transition = self.law.posterior(self.schedule.alpha(self.horizon), self.schedule.h(self.horizon))
        tilted = tilted_transition(transition, [f], transition.reweight)
        starts = self.flow.at(self.horizon)
        return mixture(self.flow.log_weights, [pushed(tilted, 0, start) for start in starts])


def tilt_kl(f: LogQuadratic, law: Law, tilted: Law, log_normalizer: float) -> float:
    """KL(p e^f/C || p) = E_{tilted} f - log C.

    For a Gaussian or a point p without cancellation: |w|^2/2 + KL(N(0, H^-1) || N(0, I)), from the law
    N(w, H^-1) under p e^f/C of the z in x = mean + root z, which is N(0, I) under p.
    """
    if gaussian_parameters(law) is None:
        return f.mean(tilted.mean, tilted.covariance) - log_normalizer
    noise_law = f.noise_law(covariance_root(law.covariance))
    shift = noise_law.response @ (f.linear - f.curvature @ law.mean)
    return float(shift @ shift) / 2 + noise_law.variance_kl


class IntegratedStart(ScoreExact):
    """What is integrated over a start that is a mixture, up to two dimensions, or read at a point."""

    @cached_property
    def kl_initial(self) -> float:
        """0 from a point; else E_{nu*} v(0, .)/temperature - log C by quadrature up to two dimensions."""
        if isinstance(self.flow.start, Dirac):
            return 0.0
        return mean_under(self.initial, self.level(self.horizon).log_growth) - self.log_normalizer

    @cached_property
    def objective_untilted(self) -> float:
        """E_{p_noise} v(0, .) by quadrature in one and two dimensions; from a point, v(0, .) there."""
        return self.temperature * mean_under(self.flow.start, self.level(self.horizon).log_growth)


class MixtureScore(IntegratedStart, QuadraticScore):
    """A mixture and a quadratic reward, started from the noised data law or from a point (derived)."""
