"""The schedules with formulas: VP, SubVP, VE and Cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from sdecontrol.errors import check
from sdecontrol.schedules.base import (
    LARGEST_DECAY,
    Level,
    Schedule,
    VariancePreserving,
    check_decay,
    functions,
    make_positive,
    number,
)


@dataclass(frozen=True)
class _LinearRate(Schedule):
    """f = -beta/2 with beta(s) = beta_min + (beta_max - beta_min) s/horizon."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    horizon: float = 1.0

    def __post_init__(self) -> None:
        make_positive(self, "beta_min", "beta_max", "horizon")
        check(self.beta_min <= self.beta_max, f"beta_min = {self.beta_min}, beta_max = {self.beta_max}",
              "beta_min <= beta_max")
        check_decay(self._decay(self.horizon, 0.0))

    @cached_property
    def _slope(self) -> float:
        return (self.beta_max - self.beta_min) / self.horizon

    def _f(self, s: Level) -> Level:
        return -(self.beta_min + self._slope * s) / 2

    def _decay(self, s: Level, s_next: Level) -> Level:
        return (s - s_next) * (self.beta_min + self._slope * (s + s_next) / 2) / 2

    def _level_of_decay(self, decay: Level) -> Level:
        root = functions(decay).sqrt(self.beta_min**2 + 4 * self._slope * decay)
        return 4 * decay / (self.beta_min + root)


class VP(_LinearRate, VariancePreserving):
    """Variance preserving: g2 = beta, f = -beta/2, alpha = exp(-int_0^s beta / 2), h = 1 - alpha^2.

    beta(s) = beta_min + (beta_max - beta_min) s/horizon, constant when both are equal.
    Raises: BadInput unless 0 < beta_min <= beta_max, horizon > 0 and log alpha(horizon) >= -300.
    """


