"""The law of a single point."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.laws.base import Law, LawWithoutDensity, check_temperature
from sdecontrol.laws.gaussian import Gaussian
from sdecontrol.laws.isotropic import Isotropic
from sdecontrol.laws.parameters import as_float64, common_dtype
from sdecontrol.laws.spectrum import Spectrum, check_dense
from sdecontrol.noise import Block


class Dirac(LawWithoutDensity):
    """The point mass at x; a number means d = 1.

    noised(a, h) = N(a x, h I). Every tilt leaves it alone, and log E exp(r/temperature) = r(x)/temperature.
    log_prob, score and score_jvp raise NotDefined: it has no density.
    """

    def __init__(self, x: Any):
        point = torch.atleast_1d(as_float64("x", x))
        check(point.numel() > 0, "an empty point", "at least one coordinate")
        self.point, self.event_shape, self.dtype = point, tuple(point.shape), common_dtype(x)

    @property
    def mean(self) -> Tensor:
        return self.point

    @property
    def covariance(self) -> Tensor:
        check_dense(self.dim)
        return torch.zeros(self.dim, self.dim, dtype=torch.float64)

    def draw(self, block: Block) -> Tensor:
        return self.point.to(self.dtype).repeat(block.size, *(1 for _ in self.event_shape))

    def noised(self, a: float, h: float) -> Law:
        """N(a x, h I), and the point a x itself at h = 0."""
        moved = (a * self.point).to(self.dtype)
        if h == 0:
            return Dirac(moved)
        if len(self.event_shape) > 1:
            return Isotropic(self.event_shape, math.sqrt(h), moved)
        variance = torch.full(self.event_shape, h, dtype=torch.float64)
        return Gaussian.from_spectrum(a * self.point, Spectrum(variance, None), self.dtype)

    def log_expectation(self, reward: Any, temperature: float) -> float:
        check_temperature(temperature)
        return float(reward(self.point[None])) / temperature

    def tilt(self, reward: Any, temperature: float) -> Dirac:
        check_temperature(temperature)
        return self
