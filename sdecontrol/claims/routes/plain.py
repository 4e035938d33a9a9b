"""Finite sums of Gaussians and their exponential tilts in plain numpy: the second route of the static claims.

Nothing here calls the library's laws. Masses come from quadrature, tilted means and covariances from precisions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from sdecontrol.claims.base import NotApplicable
from sdecontrol.claims.routes.quadrature import (
    LOG_2PI,
    SPACING,
    Array,
    NormalLine,
    exponential_masses,
    exponential_moments,
    log_sum_exp,
)
from sdecontrol.laws import Gaussian, GaussianMixture, Isotropic, Law, Subspace


class Quadric(NamedTuple):
    """q(x) = constant + linear . x - x' curvature x / 2."""

    constant: float
    linear: Array
    curvature: Array

    def __call__(self, x: Array) -> Array:
        return self.constant + x @ self.linear - ((x @ self.curvature) * x).sum(-1) / 2

    def times(self, factor: float) -> Quadric:
        return Quadric(factor * self.constant, factor * self.linear, factor * self.curvature)


@dataclass(frozen=True)
class Cloud:
    """sum_j e^{log_weights_j} N(means_j, covariance): (n,), (n, d), (d, d)."""

    log_weights: Array
    means: Array
    covariance: Array

    def log_terms(self, x: Array) -> Array:
        """log of each term at points (m, d): (m, n)."""
        factor = scipy.linalg.cholesky(self.covariance, lower=True)
        whiten = lambda v: scipy.linalg.solve_triangular(factor, v.T, lower=True).T  # noqa: E731
        z, c = whiten(x), whiten(self.means)
        square = (z * z).sum(1)[:, None] + (c * c).sum(1) - 2 * z @ c.T
        return self.log_weights - square / 2 - np.log(np.diag(factor)).sum() - len(factor) * LOG_2PI / 2

    def tilted(self, q: Quadric, spacing: float) -> tuple[Cloud, Array]:
        """The terms times e^q, and the mean of q under each: by quadrature in the coordinates that diagonalise q."""
        log_moments, means_of_q = exponential_moments(*self._along(q), spacing)
        at_means = q(self.means)
        precision = scipy.linalg.inv(self.covariance)
        covariance = scipy.linalg.inv(precision + q.curvature)
        means = (self.means @ precision + q.linear) @ covariance
        moved = Cloud(self.log_weights + at_means + log_moments.sum(1), means, (covariance + covariance.T) / 2)
        return moved, at_means + means_of_q.sum(1)

    def log_masses(self, q: Quadric, spacing: float) -> Array:
        """log of the mass of each term times e^q: (n,)."""
        return self.log_weights + q(self.means) + exponential_masses(*self._along(q), spacing).sum(1)

    def _along(self, q: Quadric) -> tuple[Array, Array]:
        """Slopes and bends (n, d) of q about the means, in the coordinates that diagonalise it."""
        values, vectors = scipy.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(values)
        bends, turn = scipy.linalg.eigh(root.T @ q.curvature @ root)
        if bends[0] <= -1:
            raise NotApplicable(
                f"E exp(reward/temperature) is infinite: eigenvalue {1 + bends[0]:.3g} of the tilt's precision"
            )
        slopes = (q.linear - self.means @ q.curvature) @ (root @ turn)
        return slopes, np.broadcast_to(bends, slopes.shape)


