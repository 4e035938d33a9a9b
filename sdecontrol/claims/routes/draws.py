"""Draws of the optimal process for exact scores at many noise levels, without time steps; integrals in time.

Under Q* the path is the tilted data law noised: X ~ p^r, then Y_t by the forward transition from level to level. Where
the start is not the noised data law, paths carry the weight p_noise/p_T at t = 0 (derived).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sdecontrol.claims.base import EPS, NotApplicable
from sdecontrol.claims.routes.latent import Latent
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.processes import ReverseProcess

NODES = 17  # noise levels of a rule in time
_LAST_SHARE = 1e-10  # where the rule ends instead of at noise level 0


class TimeRule:
    """Clenshaw-Curtis in time, in the clock of the posterior variance; `half` is the rule on every other node.

    What the two rules differ by bounds the error.
    """

    def __init__(self, latent: Latent, count: int = NODES):
        process = latent.process
        if not isinstance(process, ReverseProcess):
            raise NotApplicable("the rule in time needs a noise schedule")
        schedule, size = process.schedule, latent.size
        high, low = latent.share(0.0), _LAST_SHARE
        x, self._weights = clenshaw_curtis(count)
        self._half = np.zeros(count)
        self._half[::2] = clenshaw_curtis(count // 2 + 1)[1]
        levels = [process.horizon, *(latent.level_at_share(low + (high - low) * (1 - u)) for u in x[1:])]
        self.times = [process.horizon - s for s in levels]
        a, h, g2 = (np.array([f(s) for s in levels]) for f in (schedule.alpha, schedule.h, schedule.g2))
        gains = g2 * (a / (a**2 * size + h)) ** 2 * size
        self._speed = (high - low) / gains

    def combine(self, values: Sequence[Array]) -> tuple[Array, Array]:
        """int values dt over [0, horizon] by the rule and by its half: values (count, ...) -> (...)."""
        stacked = np.stack(values) * self._speed.reshape(-1, *(1,) * np.ndim(values[0]))
        return np.tensordot(self._weights, stacked, 1), np.tensordot(self._half, stacked, 1)

    def integrate(self, rate: Callable[[float], float]) -> tuple[float, float]:
        """int rate dt and the error of the rule."""
        rates = [np.asarray(rate(t)) for t in self.times]
        full, half = self.combine(rates)
        left_out = abs(float(rates[-1]) * self._speed[-1]) * _LAST_SHARE
        return float(full), abs(float(full - half)) + left_out + 1e4 * EPS * abs(float(full))


class OptimalDraws:
    """n paths of the optimal process at the times of a rule, in latent coordinates; t = 0 first.

    states: (n, d) a time; clean (n, d): the draws of Y_T; weights (n,), of mean 1.
    """

    def __init__(self, latent: Latent, n: int, rng: np.random.Generator):
        self.rule = TimeRule(latent)
        process = latent.process
        assert isinstance(process, ReverseProcess)
        tilt = latent.known_data.tilt(latent.rho)
        self.clean = tilt.law.draw(n, rng)
        z, s = self.clean, 0.0
        states = []
        for t in reversed(self.rule.times):
            s_next = process.noise_level(t)
            ratio, q = process.schedule.ratio(s_next, s), process.schedule.transition_variance(s_next, s)
            z, s = ratio * z + math.sqrt(q) * rng.standard_normal(z.shape), s_next
            states.append(z)
        self.states = states[::-1]
        if latent.matched:
            self.weights = np.ones(n)
        else:
            log_c, _ = latent.log_normalizer()
            noise = latent.noised(latent.known_data, 0.0)
            ratio_at = latent.start.log_density(self.states[0]) - noise.log_density(self.states[0])
            self.weights = np.exp(ratio_at + tilt.log_mass - log_c)

    def energy(self, control: Callable[[float, Array], Array]) -> tuple[Array, float]:
        """int |u|^2 dt / 2 along every path, (n,), and the error of the rule in its mean."""
        squares = [(control(t, z) ** 2).sum(1) / 2 for t, z in zip(self.rule.times, self.states)]
        full, half = self.rule.combine(squares)
        return full, abs(float(np.mean(self.weights * (full - half))))


def clenshaw_curtis(count: int) -> tuple[Array, Array]:
    """Nodes (ascending) and weights on [0, 1] for an odd number of nodes."""
    n = count - 1
    k = np.arange(count)
    j = np.arange(1, n // 2 + 1)
    factor = np.where(j == n // 2, 1.0, 2.0) / (4 * j**2 - 1)
    weights = (1 - np.cos(2 * np.pi * np.outer(k, j) / n) @ factor) * 2 / n
    weights[[0, -1]] /= 2
    return (1 - np.cos(np.pi * k / n)) / 2, weights / 2


def extrapolated(values: Sequence[float]) -> tuple[float, float]:
    """The limit of values at steps h, h/2, h/4, ... (errors in powers of h), and the most that the last steps changed.

    The changes are two: by the highest power removed, and by the finest value added.
    """
    columns = [np.asarray(values, dtype=np.float64)]
    for power in range(1, len(values)):
        column = columns[-1]
        columns.append((2**power * column[1:] - column[:-1]) / (2**power - 1))
    limit = float(columns[-1][-1])
    return limit, max(abs(limit - float(change)) for change in columns[-2])
