"""Mixtures of Gaussians."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.laws.base import Law, Posterior, check_temperature, choose
from sdecontrol.laws.gaussian import LOG_2PI, Gaussian, gaussian_posterior, gaussian_tilt
from sdecontrol.laws.mixture_forms import form_of
from sdecontrol.laws.parameters import Coefficients, apply, as_float64, common_dtype
from sdecontrol.laws.spectrum import Spectrum, read_covariances
from sdecontrol.noise import Block
from sdecontrol.rewards import Reward, as_quadratic


class GaussianMixture(Law):
    """sum_i w_i N(mean_i, covariance_i) on R^d.

    noised(a, h) = sum_i w_i N(a mean_i, a^2 Sigma_i + h I) shares the eigenvectors. A quadratic reward tilts
    it to the mixture of the tilted components, weights w_i E_i exp(r / temperature) over their sum (derived).
    Covariances that are all the same make score and score_jvp cheaper by about the dimension.
    Shapes: weights (k,), means (k, d) or (k,) meaning d = 1; covariances a scalar, one variance a component
    (k,), diagonals (k, d), or matrices (k, d, d).
    Raises: BadInput for wrong shapes, weights that are not positive or do not sum to 1 (1e-9; 1e-5 when
    float32), a covariance that is not symmetric positive definite.
    """

    def __init__(self, weights: Any, means: Any, covariances: Any):
        w, m = as_float64("weights", weights), as_float64("means", means)
        check(w.ndim == 1 and len(w) > 0, f"weights of shape {tuple(w.shape)}", "a vector (k,)")
        m = m[:, None] if m.ndim == 1 else m
        check(
            m.ndim == 2 and len(m) == len(w) and m.shape[1] > 0,
            f"means of shape {tuple(m.shape)}",
            f"({len(w)}, d)",
            "One mean a weight.",
        )
        check(
            bool((w > 0).all()),
            f"a weight of {float(w.min()):.6g}",
            "positive weights",
            "Drop empty components.",
        )
        excess, dtype = abs(float(w.sum()) - 1), common_dtype(weights, means, covariances)
        rounding = 1e-5 if common_dtype(weights) == torch.float32 else 1e-9
        check(
            excess <= rounding,
            f"weights that sum to 1 within {excess:.3g} only",
            f"a sum of 1 within {rounding:g}",
            "Divide by their sum.",
        )
        spectrum = read_covariances("covariances", covariances, len(w), m.shape[1])
        self._set((w / w.sum()).log(), m, spectrum, _all_equal(spectrum), dtype)

    @classmethod
    def from_spectrum(
        cls,
        log_weights: Tensor,
        means: Tensor,
        spectrum: Spectrum,
        shared: bool,
        dtype: torch.dtype = torch.float64,
    ) -> GaussianMixture:
        """Without checks and without eigen-decompositions: for laws made from laws."""
        law = cls.__new__(cls)
        law._set(log_weights, means, spectrum, shared, dtype)
        return law

    def _set(
        self, log_weights: Tensor, means: Tensor, spectrum: Spectrum, shared: bool, dtype: torch.dtype
    ) -> None:
        self.log_weights, self.means, self.spectrum, self.dtype = log_weights, means, spectrum, dtype
        self.event_shape, self._shared = (means.shape[1],), shared
        self._form = form_of(log_weights, means, spectrum, shared)
        self._density = form_of(log_weights, means, spectrum, shared=False)  # leaves out no common term
        self._roots = Coefficients(lambda: (spectrum.matrix(spectrum.values.sqrt()),))

    @cached_property
    def components(self) -> tuple[Gaussian, ...]:
        return tuple(
            Gaussian.from_spectrum(m, self.spectrum[i], self.dtype) for i, m in enumerate(self.means)
        )

    @property
    def weights(self) -> Tensor:
        return self.log_weights.exp()

    @cached_property
    def covariances(self) -> Tensor:
        return self.spectrum.dense()

    @property
    def mean(self) -> Tensor:
        return self.weights @ self.means

    @cached_property
    def covariance(self) -> Tensor:
        gaps = self.means - self.mean
        return (
            torch.einsum("k,kij->ij", self.weights, self.covariances)
            + (gaps * self.weights[:, None]).mT @ gaps
        )

    def draw(self, block: Block) -> Tensor:
        chosen = choose(self.weights, block)
        z = block.normal(self.event_shape, self.dtype)
        means = self.means.to(z)
        if self.spectrum.diagonal:
            return torch.addcmul(means[chosen], z, self.spectrum.values.sqrt().to(z)[chosen])
        x = means[chosen]
        for i, root in enumerate(self._roots.like(z)[0]):
            rows = chosen == i
            x[rows] += apply(root, z[rows])
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_points(x)
        x = x.to(torch.float64)
        return self._density.log_joint(x).logsumexp(0) - 0.5 * self.dim * LOG_2PI

    def log_responsibilities(self, x: Tensor) -> Tensor:
        """log P(component i | x), float64: (n, d) -> (n, k)."""
        self._check_points(x)
        return self._form.log_joint(x.to(torch.float64)).log_softmax(0).mT

    def responsibilities(self, x: Tensor) -> Tensor:
        """P(component i | x) in the precision of the points: (n, d) -> (k, n)."""
        self._check_points(x)
        return self._form.log_joint(x).softmax(0)

    def score(self, x: Tensor) -> Tensor:
        self._check_points(x)
        return self._form.score(x)

    def score_jvp(self, x: Tensor, c: Tensor) -> Tensor:
        self._check_points(x)
        return self._form.score_jvp(x, c)

    def noised(self, a: float, h: float) -> GaussianMixture:
        """sum_i w_i N(a mean_i, a^2 Sigma_i + h I)."""
        spectrum = self.spectrum.noised(a, h)
        return GaussianMixture.from_spectrum(
            self.log_weights, a * self.means, spectrum, self._shared, self.dtype
        )

    def posterior(self, a: float, h: float) -> Posterior:
        """sum_i omega_i(y) N(c_i + J_i y, P_i), omega the responsibilities of the noised law."""
        return Posterior(
            self.noised(a, h).log_responsibilities, *gaussian_posterior(self.means, self.spectrum, a, h)
        )

    def along(self, direction: Tensor) -> GaussianMixture:
        variances = (
            direction * self.spectrum.times(self.spectrum.values, direction.expand_as(self.means))
        ).sum(1)
        spectrum = Spectrum(variances[:, None], None)
        return GaussianMixture.from_spectrum(
            self.log_weights, (self.means @ direction)[:, None], spectrum, self._shared
        )

    def landmarks(self) -> tuple[Tensor, Tensor]:
        return (self.means[:, 0], self.spectrum.values[:, 0].sqrt()) if self.dim == 1 else super().landmarks()

    def affine(self, matrix: Tensor, offset: Tensor) -> GaussianMixture:
        return _mixture_of(self.log_weights, [c.affine(matrix, offset) for c in self.components], self.dtype)

    def log_expectation(self, reward: Any, temperature: float) -> float:
        """log sum_i w_i E_i exp(r / temperature), each term closed."""
        check_temperature(temperature)
        if not isinstance(reward, Reward):
            return super().log_expectation(reward, temperature)
        if closed := reward.closed_tilt(self, temperature):
            return closed[1]
        logs = [component.log_expectation(reward, temperature) for component in self.components]
        return float((self.log_weights + torch.tensor(logs, dtype=torch.float64)).logsumexp(0))

    def tilt(self, reward: Any, temperature: float) -> Law:
        """Quadratic rewards give a mixture; NoTilt when a single component has none."""
        check_temperature(temperature)
        closed = reward.closed_tilt(self, temperature) if isinstance(reward, Reward) else None
        if closed is not None:
            tilt: Law = closed[0]
            return tilt
        quadratic = as_quadratic(reward)
        if quadratic is None:
            return super().tilt(reward, temperature)
        tilted, logs = zip(*(gaussian_tilt(c, quadratic, temperature) for c in self.components), strict=True)
        log_weights = (self.log_weights + torch.tensor(logs, dtype=torch.float64)).log_softmax(0)
        return _mixture_of(log_weights, tilted, self.dtype)


def _mixture_of(
    log_weights: Tensor, components: tuple[Gaussian, ...] | list[Gaussian], dtype: torch.dtype
) -> GaussianMixture:
    """The mixture of given Gaussians; log weights sum to one."""
    means = torch.stack([c.mean for c in components])
    if all(c.diagonal for c in components):
        spectrum = Spectrum(torch.stack([c.eigenvalues for c in components]), None)
    else:
        eye = torch.eye(means.shape[1], dtype=torch.float64)
        vectors = [eye if c.eigenvectors is None else c.eigenvectors for c in components]
        spectrum = Spectrum(torch.stack([c.eigenvalues for c in components]), torch.stack(vectors))
    return GaussianMixture.from_spectrum(log_weights, means, spectrum, _all_equal(spectrum), dtype)


def _all_equal(spectrum: Spectrum) -> bool:
    """Whether the stacked matrices are one and the same, bit for bit."""
    same = not bool((spectrum.values != spectrum.values[0]).any())
    return same and (spectrum.vectors is None or not bool((spectrum.vectors != spectrum.vectors[0]).any()))