class SubVP(_LinearRate):
    """Sub-variance-preserving: VP's alpha = exp(-B/2), B = int_0^s beta, with h = (1 - e^{-B})^2.

    g2 = beta (1 - e^{-2B}); q = (1 - e^{-(B-B')}) (1 - e^{-(B+B')}); alpha/sigma = 1/(2 sinh(B/2));
    score weight (2/3) [(w-1)^2 (3w^2 + 2w + 1)/w^3 + (1 - e^{-2B'}) (1 - w^-3)], w = e^{(B-B')/2}. Derived.
    Raises: as VP.
    """

    def _g2(self, s: Level) -> Level:
        return 2 * self._f(s) * functions(s).expm1(-4 * self._decay(s, 0.0 * s))

    def _variance(self, s: Level, s_next: Level) -> Level:
        expm1 = functions(s).expm1
        total = self._decay(s, 0.0 * s) + self._decay(s_next, 0.0 * s_next)
        return expm1(-2 * self._decay(s, s_next)) * expm1(-2 * total)

    def _weight(self, s: Level, s_next: Level) -> Level:
        fn, decay = functions(s), self._decay(s, s_next)
        w = fn.exp(decay)
        from_zero = fn.expm1(-decay) ** 2 * (3 * w + 2 + 1 / w)
        return 2 / 3 * (from_zero + fn.expm1(-4 * self._decay(s_next, 0.0 * s_next)) * fn.expm1(-3 * decay))

    def _inverse(self, log_snr: Level) -> Level:
        fn = functions(log_snr)
        return self._level_of_decay(fn.asinh(fn.exp(-log_snr / 2) / 2))


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding: f = 0, alpha = 1, h(s) = sigma_min^2 ((sigma_max/sigma_min)^(2 s/horizon) - 1).

    h(0) = 0, so the data are not noised by sigma_min; eta^2 = h(horizon) = sigma_max^2 - sigma_min^2.
    q = score weight = h(s) - h(s').
    Raises: BadInput unless 0 < sigma_min < sigma_max and horizon > 0.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    horizon: float = 1.0

    def __post_init__(self) -> None:
        make_positive(self, "sigma_min", "sigma_max", "horizon")
        check(self.sigma_min < self.sigma_max, f"sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}",
              "sigma_min < sigma_max")

    @cached_property
    def _rate(self) -> float:
        return 2 * math.log(self.sigma_max / self.sigma_min) / self.horizon

    @property
    def prior_std(self) -> float:
        return self.sigma(self.horizon)

    def _f(self, s: Level) -> Level:
        return 0.0 * s

    def _g2(self, s: Level) -> Level:
        return self.sigma_min**2 * self._rate * functions(s).exp(self._rate * s)

    def _decay(self, s: Level, s_next: Level) -> Level:
        return 0.0 * (s - s_next)

    def _variance(self, s: Level, s_next: Level) -> Level:
        fn = functions(s)
        return self.sigma_min**2 * fn.exp(self._rate * s_next) * fn.expm1(self._rate * (s - s_next))

    def _weight(self, s: Level, s_next: Level) -> Level:
        return self._variance(s, s_next)

    def _inverse(self, log_snr: Level) -> Level:
        fn = functions(log_snr)
        return fn.log1p(fn.exp(-log_snr) / self.sigma_min**2) / self._rate


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """alpha(s) = cos(theta(s))/cos(theta_0), h = 1 - alpha^2, with the angle theta linear in s.

    theta_0 = (pi/2) offset/(1 + offset) as in Nichol and Dhariwal (2102.09672), whose angle ends at pi/2,
    where alpha = 0 and g2 is infinite. Here it ends at the theta with log SNR(horizon) = `log_snr_min`. So
    the cap is part of alpha: f = -theta' tan(theta) and g2 = 2 theta' tan(theta) belong to the capped alpha
    exactly, and nothing is clipped. The default -20 means alpha(horizon) = 4.5e-5, about the end of their
    table of 1000 steps with beta <= 0.999, and slows the angle by a factor 1 - 3e-5.
    With the turn delta from s' to s, decay = log1p(sin(delta) (tan(theta(s)) - tan(delta/2))); its inverse is
    a quadratic equation for tan(delta/2). Derived.
    Raises: BadInput unless offset > 0, -600 <= log_snr_min <= 0 and horizon > 0.
    """

    offset: float = 0.008
    log_snr_min: float = -20.0
    horizon: float = 1.0

    def __post_init__(self) -> None:
        make_positive(self, "offset", "horizon")
        object.__setattr__(self, "log_snr_min", number("log_snr_min", self.log_snr_min))
        check(-2 * LARGEST_DECAY <= self.log_snr_min <= 0, f"log_snr_min = {self.log_snr_min}",
              "-600 <= log_snr_min <= 0", "The cosine meets alpha = 0 at an infinite rate: say where to end.")

    @cached_property
    def _theta_0(self) -> float:
        return math.pi / 2 * self.offset / (1 + self.offset)

    @cached_property
    def _phi_end(self) -> float:
        """pi/2 - theta(horizon), where alpha^2 = 1/(1 + exp(-log_snr_min))."""
        alpha = math.exp(-math.log1p(math.exp(-self.log_snr_min)) / 2)
        return math.asin(alpha * math.cos(self._theta_0))

    @cached_property
    def _turn(self) -> float:
        """theta' = d theta / ds."""
        return (math.pi / 2 / (1 + self.offset) - self._phi_end) / self.horizon

    def _tan_theta(self, s: Level) -> Level:
        """tan(theta(s)) = sin(theta(s))/sin(phi(s)), each angle from its own small end: accurate at both."""
        sin = functions(s).sin
        return sin(self._theta_0 + self._turn * s) / sin(self._phi_end + self._turn * (self.horizon - s))

    def _f(self, s: Level) -> Level:
        return -self._turn * self._tan_theta(s)

    def _decay(self, s: Level, s_next: Level) -> Level:
        fn, delta = functions(s), self._turn * (s - s_next)
        return fn.log1p(fn.sin(delta) * (self._tan_theta(s) - fn.tan(delta / 2)))

    def _level_of_decay(self, decay: Level) -> Level:
        fn, slope = functions(decay), math.tan(self._theta_0)
        loss = -fn.expm1(-decay)
        half = fn.atan(loss / (slope + fn.sqrt(slope**2 + loss * (2 - loss))))
        return 2 * half / self._turn