@dataclass(frozen=True)
class GaussianSum:
    """A probability law sum_i w_i N(m_i, S_i), grouped into clouds of equal covariance."""

    clouds: tuple[Cloud, ...]

    @property
    def dim(self) -> int:
        return self.clouds[0].means.shape[1]

    @cached_property
    def weights(self) -> Array:
        return np.exp(np.concatenate([c.log_weights for c in self.clouds]))

    @property
    def mean(self) -> Array:
        return self.weights @ np.concatenate([c.means for c in self.clouds])

    @property
    def covariance(self) -> Array:
        within = sum(np.exp(c.log_weights).sum() * c.covariance for c in self.clouds)
        gaps = np.concatenate([c.means for c in self.clouds]) - self.mean
        return within + (gaps * self.weights[:, None]).T @ gaps

    @cached_property
    def condition(self) -> float:
        """The worst condition number of the covariances."""
        return max(float(np.linalg.cond(c.covariance)) for c in self.clouds)

    def mean_of(self, q: Quadric) -> float:
        """E q, from the first two moments."""
        trace = lambda c: float((q.curvature * c.covariance).sum())  # noqa: E731
        return float(sum(np.exp(c.log_weights) @ (q(c.means) - trace(c) / 2) for c in self.clouds))

    def log_density(self, x: Array) -> Array:
        """(m, d) -> (m,)."""
        parts = np.array_split(x, 1 + len(x) * len(self.weights) // 2**21)
        return np.concatenate([log_sum_exp(np.hstack([c.log_terms(p) for c in self.clouds]), axis=1) for p in parts])

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """(n, d) independent draws."""
        counts = rng.multinomial(n, self.weights / self.weights.sum())
        x, start = [], 0
        for cloud in self.clouds:
            rows = np.repeat(np.arange(len(cloud.means)), counts[start : start + len(cloud.means)])
            start += len(cloud.means)
            root = scipy.linalg.cholesky(cloud.covariance, lower=True)
            x.append(cloud.means[rows] + rng.standard_normal((len(rows), self.dim)) @ root.T)
        return rng.permutation(np.concatenate(x))

    def along(self, direction: Array) -> NormalLine:
        """The law of direction . X."""
        stds = [np.full(len(c.means), math.sqrt(direction @ c.covariance @ direction)) for c in self.clouds]
        return NormalLine(
            self.weights, np.concatenate([c.means @ direction for c in self.clouds]), np.concatenate(stds)
        )

    def tilt(self, q: Quadric) -> Tilt:
        """The law times e^q. Raises NotApplicable where E e^q is infinite."""
        moved, means_of_q = zip(*(c.tilted(q, SPACING) for c in self.clouds))
        log_mass = float(log_sum_exp(np.concatenate([c.log_weights for c in moved])))
        law = GaussianSum(tuple(Cloud(c.log_weights - log_mass, c.means, c.covariance) for c in moved))
        return Tilt(q, log_mass, float(law.weights @ np.concatenate(means_of_q)), law)

    def log_mass(self, q: Quadric, spacing: float) -> float:
        """log E e^q by a rule of another spacing."""
        return float(log_sum_exp(np.concatenate([c.log_masses(q, spacing) for c in self.clouds])))


class Tilt(NamedTuple):
    """law = base e^q / E_base e^q, log_mass = log E_base e^q by quadrature, mean_q = E_law q."""

    q: Quadric
    log_mass: float
    mean_q: float
    law: GaussianSum

    @property
    def kl(self) -> float:
        """KL(law || base)."""
        return self.mean_q - self.log_mass


class Frame(NamedTuple):
    """x = offset + basis u: (D,), (D, d)."""

    basis: Array
    offset: Array

    def lift(self, u: Array) -> Tensor:
        """(n, d) -> (n, D), as the library takes it."""
        return torch.as_tensor(self.offset + u @ self.basis.T)

    def restrict(self, q: Quadric) -> Quadric:
        """q on the latent coordinates."""
        linear = self.basis.T @ (q.linear - q.curvature @ self.offset)
        return Quadric(float(q(self.offset)), linear, self.basis.T @ q.curvature @ self.basis)

    def moments(self, law: Law) -> tuple[Array, Array]:
        """Mean (d,) and covariance (d, d) of a law on the subspace, in these coordinates."""
        inner, basis = (law.latent, law.basis.numpy()) if isinstance(law, Subspace) else (law, None)
        turn = self.basis.T if basis is None else self.basis.T @ basis
        return self.basis.T @ (law.mean.numpy() - self.offset), turn @ inner.covariance.numpy() @ turn.T


def whole(dim: int) -> Frame:
    return Frame(np.eye(dim), np.zeros(dim))


def latent_data(law: Law) -> tuple[GaussianSum, Frame]:
    """The data law as a Gaussian sum, and where it lives."""
    frame = whole(law.dim)
    if isinstance(law, Subspace):
        frame, law = Frame(law.basis.numpy(), law.offset.numpy()), law.latent
    if isinstance(law, GaussianMixture):
        parts = zip(law.log_weights.numpy(), law.means.numpy(), law.covariances.numpy())
        return GaussianSum(tuple(Cloud(np.array([w]), m[None], c) for w, m, c in parts)), frame
    if isinstance(law, Gaussian | Isotropic) and len(law.event_shape) == 1:
        return GaussianSum((Cloud(np.zeros(1), law.mean.numpy()[None], law.covariance.numpy()),)), frame
    raise NotApplicable(f"the second route knows Gaussian data, mixtures and subspaces, not {type(law).__name__}")
