"""A finite chain made from a problem's process, every path enumerated: the discrete-state route of the CTRL claims.

The coordinate w . Y_t of the label, for the one-dimensional mixture that the data law makes along w, at four times; the
transition densities between a few states, normalised row by row, are a Markov chain in its own right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from sdecontrol.claims.routes.labels import Subject
from sdecontrol.claims.routes.plain import Cloud, GaussianSum
from sdecontrol.claims.routes.posterior import Clean, noised
from sdecontrol.claims.routes.quadrature import Array, log_sum_exp
from sdecontrol.exact.finite_chain import FiniteChain
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
    """Raises NotApplicable unless the process is the reverse diffusion of a known law."""
    latent, w = subject.latent, subject.linear.w
    data, process = latent.known_data, latent.process
    assert isinstance(process, ReverseProcess)
    parts = [(c.log_weights, c.means @ w, float(w @ c.covariance @ w)) for c in data.clouds]
    line = GaussianSum(tuple(Cloud(p, m[:, None], np.array([[v]])) for p, m, v in parts))
    size, horizon = float(line.covariance[0, 0]), process.horizon
    levels = [process.schedule.noise_level_at(math.log((1 - share) / (share * size))) for share in SHARES]
    times = [0.0, *(horizon - s for s in levels), horizon]
    laws = [noised(line, *latent.level(t)) if t < process.horizon else line for t in times]
    nodes = [
        law.mean[0] + np.linspace(-REACH, REACH, STATES) * np.sqrt(law.covariance[0, 0]) for law in laws
    ]
    initial = _normalised(laws[0].log_density(nodes[0][:, None]))
    kernels = []
    for k, (before, after) in enumerate(zip(times[:-1], times[1:])):
        s, s_next = process.noise_level(before), process.noise_level(after)
        ratio, q = process.schedule.ratio(s, s_next), process.schedule.transition_variance(s, s_next)
        clean = Clean.of(laws[k + 1], ratio, q)
        given = [clean.given(node[None, None], np.zeros(1)) for node in nodes[k]]
        kernels.append(np.stack([_normalised(law.log_density(nodes[k + 1][:, None])) for law in given]))
    stacked = np.stack(kernels)
    return Enumerated(FiniteChain.of(initial, stacked), nodes[-1], initial, stacked)


def _normalised(log_p: Array) -> Array:
    return np.exp(log_p - log_sum_exp(log_p))
