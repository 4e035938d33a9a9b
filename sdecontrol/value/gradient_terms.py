"""What a rule for grad h says sample by sample, and how grad log h follows as a ratio with its error.

With weights w = e^F every rule gives grad h = E[w (s + p)], s a score-like weight of mean zero and p a slope along the
path. Where w varies little so does its product with s, once the mean of w is taken away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdecontrol.girsanov import effective_sample_size
from sdecontrol.noise import Noise
from sdecontrol.value.estimate import FEWEST_CARRIERS, pareto_k
from sdecontrol.value.integrand import Task
from sdecontrol.value.surrogates import cross_fitted

_FOLDS = 8  # of the regression on controls
_FEWEST_PLAIN = 4.0  # carriers down to which the widened error bar of a plain ratio was seen to hold


@dataclass(frozen=True, eq=False)
class Terms:
    """F (n, levels), and for every sample a mean-zero score s and a slope p (n, levels, d): grad h = E[e^F (s + p)].

    controls (n, c): functions of the normals of mean zero, on which numerator and denominator are regressed.
    """

    growth: Tensor
    score: Tensor
    slope: Tensor
    order: int
    controls: Tensor | None = None

    def along(self, directions: Tensor) -> Terms:
        """The same for the derivatives along the columns of directions (d, k)."""
        return replace(self, score=self.score @ directions, slope=self.slope @ directions)

    def tilted(self) -> tuple[Tensor, Tensor]:
        """grad log h (levels, d) and its influence (n, levels, d): E[w p] + Cov(w, s), over E w."""
        n = len(self.growth)
        w = torch.exp(self.growth - self.growth.amax(0))
        w = (w / w.mean(0))[..., None]
        if self.controls is None:
            # Cov(w, s): s has mean zero, so w - 1 in the place of w only takes variance away
            terms = w * self.slope + (w - 1) * self.score * (n / (n - 1))
        else:
            both = torch.cat([w, w * (self.slope + self.score)], 2)
            left = cross_fitted(both.flatten(1)[..., None], self.controls[..., None], _FOLDS).reshape(both.shape)
            w, terms = left[..., :1], left[..., 1:]
        gradient = terms.mean(0) / w.mean(0)
        return gradient, (terms - gradient * w) / w.mean(0)

    def linear(self) -> tuple[Tensor, Tensor]:
        """grad E F (levels, d) and its influence."""
        n = len(self.growth)
        terms = self.slope + (self.growth - self.growth.mean(0))[..., None] * self.score * (n / (n - 1))
        gradient = terms.mean(0)
        return gradient, terms - gradient


class GradientMethod(ABC):
    """A way to estimate grad v at one row."""

    @abstractmethod
    def terms(self, task: Task, n: int, noise: Noise) -> Terms:
        """What n samples say about one row. Raises before sampling where the rule does not apply."""

    def gradient(self, task: Task, n: int, noise: Noise, directions: Tensor | None = None) -> Gradient:
        """grad log h, or its products with the columns of directions (d, k), with what its error is made of."""
        terms = self.terms(task, n, noise)
        terms = terms if directions is None else terms.along(directions)
        ess = effective_sample_size(terms.growth[:, 0])
        wanted = _FEWEST_PLAIN if terms.controls is None else 2 * FEWEST_CARRIERS  # a ratio of two regressions
        return Gradient(*terms.tilted(), terms.order, pareto_k(terms.growth[:, 0]), ess, wanted)


@dataclass(frozen=True, eq=False)
class Gradient:
    """A gradient (levels, d) of one row, its influence (n, levels, d), the order of the step error.

    pareto_k, ess: tail index and effective number of the weights on the finest level. wanted: carriers of the error bar
    without which it is not to be trusted.
    """

    levels: Tensor
    influence: Tensor
    order: int
    pareto_k: float
    ess: float
    wanted: float
