"""Who goes on: systematic resampling of weighted populations, and the choice of one candidate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sdecontrol.girsanov import effective


@dataclass(frozen=True)
class Choice:
    """Who goes on: ancestors (populations, particles), which populations were resampled and the log weight of all
    their survivors, both (populations, 1). The others keep every particle and its weight."""

    ancestors: Tensor
    resampled: Tensor
    level: Tensor


class Rule(ABC):
    """From log weights (populations, particles) and a uniform a population to those who take the next step."""

    one_start = False  # whether the particles of a population share their first state

    @abstractmethod
    def choose(self, log_weights: Tensor, u: Tensor) -> Choice | None:
        """Who goes on; None leaves every population as it is."""

    def settle(self, log_weights: Tensor, u: Tensor) -> Choice | None:
        """The same after the last step."""
        return None


def comb(weights: Tensor, u: Tensor, teeth: int) -> Tensor:
    """Systematic resampling: the particles that (i + u) / teeth, i < teeth, meet in the summed weights of a population.

    weights (populations, particles) sum to 1, u (populations,) in (0, 1); particle j is met teeth w_j times on average.
    """
    edges = weights.cumsum(1)
    points = (torch.arange(teeth, dtype=torch.float64) + u[:, None]) / teeth * edges[:, -1:]
    return torch.searchsorted(edges[:, :-1].contiguous(), points, right=True)


@dataclass(frozen=True)
class Systematic(Rule):
    """Resample the populations whose effective size is below threshold * particles; the others keep their weights.

    Survivors go on with the mean weight of their population, so that its mean weight estimates Z at any time.
    """

    threshold: float

    def choose(self, log_weights: Tensor, u: Tensor) -> Choice | None:
        particles = log_weights.shape[1]
        poor = (effective(log_weights, 1) < self.threshold * particles)[:, None]
        if not bool(poor.any()):
            return None
        level = log_weights.logsumexp(1, keepdim=True) - math.log(particles)
        ancestors = torch.where(poor, comb(log_weights.softmax(1), u, particles), torch.arange(particles))
        return Choice(ancestors, poor, level)


@dataclass(frozen=True)
class One(Rule):
    """One particle of each population goes on, in as many copies: the best, or one drawn with weights w^sharpness."""

    sharpness: float
    one_start = True

    def choose(self, log_weights: Tensor, u: Tensor) -> Choice:
        if math.isinf(self.sharpness):
            chosen = log_weights.argmax(1, keepdim=True)
        else:
            chosen = comb((self.sharpness * log_weights).softmax(1), u, 1)
        return Choice(
            chosen.expand_as(log_weights), torch.ones_like(chosen, dtype=torch.bool), torch.zeros_like(u)[:, None]
        )

    settle = choose
