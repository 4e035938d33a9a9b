"""Isotropic Gaussians on events of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, check
from sdecontrol.laws.base import Law, Posterior
from sdecontrol.laws.gaussian import LOG_2PI, Gaussian
from sdecontrol.laws.parameters import Coefficients, as_float64, common_dtype
from sdecontrol.laws.spectrum import Spectrum
from sdecontrol.noise import Block


class Isotropic(Law):
    """N(mean, std^2 I) on events of any shape, centred by default: a prior on images.

    log p(x) = -|x - mean|^2 / (2 std^2) - D log(std sqrt(2 pi)), summed over the D coordinates.
    Shapes: std a positive number; mean a number or of the event's shape. On vectors it has every closed form
    of `as_gaussian()`. Raises: BadInput for an empty event or a std that is not positive and finite.
    """

    def __init__(self, event_shape: Sequence[int] | int, std: Any, mean: Any = 0.0):
        shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        check(
            len(shape) > 0 and min(shape) > 0,
            f"event_shape {shape}",
            "a non-empty tuple of positive integers",
        )
        scale, location = float(as_float64("std", std)), as_float64("mean", mean)
        check(scale > 0, f"std = {scale}", "a positive number")
        check(location.shape in {(), shape}, f"mean of shape {tuple(location.shape)}", f"a number or {shape}")
        self.event_shape, self.std, self.dtype = shape, scale, common_dtype(std, mean)
        self._mean = location.expand(shape)
        self._terms = Coefficients(lambda: (self._mean,))

    @property
    def affine_score(self) -> bool:
        return True

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def variance(self) -> float:
        return self.std**2

    @property
    def covariance(self) -> Tensor:
        return Spectrum(torch.full((self.dim,), self.variance, dtype=torch.float64), None).dense()

    def as_gaussian(self) -> Gaussian:
        """The same law as a Gaussian; NoClosedForm unless events are vectors."""
        if len(self.event_shape) != 1:
            raise NoClosedForm(
                f"closed forms need events that are vectors; these have the shape {self.event_shape}"
            )
        variance = torch.full((self.dim,), self.variance, dtype=torch.float64)
        return Gaussian.from_spectrum(self._mean, Spectrum(variance, None), self.dtype)

    def draw(self, block: Block) -> Tensor:
        z = block.normal(self.event_shape, self.dtype)
        return torch.add(self._mean.to(z), z, alpha=self.std)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_points(x)
        x = x.to(torch.float64)
        z = ((x - self._terms.like(x)[0]) / self.std).flatten(1)
        return -0.5 * z.square().sum(1) - self.dim * (math.log(self.std) + LOG_2PI / 2)

    def score(self, x: Tensor) -> Tensor:
        self._check_points(x)
        return (self._terms.like(x)[0] - x) / self.variance

    def score_jvp(self, x: Tensor, c: Tensor) -> Tensor:
        self._check_points(x)
        return c / -self.variance

    def noised(self, a: float, h: float) -> Isotropic:
        noisy = Isotropic(self.event_shape, math.sqrt(a * a * self.variance + h), a * self._mean)
        noisy.dtype = self.dtype
        return noisy

    def posterior(self, a: float, h: float) -> Posterior:
        return self.as_gaussian().posterior(a, h)

    def along(self, direction: Tensor) -> Gaussian:
        return self.as_gaussian().along(direction)

    def affine(self, matrix: Tensor, offset: Tensor) -> Gaussian:
        return self.as_gaussian().affine(matrix, offset)

    def landmarks(self) -> tuple[Tensor, Tensor]:
        return self.as_gaussian().landmarks()

    def log_expectation(self, reward: Any, temperature: float) -> float:
        return self.as_gaussian().log_expectation(reward, temperature)

    def tilt(self, reward: Any, temperature: float) -> Law:
        on_vectors = len(self.event_shape) == 1
        return (
            self.as_gaussian().tilt(reward, temperature) if on_vectors else super().tilt(reward, temperature)
        )
