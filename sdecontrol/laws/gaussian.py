"""Gaussian laws: N(mean, covariance) on vectors, and the isotropic law on events of any shape."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import NoTilt, check
from sdecontrol.laws.base import Law, Posterior, check_temperature
from sdecontrol.laws.parameters import Coefficients, apply, apply_affine, as_float64, common_dtype
from sdecontrol.laws.spectrum import Spectrum, read_covariance
from sdecontrol.noise import Block
from sdecontrol.rewards import Quadratic, Reward, as_quadratic

LOG_2PI = math.log(2 * math.pi)


class Gaussian(Law):
    """N(mean, covariance) on R^d, kept as the spectrum of its covariance.

    log p(x) = -1/2 |W(x - mean)|^2 - 1/2 log det(2 pi Sigma) with W' W = Sigma^{-1}; score = -Sigma^{-1}(x -
    mean). noised(a, h) = N(a mean, a^2 Sigma + h I) shares the eigenvectors: O(d).
    Shapes: mean (d,), a number meaning d = 1; covariance a scalar, a diagonal (d,) or a matrix (d, d).
    Raises: BadInput for wrong shapes, entries not finite, a covariance that is not symmetric (1e-10 relative)
    or not positive definite (the smallest eigenvalue is named).
    """

    def __init__(self, mean: Any, covariance: Any):
        location = torch.atleast_1d(as_float64("mean", mean))
        check(
            location.ndim == 1 and len(location) > 0,
            f"mean of shape {tuple(location.shape)}",
            "a vector (d,)",
            "For images use Isotropic.",
        )
        self._set(
            location, read_covariance("covariance", covariance, len(location)), common_dtype(mean, covariance)
        )

    @classmethod
    def from_spectrum(cls, mean: Tensor, spectrum: Spectrum, dtype: torch.dtype = torch.float64) -> Gaussian:
        """Without checks and without an eigen-decomposition: for laws made from laws."""
        law = cls.__new__(cls)
        law._set(mean, spectrum, dtype)
        return law

    def _set(self, mean: Tensor, spectrum: Spectrum, dtype: torch.dtype) -> None:
        self._mean, self.spectrum, self.dtype, self.event_shape = mean, spectrum, dtype, (len(mean),)
        self._score_terms = Coefficients(self._precision_and_shift)
        self._whitening_terms = Coefficients(self._whitening_and_shift)
        self._root = Coefficients(lambda: (spectrum.matrix(spectrum.values.sqrt()),))

    @property
    def affine_score(self) -> bool:
        return True

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def diagonal(self) -> bool:
        return self.spectrum.diagonal

    @property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues of the covariance (d,); in coordinate order when it is diagonal."""
        return self.spectrum.values

    @property
    def eigenvectors(self) -> Tensor | None:
        """Eigenvectors in the columns of (d, d); None when the covariance is diagonal."""
        return self.spectrum.vectors

    @cached_property
    def covariance(self) -> Tensor:
        return self.spectrum.dense()

    def draw(self, block: Block) -> Tensor:
        z = block.normal(self.event_shape, self.dtype)
        mean = self._mean.to(z)
        if self.diagonal:
            return torch.addcmul(mean, z, self.spectrum.values.sqrt().to(z))
        return apply_affine(self._root.like(z)[0], z, mean)

    def _precision_and_shift(self) -> tuple[Tensor, Tensor]:
        """(-Sigma^{-1}, Sigma^{-1} mean), the first as a diagonal when it is one."""
        inverse = self.spectrum.values.reciprocal()
        shift = self.spectrum.times(inverse, self._mean)
        return (-inverse if self.diagonal else -self.spectrum.matrix(inverse)), shift

    def _whitening_and_shift(self) -> tuple[Tensor, Tensor]:
        whitening = self.spectrum.values.rsqrt() if self.diagonal else self.spectrum.whitening()
        return whitening, (whitening * self._mean if self.diagonal else whitening @ self._mean)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_points(x)
        x = x.to(torch.float64)
        whitening, shift = self._whitening_terms.like(x)
        z = x * whitening - shift if self.diagonal else apply_affine(whitening, x, -shift)
        return -0.5 * (z.square().sum(1) + self.spectrum.log_det().to(x) + self.dim * LOG_2PI)

    def score(self, x: Tensor) -> Tensor:
        self._check_points(x)
        precision, shift = self._score_terms.like(x)
        return torch.addcmul(shift, x, precision) if self.diagonal else apply_affine(precision, x, shift)

    def score_jvp(self, x: Tensor, c: Tensor) -> Tensor:
        self._check_points(x)
        precision, _ = self._score_terms.like(x)
        return c * precision if self.diagonal else apply(precision, c)

    def noised(self, a: float, h: float) -> Gaussian:
        """N(a mean, a^2 Sigma + h I)."""
        return Gaussian.from_spectrum(a * self._mean, self.spectrum.noised(a, h), self.dtype)

    def posterior(self, a: float, h: float) -> Posterior:
        """N(c + J y, P) with P = (Sigma^{-1} + a^2/h I)^{-1}, J = (a/h) P, c = P Sigma^{-1} mean."""
        offset, gain, covariance = gaussian_posterior(self._mean, self.spectrum, a, h)
        return Posterior(_certain, offset[None], gain[None], covariance[None])

    def along(self, direction: Tensor) -> Gaussian:
        variance = (direction * self.spectrum.times(self.spectrum.values, direction)).sum()
        return Gaussian((direction @ self._mean)[None], variance[None])

    def landmarks(self) -> tuple[Tensor, Tensor]:
        return (self._mean, self.spectrum.values.sqrt()) if self.dim == 1 else super().landmarks()

    def affine(self, matrix: Tensor, offset: Tensor) -> Gaussian:
        moved = matrix @ self.spectrum.matrix(self.spectrum.values.sqrt())
        covariance = moved @ moved.mT
        return Gaussian(matrix @ self._mean + offset, (covariance + covariance.mT) / 2)

    def log_expectation(self, reward: Any, temperature: float) -> float:
        """Closed for every Reward of this library (Quadratic: see gaussian_tilt), a quadrature on the "
        "line."""
        check_temperature(temperature)
        quadratic = as_quadratic(reward)
        if quadratic is not None:
            return gaussian_tilt(self, quadratic, temperature)[1]
        if isinstance(reward, Reward):
            return float(reward.log_expectation(self._mean[None], self.covariance, temperature))
        return super().log_expectation(reward, temperature)

    def tilt(self, reward: Any, temperature: float) -> Law:
        """Quadratic rewards, of any curvature that leaves a finite normaliser, give a Gaussian."""
        check_temperature(temperature)
        quadratic = as_quadratic(reward)
        return (
            super().tilt(reward, temperature)
            if quadratic is None
            else gaussian_tilt(self, quadratic, temperature)[0]
        )


