"""Laws of affine images with added Gaussian noise, degenerate ones included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm
from sdecontrol.exact.quadratic import symmetric
from sdecontrol.laws import Dirac, Gaussian, GaussianMixture, Isotropic, Law, NoisySubspace, Subspace


class LinearMap(Protocol):
    """x+ = matrix x + offset + noise z."""

    @property
    def matrix(self) -> Tensor: ...
    @property
    def offset(self) -> Tensor: ...
    @property
    def noise(self) -> Tensor: ...


def gaussian_parameters(law: Law) -> tuple[Tensor, Tensor] | None:
    """Mean (d,) and covariance (d,d), possibly singular, of a law that is Gaussian; None for any other law."""
    core = law.latent if isinstance(law, (Subspace, NoisySubspace)) else law
    return (law.mean, law.covariance) if isinstance(core, (Gaussian, Isotropic, Dirac)) else None


def gaussian_law(mean: Tensor, covariance: Tensor) -> Law:
    """N(mean (d,), covariance (d,d)) as a Gaussian, a Subspace where it has no spread in some directions, or a Dirac.

    A direction has no spread when its variance is below d 2^-50 of the largest.
    """
    values, vectors = torch.linalg.eigh(symmetric(covariance))
    spread = values > len(values) * 2.0**-50 * values[-1].clamp(min=0)
    if bool(spread.all()):
        return Gaussian(mean, symmetric(covariance))
    if not bool(spread.any()):
        return Dirac(mean)
    basis = vectors[:, spread]
    latent = basis.mT @ mean
    return Subspace(basis, Gaussian(latent, torch.diag(values[spread])), mean - basis @ latent)


def pushforward(law: Law, steps: Iterable[LinearMap]) -> Law:
    """The law of x_K from x_0 ~ law along x+ = M x + m + N z.

    Raises NoClosedForm unless `law` is Gaussian (degenerate or not) or a Gaussian mixture.
    """
    d = law.event_shape[0]
    matrix, offset = torch.eye(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    noise = torch.zeros(d, d, dtype=torch.float64)
    for step in steps:
        matrix, offset = step.matrix @ matrix, step.matrix @ offset + step.offset
        noise = symmetric(step.matrix @ noise @ step.matrix.mT + step.noise @ step.noise.mT)
    parameters = gaussian_parameters(law)
    if parameters is not None:
        mean, covariance = parameters
        return gaussian_law(matrix @ mean + offset, matrix @ covariance @ matrix.mT + noise)
    if isinstance(law, GaussianMixture):
        spreads = symmetric(matrix @ law.covariances @ matrix.mT) + noise
        return GaussianMixture(law.log_weights.exp(), law.means @ matrix.mT + offset, spreads)
    raise NoClosedForm(
        f"the laws of an affine chain are closed for Gaussian and mixture initial laws, not for a {type(law).__name__}"
    )
