"""Laws on an affine subspace of R^D, and the same laws with noise around it, in O(D d) a point."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.laws.base import Law, LawWithoutDensity, SubspacePosterior, check_temperature, restricted
from sdecontrol.laws.frame import Frame, check_latent
from sdecontrol.laws.gaussian import LOG_2PI, Gaussian
from sdecontrol.laws.parameters import common_dtype
from sdecontrol.laws.spectrum import check_dense
from sdecontrol.noise import Block


class Subspace(LawWithoutDensity):
    """x = offset + B u, u ~ law, with orthonormal columns B (D, d).

    It has no density on R^D (log_prob, score and score_jvp raise NotDefined); noised(a, h) has one. Tilts,
    posteriors and normalisers are the latent law's under u -> r(offset + B u).
    Shapes: basis (D, d), law on R^d, offset a number or (D,). Cost O(D d) a point; only `covariance` is
    dense.
    Raises: BadInput for a basis that is not orthonormal (1e-8; says how far off) or a law of another
    dimension.
    """

    def __init__(self, basis: Any, law: Law, offset: Any = 0.0):
        self._set(Frame(basis, offset), law, common_dtype(basis, torch.empty(0, dtype=law.dtype)))

    @classmethod
    def from_frame(cls, frame: Frame, law: Law, dtype: torch.dtype) -> Subspace:
        """On a frame that is already checked."""
        subspace = cls.__new__(cls)
        subspace._set(frame, law, dtype)
        return subspace

    def _set(self, frame: Frame, law: Law, dtype: torch.dtype) -> None:
        check_latent(frame, law)
        self.frame, self.latent, self.dtype, self.event_shape = frame, law, dtype, (frame.dim,)

    @property
    def basis(self) -> Tensor:
        return self.frame.basis

    @property
    def offset(self) -> Tensor:
        return self.frame.offset

    @property
    def mean(self) -> Tensor:
        return self.offset + self.basis @ self.latent.mean

    @property
    def covariance(self) -> Tensor:
        check_dense(self.dim)
        return self.basis @ self.latent.covariance @ self.basis.mT

    def encode(self, x: Tensor) -> Tensor:
        """Latent coordinates B' (x - offset): (n, D) -> (n, d)."""
        return self.frame.encode(x)

    def decode(self, u: Tensor) -> Tensor:
        """offset + B u: (n, d) -> (n, D)."""
        return self.frame.decode(u)

    def draw(self, block: Block) -> Tensor:
        return self.decode(self.latent.draw(block).to(self.dtype))

    def noised(self, a: float, h: float) -> Law:
        """The noised latent law on the span times N(0, h) on the D - d normal coordinates."""
        if h == 0:
            return Subspace(self.basis, self.latent.noised(a, 0.0), a * self.offset)
        return NoisySubspace.from_frame(self.frame, a, self.latent.noised(a, h), h, self.dtype)

    def posterior(self, a: float, h: float) -> SubspacePosterior:
        latent = self.latent.posterior(a, h)
        return SubspacePosterior(latent, lambda y: self.frame.encode(y, a), self.decode)

    def along(self, direction: Tensor) -> Law:
        latent = self.latent.along(self.basis.mT @ direction)
        return latent.affine(torch.ones(1, 1, dtype=torch.float64), (direction @ self.offset)[None])

    def log_expectation(self, reward: Any, temperature: float) -> float:
        return self.latent.log_expectation(restricted(reward, self.basis, self.offset), temperature)

    def tilt(self, reward: Any, temperature: float) -> Subspace:
        check_temperature(temperature)
        tilted = self.latent.tilt(restricted(reward, self.basis, self.offset), temperature)
        return Subspace.from_frame(self.frame, tilted, self.dtype)


class SubspaceGaussian(Subspace):
    """x = offset + B u, u ~ N(mean, covariance): Subspace(basis, Gaussian(mean, covariance), offset)."""

    def __init__(self, basis: Any, mean: Any, covariance: Any, offset: Any = 0.0):
        super().__init__(basis, Gaussian(mean, covariance), offset)