def _certain(y: Tensor) -> Tensor:
    """Log responsibilities of a single component."""
    return torch.zeros(len(y), 1, dtype=torch.float64, device=y.device)


def gaussian_posterior(mean: Tensor, spectrum: Spectrum, a: float, h: float) -> tuple[Tensor, Tensor, Tensor]:
    """Offset c, gain J and covariance P of the clean given the noisy point, one or a stack."""
    noisy = a * a * spectrum.values + h
    offset = spectrum.times(h / noisy, mean)
    return offset, spectrum.matrix(a * spectrum.values / noisy), spectrum.matrix(h * spectrum.values / noisy)


def gaussian_tilt(law: Gaussian, reward: Quadratic, temperature: float) -> tuple[Gaussian, float]:
    """N(mu, Sigma) e^{r/temperature} = C N(mu_f, Sigma_f): returns (N(mu_f, Sigma_f), log C).

    With S = Sigma^{1/2}, M = I + S K S / temperature and b = grad r(mu) / temperature:
    Sigma_f = S M^{-1} S, mu_f = mu + Sigma_f b, log C = r(mu)/temperature + b' Sigma_f b / 2 - log det(M) /
    2.
    Raises: NoTilt unless M is positive, with its smallest eigenvalue and the largest curvature (the largest
    -lambda_min of a multiple of K) that has a tilt. Source: derived (completing the square).
    """
    check(reward.dim == law.dim, f"a reward on {reward.dim} dimensions", f"{law.dim}, the law's")
    mean, spectrum = law.mean, law.spectrum
    slope = reward.gradient(mean[None])[0] / temperature
    at_mean = float(reward(mean[None])) / temperature
    if reward.is_linear:
        shift = spectrum.times(spectrum.values, slope)
        return Gaussian.from_spectrum(mean + shift, spectrum, law.dtype), at_mean + float(slope @ shift) / 2
    root = spectrum.matrix(spectrum.values.sqrt())
    bent = root @ reward.curvature @ root
    values, vectors = torch.linalg.eigh((bent + bent.mT) / 2)
    if 1 + float(values[0]) / temperature <= 0:
        raise _no_tilt(reward, float(values[0]), temperature)
    factor = root @ (vectors * (1 + values / temperature).rsqrt())
    covariance = factor @ factor.mT
    shift = covariance @ slope
    log_c = at_mean + float(slope @ shift) / 2 - 0.5 * float(torch.log1p(values / temperature).sum())
    return _as_gaussian(mean + shift, covariance, law.dtype), log_c


def _as_gaussian(mean: Tensor, covariance: Tensor, dtype: torch.dtype) -> Gaussian:
    tilted = Gaussian(mean, (covariance + covariance.mT) / 2)
    tilted.dtype = dtype
    return tilted


def _no_tilt(reward: Quadratic, lowest: float, temperature: float) -> NoTilt:
    steepest = -float(torch.linalg.eigvalsh(reward.curvature)[0])
    largest = steepest * temperature / -lowest
    return NoTilt(
        f"E exp(reward/temperature) is infinite: I + S K S / temperature, S^2 the covariance, has the "
        f"eigenvalue "
        f"{1 + lowest / temperature:.6g}; wanted a positive one. The reward curves upwards by "
        f"{steepest:.6g}; "
        f"shrink its curvature below {largest:.6g} or raise the temperature above {-lowest:.6g}.",
        eigenvalue=1 + lowest / temperature,
        largest_curvature=largest,
    )
