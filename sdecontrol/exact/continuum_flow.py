"""The joint law, under the reference process, of the component of a mixture data law and of Y_t: weight_i F_i(t).

It is closed, with Gaussian F_i(t), in three cases: a start from the noised data law, a Gaussian start with one component,
and a start from a point (theory 1.1 item 1: Y_t given Y_0 is clean given noisy, between levels s and T; derived).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sdecontrol.exact.pushforward import gaussian_law, gaussian_parameters
from sdecontrol.exact.quadratic import symmetric
from sdecontrol.laws import Dirac, Gaussian, GaussianMixture, Law
from sdecontrol.schedules import Schedule

DataLaw = Gaussian | GaussianMixture


class Flow(ABC):
    """Y_t under Q: component i with probability weight_i, then F_i(t)."""

    log_weights: Tensor
    start: Law

    def __init__(self, law: DataLaw, schedule: Schedule):
        self.law, self.schedule = law, schedule

    @abstractmethod
    def at(self, s: float) -> list[Law]:
        """F_i at noise level s, one law a component."""

    def reference(self, s: float) -> Law:
        """Q_t, the law of Y_t without control."""
        return mixture(self.log_weights, self.at(s))


class Matched(Flow):
    """Started from p_T, the noised data law: F_i(t) is component i at the level."""

    def __init__(self, law: DataLaw, schedule: Schedule):
        super().__init__(law, schedule)
        self.log_weights = log_weights(law)
        self.start = self.reference(schedule.horizon)

    def at(self, s: float) -> list[Law]:
        return [component.noised(self.schedule.alpha(s), self.schedule.h(s)) for component in components(self.law)]


class Started(Flow):
    """Started from N(m_0, Sigma_0), where Sigma_0 = 0 unless there is a single component.

    Given the start, component i has the probability omega_i(m_0), and Y_t is the posterior of X_s given X_T.
    """

    def __init__(self, law: DataLaw, schedule: Schedule, start: Law, mean: Tensor, covariance: Tensor):
        super().__init__(law, schedule)
        self.start, self.mean, self.covariance = start, mean, covariance
        end = schedule.horizon
        self.log_weights = law.posterior(schedule.alpha(end), schedule.h(end)).reweight(mean[None])[0]

    def at(self, s: float) -> list[Law]:
        end = self.schedule.horizon
        if s == end:
            return [self.start for _ in self.log_weights]
        noised = self.law.noised(self.schedule.alpha(s), self.schedule.h(s))
        posterior = noised.posterior(self.schedule.ratio(end, s), self.schedule.transition_variance(end, s))
        return [
            gaussian_law(offset + gain @ self.mean, symmetric(covariance + gain @ self.covariance @ gain.mT))
            for offset, gain, covariance in zip(posterior.offsets, posterior.gains, posterior.covariances)
        ]


def flow_from(law: DataLaw, schedule: Schedule, start: Law | None) -> Flow | None:
    """The flow from `start`, None meaning the noised data law; None where it is not closed."""
    if start is None:
        return Matched(law, schedule)
    parameters = gaussian_parameters(start)
    if parameters is None or (len(components(law)) > 1 and not isinstance(start, Dirac)):
        return None
    return Started(law, schedule, start, *parameters)


def components(law: DataLaw) -> tuple[Gaussian, ...]:
    return law.components if isinstance(law, GaussianMixture) else (law,)


def log_weights(law: DataLaw) -> Tensor:
    return law.log_weights if isinstance(law, GaussianMixture) else torch.zeros(1, dtype=torch.float64)


def mixture(log_weights: Tensor, laws: list[Law]) -> Law:
    """sum_i weight_i law_i of Gaussian laws; weights that underflow are dropped, a single or a repeated law is itself."""
    kept = [(w, law) for w, law in zip(log_weights.softmax(0), laws) if w > 0]
    if all(law is kept[0][1] for _, law in kept):
        return kept[0][1]
    weights, chosen = zip(*kept)
    means, covariances = (torch.stack(column) for column in zip(*((law.mean, law.covariance) for law in chosen)))
    return GaussianMixture(torch.stack(weights), means, covariances)