class NoisySubspace(Law):
    """The law of offset + B u + sqrt(variance) (I - B B') z, u ~ law, z standard normal: density on all of
    R^D.

    log p(x) = log p_law(B'y) - |y - B B'y|^2 / (2 variance) - (D - d)/2 log(2 pi variance), y = x - offset;
    score = (B B'y - y) / variance + B score_law(B'y). The law on the span carries the noise on the span
    already.
    Shapes: basis (D, d), law on R^d, variance a positive number, offset a number or (D,).
    Source: derived.
    """

    def __init__(self, basis: Any, law: Law, variance: float, offset: Any = 0.0):
        dtype = common_dtype(basis, torch.empty(0, dtype=law.dtype))
        self._set(Frame(basis, offset), 1.0, law, variance, dtype)

    @classmethod
    def from_frame(
        cls, frame: Frame, scale: float, law: Law, variance: float, dtype: torch.dtype
    ) -> NoisySubspace:
        """On a frame that is already checked, around `scale` times its offset."""
        noisy = cls.__new__(cls)
        noisy._set(frame, scale, law, variance, dtype)
        return noisy

    def _set(self, frame: Frame, scale: float, law: Law, variance: float, dtype: torch.dtype) -> None:
        check_latent(frame, law)
        check(
            math.isfinite(variance) and variance > 0,
            f"variance = {variance}",
            "a positive number",
            "Without noise it is a Subspace.",
        )
        self.frame, self.scale, self.latent, self.variance = frame, scale, law, variance
        self.dtype, self.event_shape = dtype, (frame.dim,)

    @property
    def basis(self) -> Tensor:
        return self.frame.basis

    @property
    def offset(self) -> Tensor:
        return self.scale * self.frame.offset

    @property
    def affine_score(self) -> bool:
        return self.latent.affine_score

    @property
    def mean(self) -> Tensor:
        return self.offset + self.basis @ self.latent.mean

    @property
    def covariance(self) -> Tensor:
        check_dense(self.dim)
        inner = self.latent.covariance - self.variance * torch.eye(self.frame.latent_dim, dtype=torch.float64)
        eye = torch.eye(self.dim, dtype=torch.float64)
        return self.basis @ inner @ self.basis.mT + self.variance * eye

    def draw(self, block: Block) -> Tensor:
        u = self.latent.draw(block).to(self.dtype)
        z = block.normal(self.event_shape, self.dtype)
        return self.frame.decode(u, self.scale).add_(self.frame.normal(z), alpha=math.sqrt(self.variance))

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_points(x)
        y = self.frame.centre(x.to(torch.float64), self.scale)
        off_span = self.frame.normal(y).square().sum(1) / self.variance
        codimension = self.dim - self.frame.latent_dim
        log_normal = -0.5 * (off_span + codimension * (LOG_2PI + math.log(self.variance)))
        return self.latent.log_prob(self.frame.project(y)) + log_normal

    def score(self, x: Tensor) -> Tensor:
        self._check_points(x)
        y = self.frame.centre(x, self.scale)
        z = self.frame.project(y)
        return self.frame.plus_scaled(
            torch.add(self.latent.score(z), z, alpha=1 / self.variance), y, -1 / self.variance
        )

    def score_jvp(self, x: Tensor, c: Tensor) -> Tensor:
        self._check_points(x)
        z, b = self.frame.encode(x, self.scale), self.frame.project(c)
        return self.frame.plus_scaled(
            torch.add(self.latent.score_jvp(z, b), b, alpha=1 / self.variance), c, -1 / self.variance
        )

    def denoised_jvp(self, x: Tensor, a: float, h: float, c: Tensor) -> Tensor:
        """In the span, to rounding, where all normal variance is noise: there (1 - h / variance) / a is 0."""
        z, b = self.frame.encode(x, self.scale), self.frame.project(c)
        off_span = (1 - h / self.variance) / a
        return self.frame.plus_scaled(torch.sub(self.latent.denoised_jvp(z, a, h, b), b, alpha=off_span), c, off_span)

    def noised(self, a: float, h: float) -> NoisySubspace:
        latent = self.latent.noised(a, h)
        return NoisySubspace.from_frame(
            self.frame, a * self.scale, latent, a * a * self.variance + h, self.dtype
        )
