"""The component of a mixture as a label: e^{r/temperature} = P(I in S | x), a tilt that keeps the components S.

I and Y_T are independent of Y_t given one another's past, so E[P(I in S | Y_T) | Y_t = y] = sum_{i in S} omega_i(y): at
every level the value is a log responsibility, its gradient a difference of two scores, and under Q* the data comes from
S alone (derived, by the tower rule). It holds at strength/temperature = 1; another power has no closed form.
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from sdecontrol.errors import NoClosedForm
from sdecontrol.exact.continuum.flow import DataLaw, Flow, Function, mixture
from sdecontrol.exact.continuum.level import Level
from sdecontrol.exact.continuum.quadrature import Piece, mean_under, piece_at
from sdecontrol.exact.continuum.score import IntegratedStart
from sdecontrol.exact.continuum.started import ADVICE, StartedScore
from sdecontrol.labels import ComponentLabel
from sdecontrol.laws import Gaussian, GaussianMixture, Law, TiltedLaw
from sdecontrol.schedules import Schedule

_ROUNDING = 1e-12  # of strength/temperature, about 1


class LabelLevel(Level):
    """log sum_{i in S} omega_i and its gradient."""

    def __init__(self, noised: GaussianMixture, subset: GaussianMixture, chosen: list[int]):
        self.noised, self.subset, self.chosen = noised, subset, chosen

    def log_growth(self, x: Tensor) -> Tensor:
        return self.noised.log_responsibilities(x)[:, self.chosen].logsumexp(1)

    def gradient(self, x: Tensor) -> Tensor:
        return self.subset.score(x) - self.noised.score(x)


class LabelScore(IntegratedStart):
    """The answers at strength/temperature = 1; NoClosedForm for another power or a label of another mixture."""

    reward: ComponentLabel

    def __init__(
        self, law: DataLaw, schedule: Schedule, reward: ComponentLabel, temperature: float, flow: Flow | None,
        reason: str = "",
    ):  # fmt: skip
        if law is not reward.mixture:
            raise NoClosedForm("the label is a component of another mixture than the data law")
        if abs(reward.strength / temperature - 1) > _ROUNDING:
            raise NoClosedForm(
                f"a component label to the power {reward.strength / temperature:g} has no closed value; at power 1 it "
                "has. Use sc.solve_hjb up to three dimensions, or sc.feynman_kac"
            )
        super().__init__(law, schedule, reward, temperature, flow, reason)
        self.chosen = list(reward.components)

    def _level(self, s: float) -> Level:
        a, h = self.schedule.alpha(s), self.schedule.h(s)
        return LabelLevel(self.reward.mixture.noised(a, h), self.reward.subset.noised(a, h), self.chosen)

    @cached_property
    def _kept(self) -> list[int]:
        """The terms of the flow whose data come from S."""
        return [i for i, source in enumerate(self.flow.sources) if source in self.chosen]

    @cached_property
    def log_normalizer(self) -> float:
        """log P(I in S) under the reference process."""
        return float(self.flow.log_weights[self._kept].logsumexp(0))

    def marginal(self, t: float) -> Law:
        laws = self.flow.at(self._noise_level(t))
        return mixture(self.flow.log_weights[self._kept], [laws[i] for i in self._kept])

    @cached_property
    def path_kl(self) -> float:
        """E_{p_ft} log P(S | x) - log C, by quadrature up to two dimensions."""
        return mean_under(self.terminal, self.reward) / self.temperature - self.log_normalizer


class StartedLabel(StartedScore, LabelScore):
    """The same from a Gaussian start; probabilities are at most 1, so the start itself says where to look."""

    def __init__(
        self, law: GaussianMixture, schedule: Schedule, reward: ComponentLabel, temperature: float, start: Gaussian
    ):
        LabelScore.__init__(self, law, schedule, reward, temperature, None, ADVICE)
        self.start = start

    def _tilted(self, s: float) -> Law:
        return TiltedLaw(self._uncontrolled(s), self.level(s).log_growth, self.log_normalizer, log_bound=0.0)

    def pieces(self, f: Function) -> list[Piece]:
        return [piece_at(self.start, lambda y: self.start.log_prob(y) + self._growth(y), f)]
