"""Finitely many atoms: an empirical law, or a law on a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.laws.base import Law, LawWithoutDensity, check_temperature, choose
from sdecontrol.laws.mixture import GaussianMixture
from sdecontrol.laws.parameters import as_float64, common_dtype
from sdecontrol.laws.spectrum import Spectrum, check_dense
from sdecontrol.noise import Block


class DiscreteLaw(LawWithoutDensity):
    """sum_i w_i delta(x_i), uniform weights by default.

    Every expectation is a sum, so every tilt and f-tilt is exact; noised(a, h) is the mixture sum_i w_i N(a
    x_i, h I).
    Shapes: points (k, d) or (k,) meaning d = 1; weights (k,) non-negative, summing to 1.
    log_prob, score and score_jvp raise NotDefined. Raises: BadInput for wrong shapes or weights.
    """

    def __init__(self, points: Any, weights: Any = None):
        x = as_float64("points", points)
        x = x[:, None] if x.ndim == 1 else x
        check(x.ndim == 2 and x.numel() > 0, f"points of shape {tuple(x.shape)}", "(k, d)")
        w = (
            torch.full((len(x),), 1 / len(x), dtype=torch.float64)
            if weights is None
            else as_float64("weights", weights)
        )
        check(w.shape == (len(x),), f"weights of shape {tuple(w.shape)}", f"({len(x)},), one a point")
        total = float(w.sum())
        check(
            bool((w >= 0).all()) and abs(total - 1) <= 1e-9,
            f"weights from {float(w.min()):.3g} summing to {total:.12g}",
            "weights that are not negative and sum to 1",
        )
        self.points, self.weights = x, w / total
        self.event_shape, self.dtype = (x.shape[1],), common_dtype(points)

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.points

    @property
    def covariance(self) -> Tensor:
        check_dense(self.dim)
        gaps = self.points - self.mean
        return (gaps * self.weights[:, None]).mT @ gaps

    def draw(self, block: Block) -> Tensor:
        return self.points.to(self.dtype)[choose(self.weights, block)]

    def noised(self, a: float, h: float) -> Law:
        """sum_i w_i N(a x_i, h I), and the moved atoms at h = 0."""
        if h == 0:
            return DiscreteLaw(a * self.points, self.weights)
        held = self.weights > 0
        points = self.points[held]
        spectrum = Spectrum(torch.full((len(points), self.dim), h, dtype=torch.float64), None)
        return GaussianMixture.from_spectrum(self.weights[held].log(), a * points, spectrum, True, self.dtype)

    def along(self, direction: Tensor) -> DiscreteLaw:
        return DiscreteLaw(self.points @ direction, self.weights)

    def affine(self, matrix: Tensor, offset: Tensor) -> DiscreteLaw:
        return DiscreteLaw(self.points @ matrix.mT + offset, self.weights)

    def _log_weights(self, reward: Any, temperature: float) -> Tensor:
        check_temperature(temperature)
        return self.weights.log() + reward(self.points).to(torch.float64) / temperature

    def log_expectation(self, reward: Any, temperature: float) -> float:
        return float(self._log_weights(reward, temperature).logsumexp(0))

    def tilt(self, reward: Any, temperature: float) -> DiscreteLaw:
        return DiscreteLaw(self.points, self._log_weights(reward, temperature).softmax(0))
