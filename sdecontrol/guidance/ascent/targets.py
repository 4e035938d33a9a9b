"""Where the label of a round is put: y_k, or the step size eta_k that it amounts to.

Conditioning N(m, S) on g . x + noise = y, of variance sigma^2, moves its mean by eta S g with
eta = (y - g . m) / (sigma^2 + g' S g) (derived). A target chooses y.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sdecontrol.errors import NotDefined, check
from sdecontrol.laws import Law


@dataclass(frozen=True, eq=False)
class Slope:
    """A round's gradient g (D,) at z (D,), the mean of the last batch; the model's law now, and the first one's.

    A law is None where the model's is not known, as for a network.
    """

    g: Tensor
    z: Tensor
    law: Law | None
    first: Law | None

    @cached_property
    def now(self) -> tuple[float, float]:
        """Mean and variance of g . X under the model of this round."""
        return _along(self.law, self.g)

    @property
    def before(self) -> float:
        """Variance of g . X under the first model."""
        return _along(self.first, self.g)[1]


def _along(law: Law | None, g: Tensor) -> tuple[float, float]:
    if law is None:
        raise NotDefined("this target needs the mean and variance of the model's law along the gradient, and the model "
                         "is a network; use Increment")  # fmt: skip
    line = law.along(g)
    return float(line.mean), float(line.covariance)


class Target(ABC):
    """A rule for y_k."""

    @abstractmethod
    def __call__(self, slope: Slope, variance: float) -> float:
        """y_k, for a label noise of that variance."""


@dataclass(frozen=True)
class Increment(Target):
    """y_k = delta + g_k . z_k: the practical rule. It ends where Regularised(sigma^2/delta) does (derived).

    Source: Guo et al. 2404.14743, Algorithm 1.
    """

    delta: float

    def __post_init__(self) -> None:
        _positive("delta", self.delta)

    def __call__(self, slope: Slope, variance: float) -> float:
        return self.delta + float(slope.g @ slope.z)


@dataclass(frozen=True)
class Regularised(Target):
    """eta_k = 1/strength: the means follow m_{k+1} = m + S grad f(m_k) / strength, m and S those of the model.

    Source: Guo et al. 2404.14743, Theorem 2; the rule for y_k derived.
    """

    strength: float

    def __post_init__(self) -> None:
        _positive("strength", self.strength)

    def __call__(self, slope: Slope, variance: float) -> float:
        mean, spread = slope.now
        return mean + (variance + spread) / self.strength


@dataclass(frozen=True)
class Rescaled(Target):
    """eta_k = (g' S_0 g / g' S_k g) / strength: steps that do not shrink with the covariance S_k of a refitted model.

    Source: derived; what Algorithm 2 of Guo et al. 2404.14743 needs to reach the maximum by moment-matched scores.
    """

    strength: float

    def __post_init__(self) -> None:
        _positive("strength", self.strength)

    def __call__(self, slope: Slope, variance: float) -> float:
        mean, spread = slope.now
        return mean + slope.before / spread * (variance + spread) / self.strength


def _positive(name: str, value: float) -> None:
    check(0 < value < float("inf"), f"{name} = {value}", "a positive finite number")
