"""A mixture whose components are classes, and the posterior of a class (times e^{quadratic/temperature}) as the tilt.

With r/T = log p(class | x) + q(x)/T the components outside the class have E_i = 0: v/T = log sum_{i in class}
omega_i(y) E_i(y), log C = log sum_{i in class} weight_i E_{F_i(T)} e^{q/T}, and every Q*_t is the mixture of the tilted
F_i(t) of the class alone (derived).
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from sdecontrol.exact.continuum.flow import DataLaw, Flow, Function, log_weights, mixture
from sdecontrol.exact.continuum.level import Component, QuadraticLevel
from sdecontrol.exact.continuum.quadrature import Piece, mean_under, piece_at
from sdecontrol.exact.continuum.score import MixtureScore
from sdecontrol.exact.continuum.started import ADVICE, StartedScore
from sdecontrol.laws import ClassPosterior, Gaussian, Law, TiltedLaw
from sdecontrol.rewards import Quadratic
from sdecontrol.schedules import Schedule


class ClassLevel(QuadraticLevel):
    """log sum_{i in class} omega_i(y) E_i(y): log E_i is minus infinity for the other components."""

    def __init__(self, log_weights: Tensor, components: list[Component], a: float, h: float, other: Tensor):
        super().__init__(log_weights, components, a, h)
        self._other = other

    def _build(self) -> tuple[Tensor, ...]:
        stacked, shift, masses, constants, linear, curvature = super()._build()
        return stacked, shift, masses, constants.masked_fill(self._other, -torch.inf), linear, curvature


class ClassScore(MixtureScore):
    """The posterior of a class at the first power; from the noised data law or from a point. Means of log p(class | x),
    and with them the path KL, are by quadrature up to two dimensions."""

    def __init__(
        self, law: DataLaw, schedule: Schedule, reward: ClassPosterior, temperature: float, flow: Flow | None,
        reason: str = "",
    ):  # fmt: skip
        quadratic = reward.extra or Quadratic(torch.zeros(law.dim, dtype=torch.float64))
        super().__init__(law, schedule, quadratic, temperature, flow, reason)
        self.reward = reward
        self.other = torch.ones(len(self.components), dtype=torch.bool)
        self.other[list(reward.members)] = False

    def _level(self, s: float) -> ClassLevel:
        a, h = self.schedule.alpha(s), self.schedule.h(s)
        return ClassLevel(log_weights(self.law), self.components, a, h, self.other)

    @cached_property
    def log_masses(self) -> Tensor:
        masses = [law.log_expectation(self.quadratic, self.temperature) for law in self.flow.at(0.0)]
        found = self.flow.log_weights + torch.tensor(masses, dtype=torch.float64)
        return found.masked_fill(self._off_class, -torch.inf)

    @property
    def _off_class(self) -> Tensor:
        """Which laws of the flow do not lead to the class."""
        return self.other[self.flow.sources]

    def marginal(self, t: float) -> Law:
        s = self._noise_level(t)
        growth, laws = self.growth(s), self.flow.at(s)
        rows = (~self._off_class).nonzero()[:, 0].tolist()
        return mixture(self.log_masses[rows], [laws[i].tilt(growth[self.flow.sources[i]], 1.0) for i in rows])

    @cached_property
    def expected_reward(self) -> float:
        """E_{p_ft} r, by quadrature up to two dimensions."""
        return mean_under(self.terminal, self.reward)


class StartedClass(StartedScore, ClassScore):
    """The same from a Gaussian start, nothing but the class in the reward: probabilities are at most 1, so the start
    itself says where to look."""

    def __init__(self, law: DataLaw, schedule: Schedule, reward: ClassPosterior, temperature: float, start: Gaussian):
        ClassScore.__init__(self, law, schedule, reward, temperature, None, ADVICE)
        self.start = start

    def _tilted(self, s: float) -> Law:
        return TiltedLaw(self._uncontrolled(s), self.level(s).log_growth, self.log_normalizer, log_bound=0.0)

    def pieces(self, f: Function) -> list[Piece]:
        return [piece_at(self.start, lambda y: self.start.log_prob(y) + self._growth(y), f)]
