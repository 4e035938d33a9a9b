"""The joint law of the component of the data and of Y_t under the reference process: weight_i F_i(t).

It is closed, with Gaussian F_i(t), from the noised data law, from a point, and for Gaussian data from a
Gaussian or a mixture: Y_t given Y_0 is X_s given X_T of forward noising (derived).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdecontrol.exact.pushforward import gaussian_law, gaussian_parameters
from sdecontrol.exact.quadratic import LogQuadratic, symmetric
from sdecontrol.laws import Dirac, Gaussian, GaussianMixture, Law, Posterior
from sdecontrol.laws.spectrum import spectrum_of
from sdecontrol.schedules import Schedule

DataLaw = Gaussian | GaussianMixture
Function = Callable[[Tensor], Tensor]


class Flow(ABC):
    """Y_t under Q: with probability weight_i the law F_i(t), and the data from its component `sources[i]`."""

    log_weights: Tensor
    sources: list[int]
    start: Law

    def __init__(self, law: DataLaw, schedule: Schedule):
        self.law, self.schedule = law, schedule

    @abstractmethod
    def at(self, s: float) -> list[Law]:
        """The F_i at noise level s."""

    def reference(self, s: float) -> Law:
        """Q_t, the law of Y_t without control."""
        return mixture(self.log_weights, self.at(s))


class Matched(Flow):
    """Started from p_T, the noised data law: F_i(t) is component i at the level."""

    def __init__(self, law: DataLaw, schedule: Schedule):
        super().__init__(law, schedule)
        self.log_weights = log_weights(law)
        self.sources = list(range(len(self.log_weights)))
        self.start = self.reference(schedule.horizon)

    def at(self, s: float) -> list[Law]:
        a, h = self.schedule.alpha(s), self.schedule.h(s)
        return [component.noised(a, h) for component in components(self.law)]


class Started(Flow):
    """Started from one of `starts`, each Gaussian or a point, with probability exp(log_weights).

    Given the start, Y_t is the posterior of X_s given X_T; its component `sources[i]` is affine in the start.
    """

    def __init__(
        self,
        law: DataLaw,
        schedule: Schedule,
        start: Law,
        starts: Sequence[Law],
        weights: Tensor,
        sources: list[int],
    ):
        super().__init__(law, schedule)
        self.start, self.starts, self.log_weights, self.sources = start, starts, weights, sources

    def at(self, s: float) -> list[Law]:
        end = self.schedule.horizon
        if s == end:
            return list(self.starts)
        noised = self.law.noised(self.schedule.alpha(s), self.schedule.h(s))
        transition = noised.posterior(self.schedule.ratio(end, s), self.schedule.transition_variance(end, s))
        return [pushed(transition, source, start) for source, start in zip(self.sources, self.starts)]


def pushed(transition: Posterior, source: int, start: Law) -> Law:
    """The law of offset + gain y + sqrt(covariance) z of one component, y ~ start Gaussian or a point."""
    gain = transition.gains[source]
    spread = transition.covariances[source] + gain @ start.covariance @ gain.mT
    return gaussian_law(transition.offsets[source] + gain @ start.mean, symmetric(spread))


def tilted_transition(transition: Posterior, growth: list[LogQuadratic], reweight: Function) -> Posterior:
    """Each N(m, P), m = offset + gain y, tilted by its e^f: N(Q (m + P gamma), Q P), Q = (I + P kappa)^-1."""
    curvature, linear = torch.stack([f.curvature for f in growth]), torch.stack([f.linear for f in growth])
    covariances = transition.covariances
    factor = torch.eye(linear.shape[1], dtype=torch.float64) + covariances @ curvature
    pulled = transition.offsets[:, :, None] + covariances @ linear[:, :, None]
    return Posterior(
        reweight,
        torch.linalg.solve(factor, pulled)[:, :, 0],
        torch.linalg.solve(factor, transition.gains),
        symmetric(torch.linalg.solve(factor, covariances)),
    )


def flow_from(law: DataLaw, schedule: Schedule, start: Law | None) -> Flow | None:
    """The flow from `start`, None meaning the noised data law; None where it is not closed."""
    if start is None:
        return Matched(law, schedule)
    k = len(components(law))
    if isinstance(start, Dirac):  # omega_i(point) are the weights
        end = schedule.horizon
        responsibilities = law.posterior(schedule.alpha(end), schedule.h(end)).reweight(start.mean[None])[0]
        return Started(law, schedule, start, [start] * k, responsibilities, list(range(k)))
    if k > 1:
        return None
    if isinstance(start, GaussianMixture):
        return Started(law, schedule, start, start.components, start.log_weights, [0] * len(start.components))
    if gaussian_parameters(start) is None:
        return None
    return Started(law, schedule, start, [start], torch.zeros(1, dtype=torch.float64), [0])


def components(law: DataLaw) -> tuple[Gaussian, ...]:
    return law.components if isinstance(law, GaussianMixture) else (law,)


def log_weights(law: DataLaw) -> Tensor:
    return law.log_weights if isinstance(law, GaussianMixture) else torch.zeros(1, dtype=torch.float64)


def mixture(log_weights: Tensor, laws: list[Law]) -> Law:
    """sum_i weight_i law_i of Gaussian laws, in log weights: far out a component may rule whose weight underflows."""
    if all(law is laws[0] for law in laws):
        return laws[0]
    means, covariances = torch.stack([law.mean for law in laws]), torch.stack([law.covariance for law in laws])
    spectrum = spectrum_of("covariances", covariances)
    shared = bool((covariances == covariances[0]).all())
    return GaussianMixture.from_spectrum(log_weights.log_softmax(0), means, spectrum, shared)
