"""What a noise schedule is. It speaks the noise level s in [0, horizon] only: 0 is data, horizon is noise.

    dX_s = f(s) X_s ds + sqrt(g2(s)) dB_s,    X_s | X_0 = x ~ N(alpha(s) x, h(s) I),    h = sigma^2, h(0) = 0.

Everything follows from two functions of a step from s down to s' <= s,

    decay(s, s') = log alpha(s') - log alpha(s) = -int_{s'}^s f,
    q(s, s') = h(s) - (alpha(s)/alpha(s'))^2 h(s'),

since log alpha(s) = -decay(s, 0) and h(s) = q(s, 0); each schedule gives both in a form free of cancellation.
Floats in, floats out (by `math`); float64 tensors in, float64 tensors of the same shape out, differentiable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdecontrol.errors import check

Level = TypeVar("Level", float, Tensor)
ROUNDING = 1e-12  # relative: how far outside its range a level may lie and still mean the end of the range
LARGEST_DECAY = 300.0  # alpha, its powers and their inverses stay far from underflow and overflow


def functions(x: float | Tensor) -> Any:
    """The module whose exp, expm1, log1p, ... take x: `torch` or `math`; so each formula is written once."""
    return torch if isinstance(x, Tensor) else math


class Schedule(ABC):
    """The law of forward noising: X_s | X_0 = x ~ N(alpha(s) x, h(s) I).

    Shapes: a float gives a float, a float64 tensor a float64 tensor one of its shape; s and s_next broadcast.
    Raises: BadInput for a level outside [0, horizon] by more than rounding (1e-12 horizon; within rounding it
    means the end), for s_next > s, and for tensors that are not float64.
    """

    horizon: float
    smooth = True  # False where f and g2 jump, as those of a table do

    def log_alpha(self, s: Level) -> Level:
        """log alpha(s) = int_0^s f; to rounding, also as s -> 0."""
        s = self._level(s)
        return -self._decay(s, 0.0 * s)

    def alpha(self, s: Level) -> Level:
        """alpha(s), the factor on the data: E[X_s | X_0 = x] = alpha(s) x."""
        log_alpha = self.log_alpha(s)
        return functions(log_alpha).exp(log_alpha)

    def h(self, s: Level) -> Level:
        """h(s) = sigma(s)^2, the variance of X_s given X_0; to relative rounding, also as s -> 0."""
        s = self._level(s)
        return self._variance(s, 0.0 * s)

    def sigma(self, s: Level) -> Level:
        """sigma(s) = sqrt(h(s))."""
        h = self.h(s)
        return functions(h).sqrt(h)

    def f(self, s: Level) -> Level:
        """f(s) = d log alpha / ds, the linear rate of the forward drift f(s) x."""
        return self._f(self._level(s))

    def g2(self, s: Level) -> Level:
        """g2(s) = dh/ds - 2 f h, the square of the forward amplitude."""
        return self._g2(self._level(s))

    @property
    def prior_std(self) -> float:
        """eta: the standard prior is N(0, eta^2 I); 1 where alpha decays, sqrt(h(horizon)) for VE."""
        return 1.0

    def log_snr(self, s: Level) -> Level:
        """log SNR(s) = 2 log(alpha(s)/sigma(s)), strictly decreasing from +inf at s = 0."""
        h = self.h(s)
        log_h = -math.inf if isinstance(h, float) and h == 0 else functions(h).log(h)
        return 2 * self.log_alpha(s) - log_h

    def noise_level_at(self, log_snr: Level) -> Level:
        """The level s with log SNR(s) = log_snr: the inverse of the method `log_snr`, in closed form.

        Accuracy: a few roundings of s and of log SNR.
        Raises: BadInput below log_snr(horizon), the smallest value of this schedule.
        """
        lowest = self.log_snr(self.horizon)
        smallest = log_snr.min().item() if isinstance(log_snr, Tensor) else log_snr
        if not smallest >= lowest - ROUNDING * (1 + abs(lowest)):
            check(False, f"log SNR = {smallest}", f"log SNR >= {lowest}, its value at the horizon of {self}",
                  "This schedule never gets as noisy as that.")
        s = self._inverse(log_snr)
        return s.clamp(max=self.horizon) if isinstance(s, Tensor) else min(s, self.horizon)

    def ratio(self, s: Level, s_next: Level) -> Level:
        """alpha(s)/alpha(s_next) for s_next <= s; in (0, 1]."""
        decay = self._decay(*self._step(s, s_next))
        return functions(decay).exp(-decay)

    def transition_variance(self, s: Level, s_next: Level) -> Level:
        """q = h(s) - ratio^2 h(s_next), the variance of X_s given X_{s_next}; >= 0, without cancellation."""
        return self._variance(*self._step(s, s_next))

    def score_weight(self, s: Level, s_next: Level) -> Level:
        """alpha(s_next) int_{s_next}^s g2(tau)/alpha(tau) dtau; >= 0, without cancellation.

        The weight of a frozen score in the exponential integrator of the reverse equation from s to s_next:
        mean = x / ratio(s, s_next) + score_weight(s, s_next) score. Derived.
        """
        return self._weight(*self._step(s, s_next))

    @abstractmethod
    def _f(self, s: Level) -> Level: ...

    @abstractmethod
    def _g2(self, s: Level) -> Level: ...

    @abstractmethod
    def _decay(self, s: Level, s_next: Level) -> Level: ...

    @abstractmethod
    def _variance(self, s: Level, s_next: Level) -> Level: ...

    @abstractmethod
    def _weight(self, s: Level, s_next: Level) -> Level: ...

    @abstractmethod
    def _inverse(self, log_snr: Level) -> Level: ...

    def _level(self, s: Level) -> Level:
        """s, checked; a level outside by rounding becomes the end of the range."""
        if isinstance(s, Tensor):
            check(s.dtype == torch.float64, f"levels of {s.dtype}", "float64", "Compute levels in float64.")
            if s.numel() == 0 or self._in_range(s.min().item(), s.max().item()):
                return s
            return s.clamp(0.0, self.horizon)
        if type(s) is not float:
            s = number("a noise level", s)
        return s if self._in_range(s, s) else min(max(s, 0.0), self.horizon)

    def _in_range(self, low: float, high: float) -> bool:
        """Whether levels lie in [0, horizon]; BadInput where NaN or outside beyond rounding."""
        if 0.0 <= low <= high <= self.horizon:
            return True
        slack = ROUNDING * self.horizon
        check(-slack <= low <= high <= self.horizon + slack, f"noise levels from {low!r} to {high!r}",
              f"0 <= s <= {self.horizon!r}", "A schedule speaks the noise level s = horizon - t.")
        return False

    def _step(self, s: Level, s_next: Level) -> tuple[Level, Level]:
        """(s, s_next), checked and of one kind."""
        s, s_next = self._level(s), self._level(s_next)
        if isinstance(s, Tensor) or isinstance(s_next, Tensor):
            device = s.device if isinstance(s, Tensor) else s_next.device
            pair = (torch.as_tensor(x, dtype=torch.float64, device=device) for x in (s, s_next))
            s, s_next = torch.broadcast_tensors(*pair)
            ordered = bool((s_next <= s).all())
        else:
            ordered = s_next <= s
        if not ordered:
            check(False, f"a step from s = {s} to s_next = {s_next}", "s_next <= s", "Generation lowers s.")
        return s, s_next


class VariancePreserving(Schedule):
    """h = 1 - alpha^2, so g2 = -2 f; a subclass gives f, decay and the inverse of decay(., 0).

    q = 1 - ratio^2 = -expm1(-2 decay); score weight 2 (alpha(s')/alpha(s) - 1) = 2 expm1(decay);
    1/SNR(s) = exp(2 decay(s, 0)) - 1, hence decay(s, 0) = log1p(1/SNR)/2. Derived.
    """

    @abstractmethod
    def _level_of_decay(self, decay: Level) -> Level:
        """The s with decay(s, 0) = decay."""

    def _g2(self, s: Level) -> Level:
        return -2 * self._f(s)

    def _variance(self, s: Level, s_next: Level) -> Level:
        return -functions(s).expm1(-2 * self._decay(s, s_next))

    def _weight(self, s: Level, s_next: Level) -> Level:
        return 2 * functions(s).expm1(self._decay(s, s_next))

    def _inverse(self, log_snr: Level) -> Level:
        fn = functions(log_snr)
        return self._level_of_decay(fn.log1p(fn.exp(-log_snr)) / 2)


def convert_level(schedule_a: Schedule, s: Level, schedule_b: Schedule) -> tuple[Level, Level]:
    """(s_b, c) with c X^a_s = X^b_{s_b} in law: SNR_b(s_b) = SNR_a(s) and c = alpha_b(s_b)/alpha_a(s).

    X^a_s/alpha_a(s) = X_0 + N(0, 1/SNR), so levels of equal SNR noise the same data up to scale. Derived.
    Raises: BadInput when schedule_b never gets as noisy as schedule_a is at s.
    """
    s_b = schedule_b.noise_level_at(schedule_a.log_snr(s))
    log_scale = schedule_b.log_alpha(s_b) - schedule_a.log_alpha(s)
    return s_b, functions(log_scale).exp(log_scale)


def number(name: str, value: Any) -> float:
    """`value` as a float; BadInput unless it is one real number."""
    check(isinstance(value, int | float) or hasattr(value, "__float__") and getattr(value, "ndim", 1) == 0,
          f"{name} of type {type(value).__name__}", "a real number (or, for levels, a float64 tensor)")
    return float(value)


def make_positive(schedule: Schedule, *names: str) -> None:
    """Check that these fields of a frozen schedule are positive finite numbers, and make them floats."""
    for name in names:
        title = f"{type(schedule).__name__}.{name}"
        value = number(title, getattr(schedule, name))
        check(math.isfinite(value) and value > 0, f"{title} = {value}", "a finite number > 0")
        object.__setattr__(schedule, name, value)


def check_decay(decay: float) -> None:
    """BadInput where alpha(horizon) = exp(-decay) nears underflow."""
    check(decay <= LARGEST_DECAY, f"log alpha(horizon) = {-decay}", f"at least {-LARGEST_DECAY}",
          "Noise less: the prior is already the standard normal to every digit.")
