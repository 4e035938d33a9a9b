"""The law of a reward r(X) under a base law, as far as expectations of functions of r go."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, check
from sdecontrol.laws.base import Law
from sdecontrol.laws.discrete import DiscreteLaw
from sdecontrol.laws.line import Line
from sdecontrol.rewards import as_quadratic

_ZOOMS = 200
_OCTAVES = 4  # beyond the landmarks, over which a reward's growth is judged


class RewardLaw(ABC):
    """Expectations of functions of the reward; `supremum` is sup r on the support, possibly infinite."""

    supremum: float

    @abstractmethod
    def expect(self, function: Callable[[Tensor], Tensor], points: tuple[float, ...] = ()) -> float:
        """E function(r(X)); `points` are places on the line where the integrand is known to be rough."""

    @abstractmethod
    def log_expect(self, log_function: Callable[[Tensor], Tensor]) -> float:
        """log E exp(log_function(r(X)))."""

    def places(self, level: float) -> tuple[float, ...]:
        """Where the reward crosses a level, if that is known."""
        return ()


class RewardsOfAtoms(RewardLaw):
    def __init__(self, values: Tensor, weights: Tensor):
        held = weights > 0
        self._values, self._weights = values[held].to(torch.float64), weights[held]
        self.supremum = float(self._values.max())

    def expect(self, function: Callable[[Tensor], Tensor], points: tuple[float, ...] = ()) -> float:
        return float(self._weights @ function(self._values))

    def log_expect(self, log_function: Callable[[Tensor], Tensor]) -> float:
        return float((self._weights.log() + log_function(self._values)).logsumexp(0))


class RewardsOnLine(RewardLaw):
    """r(X) for X on the line; sup r is searched on the panels and refined around the best point."""

    def __init__(self, law: Law, reward: Callable[[Tensor], Tensor], supremum: float | None):
        self._line = Line(lambda x: law.log_prob(x[:, None]), *law.landmarks())
        self._function = reward
        best, found = _supremum(self._value, self._line.edges)
        self._best = (best,) if math.isfinite(best) else ()
        self.supremum = found if supremum is None else supremum

    def _value(self, x: Tensor) -> Tensor:
        return self._function(x[:, None]).to(torch.float64)

    def _reward(self, x: Tensor) -> Tensor:
        """r(x), where what lies above the supremum by rounding is the supremum."""
        r = self._value(x)
        over = float(r.max()) - self.supremum
        check(
            over <= 1e-12 * (1 + abs(self.supremum)),
            f"a reward {over:.3g} above its supremum {self.supremum:.12g}",
            "the least upper bound of the reward",
            "Pass supremum=...",
        )
        return r.clamp(max=self.supremum)

    def expect(self, function: Callable[[Tensor], Tensor], points: tuple[float, ...] = ()) -> float:
        return self._line.expect(lambda x: function(self._reward(x)), self._best + points)

    def log_expect(self, log_function: Callable[[Tensor], Tensor]) -> float:
        def integrand(x: Tensor) -> tuple[Tensor, Tensor]:
            return self._line.log_density(x) - self._line.log_normalizer + log_function(
                self._reward(x)
            ), torch.ones_like(x)

        return math.log(self._line.integrate(integrand, self._best))


def _supremum(reward: Callable[[Tensor], Tensor], edges: Tensor) -> tuple[float, float]:
    """(argmax, sup) of a reward on the line; (inf, inf) when it keeps growing over the outermost octaves.

    A reward that grows towards a finite limit (its increments shrink from octave to octave) is extrapolated
    to it.
    """
    middle, half = (edges[0] + edges[-1]) / 2, (edges[-1] - edges[0]) / 2
    octaves = half * 2.0 ** torch.arange(-_OCTAVES, 1.0, dtype=torch.float64)
    values = reward(torch.cat([middle + octaves, middle - octaves])).reshape(2, -1)
    growth = values.diff()
    grows = (growth > 0).all(1)
    ratios = growth[:, 1:] / torch.where(grows[:, None], growth[:, :-1], 1.0)
    if bool((grows & (ratios >= 0.75).all(1)).any()):
        return math.inf, math.inf
    last = ratios[:, -1]
    converges = grows & (last < 0.75)
    limit = float((values[:, -1] + torch.where(converges, growth[:, -1] * last / (1 - last), 0.0)).max())
    best, top = _peak(reward, edges)
    return (best, top) if top >= limit else (math.inf, limit)


def _peak(reward: Callable[[Tensor], Tensor], edges: Tensor) -> tuple[float, float]:
    """The best of 32 points a panel, then of ever finer points around the best one."""
    steps = torch.linspace(0, 1, 33, dtype=torch.float64)[:-1]
    x = torch.cat([(edges[:-1, None] + edges.diff()[:, None] * steps).reshape(-1), edges[-1:]])
    for _ in range(_ZOOMS):
        values = reward(x)
        i = int(values.argmax())
        best, low, high = x[i], x[max(i - 1, 0)], x[min(i + 1, len(x) - 1)]
        if float(high - low) <= 1e-15 * abs(float(best)):
            break
        x = torch.cat([low + (high - low) * steps, best[None], high[None]]).unique()
    return float(best), float(values[i])


def reward_law(base: Law, reward: Any, supremum: float | None = None) -> RewardLaw:
    """The law of reward(X), X ~ base; NoClosedForm unless discrete, on the line, or of a linear reward."""
    if isinstance(base, DiscreteLaw):
        return RewardsOfAtoms(reward(base.points), base.weights)
    if base.event_shape == (1,):
        return RewardsOnLine(base, reward, supremum)
    quadratic = as_quadratic(reward)
    if quadratic is not None and quadratic.is_linear and bool(quadratic.linear.any()):
        return RewardsOnLine(base.along(quadratic.linear), lambda s: s[:, 0] + quadratic.constant, supremum)
    raise NoClosedForm(
        f"the law of {type(reward).__name__} under {type(base).__name__} on events {base.event_shape} is "
        f"not known; it is for "
        "laws on the line, discrete laws and linear rewards. Use DiscreteLaw(base.sample(n, noise)) for "
        "an empirical answer."
    )
