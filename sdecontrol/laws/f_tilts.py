"""Tilts by f-divergences: max_p E_p r - temperature * E_base f(dp/dbase).

The first-order condition r - temperature f'(w) = lam gives w = [(f')^{-1}((r - lam)/temperature)]_+ with the
multiplier lam that makes E_base w = 1. `temperature * log w(r)` is a surrogate reward: its KL tilt
is the f-tilt, so every control, loss and sampler for the KL problem can aim at it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from sdecontrol.errors import BadInput, NoTilt, check
from sdecontrol.laws.base import Law, check_temperature
from sdecontrol.laws.discrete import DiscreteLaw
from sdecontrol.laws.reward_laws import RewardLaw, reward_law
from sdecontrol.laws.tilted import TiltedLaw


class FDivergence(ABC):
    """D_f(p || q) = E_q f(dp/dq), f convex with f(1) = 0."""

    @abstractmethod
    def f(self, x: Tensor) -> Tensor:
        """f at density ratios x >= 0, elementwise."""

    @abstractmethod
    def log_weight(self, r: Tensor, lam: float, temperature: float) -> Tensor:
        """log w at rewards r for the multiplier lam."""

    def weight(self, r: Tensor, lam: float, temperature: float) -> Tensor:
        """w at rewards r for the multiplier lam."""
        return self.log_weight(r, lam, temperature).exp()

    @abstractmethod
    def multiplier(self, law: RewardLaw, temperature: float) -> float:
        """The lam with E w = 1; NoTilt when there is none."""


@dataclass(frozen=True)
class KL(FDivergence):
    """f(x) = x log x: w = exp((r - lam)/temperature - 1), the exponential tilt."""

    def f(self, x: Tensor) -> Tensor:
        return torch.xlogy(x, x)

    def log_weight(self, r: Tensor, lam: float, temperature: float) -> Tensor:
        return (r - lam) / temperature - 1

    def multiplier(self, law: RewardLaw, temperature: float) -> float:
        log_mean = law.log_expect(lambda r: r / temperature)
        if not math.isfinite(log_mean):
            raise NoTilt("E exp(reward/temperature) is infinite; wanted a finite one. Raise the temperature.")
        return temperature * (log_mean - 1)


@dataclass(frozen=True)
class GammaDivergence(FDivergence):
    """f(x) = (x^{1-g} - (1-g) x - g) / (g (g - 1)), 0 < g < 1: w = (1 + g (lam - r)/temperature)^{-1/g}.

    lam must exceed sup r - temperature/g. A maximiser exists iff E w >= 1 at that bound, that is from the
    temperature g (E (sup r - r)^{-1/g})^{-g} on; never for an unbounded reward. g -> 0 is KL, g -> 1 is
    ForwardKL.
    """

    gamma: float

    def __post_init__(self) -> None:
        check(
            0 < self.gamma < 1,
            f"gamma = {self.gamma}",
            "a number strictly between 0 and 1",
            "The limits are KL() and ForwardKL().",
        )

    def f(self, x: Tensor) -> Tensor:
        g = self.gamma
        log_term = torch.where(x == 0, 0.0, x * torch.expm1(-g * x.log()))  # x^{1-g} - x, which is 0 at 0
        return (log_term / g + x - 1) / (g - 1)

    def log_weight(self, r: Tensor, lam: float, temperature: float) -> Tensor:
        return -torch.log1p(self.gamma * (lam - r) / temperature) / self.gamma

    def multiplier(self, law: RewardLaw, temperature: float) -> float:
        eta = _log_room(law, temperature, self.gamma)
        return law.supremum + temperature * math.expm1(eta) / self.gamma


@dataclass(frozen=True)
class ForwardKL(FDivergence):
    """f(x) = -log x: w = temperature / (lam - r), lam > sup r.

    A maximiser exists iff E w >= 1 at lam = sup r, that is from the temperature 1 / E (sup r - r)^{-1} on;
    never for an unbounded reward.
    """

    def f(self, x: Tensor) -> Tensor:
        return -x.log()

    def log_weight(self, r: Tensor, lam: float, temperature: float) -> Tensor:
        return math.log(temperature) - (lam - r).log()

    def multiplier(self, law: RewardLaw, temperature: float) -> float:
        return law.supremum + temperature * math.exp(_log_room(law, temperature, 1.0))


@dataclass(frozen=True)
class ChiSquare(FDivergence):
    """f(x) = (x - 1)^2 / 2: w = (1 + (r - lam)/temperature)_+, zero (log w = -inf) on rewards it cuts."""

    def f(self, x: Tensor) -> Tensor:
        return (x - 1).square() / 2

    def log_weight(self, r: Tensor, lam: float, temperature: float) -> Tensor:
        return self.weight(r, lam, temperature).log()

    def weight(self, r: Tensor, lam: float, temperature: float) -> Tensor:
        return (1 + (r - lam) / temperature).clamp(min=0)

    def multiplier(self, law: RewardLaw, temperature: float) -> float:
        low = law.expect(lambda r: r)  # there E w >= E (1 + (r - lam)/temperature) = 1
        if not math.isfinite(low):
            raise NoTilt("E reward is infinite; wanted a finite one")

        def excess(lam: float) -> float:
            return law.expect(lambda r: self.weight(r, lam, temperature), law.places(lam - temperature)) - 1

        step = temperature
        while excess(low + step) > 0:
            step *= 2
        return (
            float(brentq(excess, low, low + step, xtol=1e-14 * (1 + abs(low)), rtol=1e-14))
            if excess(low) > 0
            else low
        )


def _log_room(law: RewardLaw, temperature: float, gamma: float) -> float:
    """The eta <= 0 with E (e^eta + gamma (sup r - r)/temperature)^{-1/gamma} = 1; gamma = 1: forward KL.

    lam = sup r + temperature (e^eta - 1)/gamma, plus the temperature in the forward KL's convention. E w is
    at most 1 at eta = 0 and grows as eta falls; eta = -inf is the smallest admissible multiplier.
    """
    if law.supremum == math.inf:
        raise NoTilt(
            "the reward is unbounded above and f'(infinity) is finite: the problem's supremum is infinite; "
            "wanted a bounded reward, or the divergences KL() or ChiSquare()",
            smallest_temperature=math.inf,
        )

    def log_mass(eta: float) -> float:
        def log_weight(r: Tensor) -> Tensor:
            depth = gamma * (law.supremum - r) / temperature
            offset = depth + math.expm1(eta)  # e^eta + depth is 1 + offset: each form where it is accurate
            log_base = torch.where(offset > -0.5, offset.log1p(), (math.exp(eta) + depth).log())
            return -log_base / gamma

        return law.log_expect(log_weight)

    low = -min(gamma, 1.0)
    while (mass := log_mass(low)) < 0 and low > -80:
        low *= 3
    if mass < 0:
        smallest = temperature * math.exp(-gamma * mass)
        raise NoTilt(
            f"no maximiser: E w = {math.exp(mass):.6g} < 1 at the smallest admissible multiplier: the "
            "supremum is approached by laws with an atom where the reward is largest; wanted E w >= 1. "
            f"The smallest admissible temperature is {smallest:.6g}.",
            smallest_temperature=smallest,
        )
    return float(brentq(log_mass, low, 0.0, xtol=1e-14 * gamma, rtol=1e-14)) if log_mass(0.0) < 0 else 0.0


@dataclass(frozen=True)
class Surrogate:
    """The reward temperature * log w(r(x)), whose KL tilt is the f-tilt: (n, *event) -> (n,).

    `multiplier` is lam, `value` the optimum of E_p r - temperature D_f(p || base); `log_bound` bounds log w.
    """

    reward: Any
    temperature: float
    divergence: FDivergence
    multiplier: float
    value: float
    log_bound: float | None

    def log_weight(self, x: Tensor) -> Tensor:
        return self.divergence.log_weight(self.reward(x), self.multiplier, self.temperature)

    def weight(self, x: Tensor) -> Tensor:
        """d(f-tilt)/d(base) at x."""
        return self.divergence.weight(self.reward(x), self.multiplier, self.temperature)

    def __call__(self, x: Tensor) -> Tensor:
        return self.temperature * self.log_weight(x)


def surrogate(
    base: Law, reward: Any, temperature: float, divergence: FDivergence, supremum: float | None = None
) -> Surrogate:
    """The surrogate reward of an f-problem, with its multiplier solved to 1e-12.

    The expectations are sums (DiscreteLaw), quadratures on the line, or the law of the reward for a linear
    one. `supremum` overrides the numerical search for sup r on the line.
    Raises: NoTilt, with the smallest admissible temperature, when no maximiser exists; NoClosedForm for other
    laws.
    """
    check_temperature(temperature)
    if not isinstance(divergence, FDivergence):
        raise BadInput(
            f"saw divergence {divergence!r}; wanted KL(), ForwardKL(), GammaDivergence(gamma) or ChiSquare()"
        )
    law = reward_law(base, reward, supremum)
    lam = divergence.multiplier(law, temperature)

    def gain(r: Tensor) -> Tensor:
        w = divergence.weight(r, lam, temperature)
        return r * w - temperature * divergence.f(w)

    bound = None
    if math.isfinite(law.supremum):
        bound = float(
            divergence.log_weight(torch.tensor(law.supremum, dtype=torch.float64), lam, temperature)
        )
    value = law.expect(gain, law.places(lam - temperature))
    return Surrogate(reward, temperature, divergence, lam, value, bound)


def f_tilt(
    base: Law, reward: Any, temperature: float, divergence: FDivergence, supremum: float | None = None
) -> Law:
    """The maximiser of E_p r - temperature D_f(p || base), base * w(r).

    KL() gives base.tilt; a DiscreteLaw gives a DiscreteLaw; else a TiltedLaw with known normaliser. See
    `surrogate`.
    """
    if isinstance(divergence, KL):
        return base.tilt(reward, temperature)
    solved = surrogate(base, reward, temperature, divergence, supremum)
    if isinstance(base, DiscreteLaw):
        return base.tilt(solved, temperature)
    return TiltedLaw(base, solved.log_weight, log_normalizer=0.0, log_bound=solved.log_bound)
