"""Brute force for affine chains, in numpy: one big standard normal vector zeta = (y, z_1, ..., z_K).

x_0 = m_0 + root y, x_{k+1} = M_k x_k + m_k + N_k z_{k+1}, so every x_k is affine in zeta, every quadratic reward and
every log ratio is a quadratic c + g . zeta - zeta' K zeta / 2, and all expectations are determinants. Nothing is shared
with the library but the steps themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Form:
    """c + g . zeta - zeta' K zeta / 2."""

    K: np.ndarray
    g: np.ndarray
    c: float

    def __add__(self, other):
        return Form(self.K + other.K, self.g + other.g, self.c + other.c)

    def scaled(self, a):
        return Form(a * self.K, a * self.g, a * self.c)

    def log_expectation(self):
        h = np.eye(len(self.g)) + self.K
        if np.linalg.eigvalsh(h)[0] <= 0:
            return math.inf
        return self.c + self.g @ np.linalg.solve(h, self.g) / 2 - np.linalg.slogdet(h)[1] / 2

    def tilted(self):
        """Mean and covariance of zeta under e^form."""
        covariance = np.linalg.inv(np.eye(len(self.g)) + self.K)
        return covariance @ self.g, covariance

    def mean(self, mean, covariance):
        return self.c + self.g @ mean - (mean @ self.K @ mean + np.trace(self.K @ covariance)) / 2


@dataclass
class Joint:
    """The maps zeta -> x_k (G[k], h[k]) of a chain given as lists of (M, m, N)."""

    steps: list
    mean: np.ndarray
    root: np.ndarray
    G: list = field(default_factory=list)
    h: list = field(default_factory=list)

    def __post_init__(self):
        d = len(self.mean)
        self.size = d * (len(self.steps) + 1)
        first = np.zeros((d, self.size))
        first[:, :d] = self.root
        self.G, self.h = [first], [np.asarray(self.mean, dtype=float)]
        for k, (M, m, N) in enumerate(self.steps):
            self.G.append(M @ self.G[-1] + N @ self.noise(k))
            self.h.append(M @ self.h[-1] + m)

    def noise(self, k):
        """zeta -> z_{k+1}."""
        d = len(self.mean)
        pick = np.zeros((d, self.size))
        pick[:, d * (k + 1) : d * (k + 2)] = np.eye(d)
        return pick

    def quadratic(self, k, K, g, c=0.0):
        """The reward c + g . x_k - x_k' K x_k / 2 as a form in zeta."""
        G, h = self.G[k], self.h[k]
        return Form(G.T @ K @ G, G.T @ (g - K @ h), c + g @ h - h @ K @ h / 2)

    def log_ratio(self, k, B, b, dt):
        """sqrt(dt) u . z - dt |u|^2 / 2 with u = B x_k + b and z = z_{k+1}."""
        U, u = B @ self.G[k], B @ self.h[k] + b
        P = self.noise(k) * math.sqrt(dt)
        cross = U.T @ P
        return Form(dt * U.T @ U - cross - cross.T, P.T @ u - dt * U.T @ u, -dt * u @ u / 2)

    def law(self, k, zeta_mean, zeta_covariance):
        return self.G[k] @ zeta_mean + self.h[k], self.G[k] @ zeta_covariance @ self.G[k].T

    @property
    def zero(self):
        return Form(np.zeros((self.size, self.size)), np.zeros(self.size), 0.0)


def standard_kl(mean, covariance):
    """KL(N(mean, covariance) || N(0, I))."""
    return (np.trace(covariance) - len(mean) + mean @ mean - np.linalg.slogdet(covariance)[1]) / 2


def joint_of(process, kernel, grid, initial=None):
    """The library's steps, and nothing else of it, as a Joint."""
    times = [float(t) for t in grid.resolve(process).times]
    steps = [kernel.affine_step(process, a, b) for a, b in zip(times[:-1], times[1:])]
    law = process.initial_law(times[0]) if initial is None else initial
    values, vectors = np.linalg.eigh(law.covariance.numpy())
    root = vectors * np.sqrt(np.clip(values, 0, None))
    arrays = [(s.matrix.numpy(), s.offset.numpy(), s.noise.numpy()) for s in steps]
    return Joint(arrays, law.mean.numpy(), root), np.diff(times), times
