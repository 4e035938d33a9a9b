"""Symmetric positive matrices through their eigenvalues: Sigma = V diag(values) V'.

Every matrix a Gaussian needs at a noise level is a function of Sigma, so it shares the eigenvectors:
a^2 Sigma + h I = V diag(a^2 values + h) V', its inverse, its roots, and the posterior covariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import BadInput, check
from sdecontrol.laws.parameters import as_float64

LARGEST_DENSE = 4096  # dense (D, D) matrices are refused above


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One matrix or a stack: values (..., d), vectors (..., d, d), or None for diagonal matrices."""

    values: Tensor
    vectors: Tensor | None

    @property
    def diagonal(self) -> bool:
        return self.vectors is None

    def noised(self, a: float, h: float) -> Spectrum:
        """a^2 Sigma + h I."""
        return Spectrum(self.values * (a * a) + h, self.vectors)

    def matrix(self, values: Tensor) -> Tensor:
        """V diag(values) V', dense: (..., d, d)."""
        check_dense(values.shape[-1])
        if self.vectors is None:
            return torch.diag_embed(values)
        return (self.vectors * values[..., None, :]) @ self.vectors.mT

    def dense(self) -> Tensor:
        return self.matrix(self.values)

    def times(self, values: Tensor, x: Tensor) -> Tensor:
        """V diag(values) V' x for vectors x (..., d)."""
        if self.vectors is None:
            return values * x
        return (self.vectors @ (values * (self.vectors.mT @ x[..., None])[..., 0])[..., None])[..., 0]

    def whitening(self) -> Tensor:
        """W = diag(values)^{-1/2} V' with W Sigma W' = I and W' W = Sigma^{-1}: (..., d, d)."""
        scale = self.values.rsqrt()
        return torch.diag_embed(scale) if self.vectors is None else scale[..., :, None] * self.vectors.mT

    def log_det(self) -> Tensor:
        return self.values.log().sum(-1)

    def __getitem__(self, index: int | list[int]) -> Spectrum:
        return Spectrum(self.values[index], None if self.vectors is None else self.vectors[index])


def check_dense(dim: int) -> None:
    check(
        dim <= LARGEST_DENSE,
        f"a dense {dim} x {dim} matrix asked for",
        f"at most {LARGEST_DENSE} dimensions",
        "Work with .eigenvalues, or with the latent law of a Subspace.",
    )


def spectrum_of(name: str, covariance: Tensor, relative_symmetry: float = 1e-10) -> Spectrum:
    """Eigen-decomposition of one covariance or a stack (..., d, d); diagonal when every off-diagonal entry is
    zero.

    Raises: BadInput when it is not symmetric within `relative_symmetry` times its largest entry, or when its
    smallest eigenvalue is not above d * 2^-52 times its largest.
    """
    skew, size = float((covariance - covariance.mT).abs().max()), float(covariance.abs().max())
    check(
        skew <= relative_symmetry * size,
        f"{name} asymmetric by {skew:.3g}",
        "a symmetric matrix",
        "Pass (C + C.T) / 2.",
    )
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    if not bool((covariance - torch.diag_embed(diagonal)).any()):
        return diagonal_spectrum(name, diagonal)
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    _check_positive(name, values, rounding=values.shape[-1] * 2**-52)
    return Spectrum(values, vectors)


def diagonal_spectrum(name: str, values: Tensor) -> Spectrum:
    """The spectrum of a diagonal covariance; raises BadInput unless every entry is positive."""
    _check_positive(name, values)
    return Spectrum(values, None)


def _check_positive(name: str, values: Tensor, rounding: float = 0.0) -> None:
    smallest, largest = values.min(-1).values, values.max(-1).values
    worst = int((smallest - rounding * largest).argmin())
    low, high = float(smallest.reshape(-1)[worst]), float(largest.reshape(-1)[worst])
    if low <= rounding * high:
        raise BadInput(
            f"saw {name} with smallest eigenvalue {low:.6g} (largest {high:.6g}); wanted a positive "
            f"definite matrix. "
            "A law without spread in some directions is a Subspace, a point is a Dirac."
        )


def read_covariance(name: str, value: Any, dim: int) -> Spectrum:
    """A scalar, a diagonal (d,) or a matrix (d, d) as a spectrum of dimension d."""
    covariance = as_float64(name, value)
    if covariance.ndim == 0:
        return diagonal_spectrum(name, covariance.expand(dim))
    check(
        covariance.shape in {(dim,), (dim, dim)},
        f"{name} of shape {tuple(covariance.shape)}",
        f"a scalar, ({dim},) or ({dim}, {dim}), as the mean has {dim} entries",
    )
    if covariance.ndim == 1:
        return diagonal_spectrum(name, covariance)
    return spectrum_of(name, covariance, _symmetry(value))


def read_covariances(name: str, value: Any, count: int, dim: int) -> Spectrum:
    """A scalar, variances (k,), diagonals (k, d) or matrices (k, d, d) as a stack of k spectra."""
    covariance = as_float64(name, value)
    if covariance.ndim == 0:
        return diagonal_spectrum(name, covariance.expand(count, dim))
    check(
        covariance.shape in {(count,), (count, dim), (count, dim, dim)},
        f"{name} of shape {tuple(covariance.shape)}",
        f"a scalar, ({count},), ({count}, {dim}) or ({count}, {dim}, {dim})",
        "The first dimension counts the components.",
    )
    if covariance.ndim == 1:
        return diagonal_spectrum(name, covariance[:, None].expand(count, dim))
    if covariance.ndim == 2:
        return diagonal_spectrum(name, covariance)
    return spectrum_of(name, covariance, _symmetry(value))


def _symmetry(value: Any) -> float:
    """Relative asymmetry that is rounding: 1e-10, or 1e-6 for a matrix given in float32."""
    return 1e-6 if isinstance(value, Tensor) and value.dtype == torch.float32 else 1e-10
