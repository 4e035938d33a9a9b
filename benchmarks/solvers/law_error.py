"""How far the law of some samples is from a data law: W2 of Gaussians, sliced W2 of anything else, relative.

A law is described by a vector of features such that the squared distance to the data law is the squared Euclidean
distance of the vectors. Sampled features are noisy, and the square of a noisy vector is biased upwards; so the samples
come in independent batches, and the products of *different* batches are averaged: unbiased up to the bias of one
batch's features, with a standard error from leaving out one batch at a time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from scipy.special import ndtr

import sdecontrol as sc

BINS = 256  # of the quantile function
ANGLES = 8  # directions in the plane
BISECTIONS = 50  # of an interval of some tens of standard deviations: to rounding
BASES = 2  # orthonormal bases of directions in more dimensions


class Features(ABC):
    """`target` (m,) of the data law and `of(samples)` (m,); distances are relative to sqrt(trace of the covariance)."""

    target: np.ndarray

    @abstractmethod
    def of(self, samples: np.ndarray) -> np.ndarray: ...


class SpectralFeatures(Features):
    """Mean and standard deviations along the eigenvectors of the data covariance.

    Their squared distance is W2^2 of two Gaussians whose covariances commute (Bures), as they do for every solver of
    a reverse diffusion with an affine score.
    """

    def __init__(self, law: sc.laws.Law):
        values, self.vectors = np.linalg.eigh(law.covariance.numpy())
        values = np.clip(values, 0, None)
        self.scale = math.sqrt(values.sum())
        self.target = np.concatenate([law.mean.numpy() @ self.vectors, np.sqrt(values)]) / self.scale

    def of(self, samples: np.ndarray) -> np.ndarray:
        along = samples.astype(np.float64) @ self.vectors
        return np.concatenate([along.mean(axis=0), along.std(axis=0, ddof=1)]) / self.scale

    def exact(self, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """From an exact mean (d,) and standard deviations (d,) along the eigenvectors."""
        return np.concatenate([mean @ self.vectors, spread]) / self.scale


class QuantileFeatures(Features):
    """Quantile functions along fixed directions, averaged over BINS intervals of equal probability.

    Their squared distance is the sliced W2^2 (mean over the directions of the squared W2 of the projections, times d),
    up to what averaging within a bin loses. Directions: equally spaced angles in the plane, else orthonormal bases,
    the eigenvectors of the covariance and random ones.
    """

    def __init__(self, law: sc.laws.Law):
        d = law.event_shape[0]
        covariance = law.covariance.numpy()
        self.directions = _directions(covariance)
        weight = d / (len(self.directions) * BINS)
        self.weight = math.sqrt(weight / np.trace(covariance))
        self.target = self.weight * np.concatenate([_bin_means(law, e) for e in self.directions])

    def of(self, samples: np.ndarray) -> np.ndarray:
        n = len(samples) - len(samples) % BINS
        along = np.sort(self.directions.astype(samples.dtype) @ samples[:n].T, axis=1)
        return self.weight * along.reshape(len(self.directions) * BINS, -1).mean(axis=1, dtype=np.float64)


def _directions(covariance: np.ndarray) -> np.ndarray:
    d = len(covariance)
    if d == 2:
        angles = np.pi * np.arange(ANGLES) / ANGLES
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rng = np.random.default_rng(0)
    bases = [np.linalg.eigh(covariance)[1].T]
    bases += [np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(BASES - 1)]
    return np.concatenate(bases)


def _bin_means(law: sc.laws.Law, direction: np.ndarray) -> np.ndarray:
    """E[X | X in a bin] of e.X for a mixture: int x p = sum_i w_i (m_i Phi - s_i phi) between exact quantiles."""
    weights, means, variances = _projected(law, direction)
    spreads = np.sqrt(variances)
    if spreads.max() < 1e-12:
        return np.full(BINS, float(weights @ means))

    levels = np.arange(1, BINS) / BINS
    low, high = (np.full(BINS - 1, end) for end in ((means - 12 * spreads).min(), (means + 12 * spreads).max()))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = ndtr((middle[:, None] - means) / spreads) @ weights < levels
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    edges = (low + high) / 2
    z = (np.concatenate([[-np.inf], edges, [np.inf]])[:, None] - means) / spreads
    partial = (weights * (means * ndtr(z) - spreads * np.exp(-z * z / 2) / math.sqrt(2 * math.pi))).sum(axis=1)
    return np.diff(partial) * BINS


def _projected(law: sc.laws.Law, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and variances of e.X for a mixture, or a mixture on a subspace."""
    shift = 0.0
    if isinstance(law, sc.Subspace):
        shift, direction = float(direction @ law.offset.numpy()), law.basis.numpy().T @ direction
        law = law.latent
    assert isinstance(law, sc.GaussianMixture)
    variances = np.einsum("i,kij,j->k", direction, law.covariances.numpy(), direction)
    return law.weights.numpy(), law.means.numpy() @ direction + shift, np.clip(variances, 1e-30, None)


def squared_distance(gaps: np.ndarray) -> sc.Estimate:
    """|E gap|^2 from the gaps (R, m) of R independent batches, features minus target: mean of gap_a.gap_b over a != b.

    With S the sum of the gaps: (|S|^2 - sum_a |gap_a|^2) / (R (R - 1)); standard error by the jackknife (derived).
    """
    count = len(gaps)
    total, squares = gaps.sum(axis=0), np.square(gaps).sum(axis=1)
    value = (total @ total - squares.sum()) / (count * (count - 1))
    rest = np.square(total - gaps).sum(axis=1) - (squares.sum() - squares)
    left_out = rest / ((count - 1) * (count - 2))
    variance = (count - 1) / count * np.square(left_out - left_out.mean()).sum()
    return sc.Estimate(float(value), math.sqrt(variance), count, "products of different batches")


def as_distance(squared: sc.Estimate) -> dict[str, float]:
    """error, its standard error (delta method), and the interval [low, high] of two standard errors of the square.

    Where the square is less than two of its standard errors the error is below the resolution `high`.
    """
    error = math.sqrt(max(squared.value, 0.0))
    low, high = (math.sqrt(max(squared.value + z * squared.stderr, 0.0)) for z in (-2, 2))
    stderr = squared.stderr / (2 * error) if squared.value > 2 * squared.stderr else high / 2
    return {"error": error, "stderr": stderr, "low": low, "high": high}
