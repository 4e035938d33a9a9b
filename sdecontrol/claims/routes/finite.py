"""A finite chain made from a problem's process, every path enumerated: the discrete-state route of the CTRL claims.

The coordinate w . Y_t of the label, for the one-dimensional mixture that the data law makes along w, or for an affine
process along w through its mean, at four times; the transition densities between a few states, normalised row by row,
are a Markov chain in its own right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from sdecontrol.claims.base import NotApplicable
from sdecontrol.claims.routes.labels import Subject
from sdecontrol.claims.routes.plain import Cloud, GaussianSum
from sdecontrol.claims.routes.posterior import Clean, gaussian, noised
from sdecontrol.claims.routes.quadrature import Array, log_sum_exp
from sdecontrol.exact.finite_chain import FiniteChain
from sdecontrol.laws import Dirac
from sdecontrol.processes import ReverseProcess

STATES, REACH = 6, 2.0  # states a time, and how many standard deviations they reach out
SHARES = (0.5, 0.2)  # of the variance of the data, what is left of it at the two times between start and end


@dataclass(frozen=True, eq=False)
class Enumerated:
    """A chain of the library, and all of its paths (N, K + 1) with log probabilities (N,) by plain sums."""

    chain: FiniteChain
    nodes: Array  # of the last state, (S,)
    initial: Array
    kernels: Array

    @cached_property
    def paths(self) -> Array:
        return np.array(list(product(range(STATES), repeat=len(self.kernels) + 1)))

    def log_p(self, initial: Array, kernels: Array) -> Array:
        """log probability of every path under a start and kernels given as probabilities: (N,)."""
        steps = [np.log(p[self.paths[:, k], self.paths[:, k + 1]]) for k, p in enumerate(kernels)]
        return np.log(initial[self.paths[:, 0]]) + np.sum(steps, axis=0)

    @cached_property
    def log_reference(self) -> Array:
        return self.log_p(self.initial, self.kernels)

    def log_tilted(self, log_weight: Array) -> tuple[Array, float]:
        """log of w(x_K) P / C for every path, and log C, by one sum over all paths."""
        joint = self.log_reference + log_weight[self.paths[:, -1]]
        log_c = float(log_sum_exp(joint))
        return joint - log_c, log_c

    def ends(self, log_p: Array) -> Array:
        """The law of x_K: (S,)."""
        return np.bincount(self.paths[:, -1], weights=np.exp(log_p), minlength=STATES)

    def log_p_of(self, chain: FiniteChain) -> Array:
        """log probability of every path under another chain of the library."""
        return self.log_p(np.exp(chain.log_initial), np.exp(chain.log_kernels))


@lru_cache(maxsize=4)
def enumerated(subject: Subject) -> Enumerated:
    """Raises NotApplicable unless it is the reverse diffusion of a known law, or affine and not from a point."""
    line = _affine_line(subject) if subject.latent.data is None else _line_of_data(subject)
    nodes, points = zip(*(line.nodes(law) for law in line.laws))
    initial = _normalised(line.laws[0].log_density(points[0]))
    kernels = []
    for k, step in enumerate(line.steps):
        given = [step.given(point[None], np.zeros(1)) for point in points[k]]
        kernels.append(np.stack([_normalised(law.log_density(points[k + 1])) for law in given]))
    stacked = np.stack(kernels)
    return Enumerated(FiniteChain.of(initial, stacked), nodes[-1], initial, stacked)


@dataclass(frozen=True)
class Line:
    """Laws at the chain's times, the transitions between them, and the direction (d,) of the line of states."""

    laws: list[GaussianSum]
    steps: list[Clean]
    w: Array

    def nodes(self, law: GaussianSum) -> tuple[Array, Array]:
        """Values of w . y at the states (STATES,), and the states (STATES, d): on the line through the mean."""
        along = np.linspace(-REACH, REACH, STATES) * math.sqrt(self.w @ law.covariance @ self.w)
        return self.w @ law.mean + along, law.mean + along[:, None] * self.w


def _line_of_data(subject: Subject) -> Line:
    """w . Y of the data noised to every level: a mixture in one dimension."""
    latent, w, process = subject.latent, subject.linear.w, subject.latent.process
    assert isinstance(process, ReverseProcess)
    parts = [(c.log_weights, c.means @ w, float(w @ c.covariance @ w)) for c in latent.known_data.clouds]
    line = GaussianSum(tuple(Cloud(p, m[:, None], np.array([[v]])) for p, m, v in parts))
    size, horizon = float(line.covariance[0, 0]), process.horizon
    inner = [process.schedule.noise_level_at(math.log((1 - share) / (share * size))) for share in SHARES]
    levels = [horizon, *inner, 0.0]
    laws = [noised(line, *latent.level(horizon - s)) if s > 0 else line for s in levels]
    steps = [
        Clean.of(law, process.schedule.ratio(s, s_next), process.schedule.transition_variance(s, s_next))
        for s, s_next, law in zip(levels[:-1], levels[1:], laws[1:])
    ]
    return Line(laws, steps, np.ones(1))


def _affine_line(subject: Subject) -> Line:
    """The process itself at times in equal parts, on the line along w through its mean."""
    times = np.linspace(0.0, subject.latent.process.horizon, len(SHARES) + 2).tolist()
    if isinstance(subject.latent.process.initial_law(0.0), Dirac):
        raise NotApplicable("from a point there is one state at the start")
    laws = [gaussian(*subject.moments(t)) for t in times]
    return Line(laws, [subject.step(*pair) for pair in zip(times[:-1], times[1:])], subject.linear.w)


def _normalised(log_p: Array) -> Array:
    return np.exp(log_p - log_sum_exp(log_p))
