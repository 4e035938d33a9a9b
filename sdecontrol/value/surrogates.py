"""Quadratics of standard normals, whose powers and exponential have known means: the controls of `ControlVariates`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdecontrol.noise import Noise
from sdecontrol.value.integrand import Integrand

_BY_VALUES = 24  # normals up to which all their products are regressors
_BY_SLOPES = 256  # and up to which a matrix is read from slopes
_BOUNDED = 0.125  # eigenvalues of B below which e^{4Q} has a mean
_SPREAD = 4.0  # largest log of E e^{2Q} / (E e^Q)^2


@dataclass(frozen=True, eq=False)
class Surrogates:
    """Q(z) = c . z + z'Bz - tr B for every column: linear c (columns, q), matrix B (columns, q, q), or its diagonal.

    Its cumulants are kappa_m = 2^{m-1} (m-1)! tr B^m + 2^{m-3} m! c'B^{m-2}c.
    """

    linear: Tensor
    matrix: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """Q: (n, q) -> (n, columns)."""
        if self.matrix.ndim == 2:
            return z @ self.linear.mT + (z.square() - 1) @ self.matrix.mT
        bent = [((z @ b + c) * z).sum(1) - b.trace() for b, c in zip(self.matrix, self.linear)]
        return torch.stack(bent, 1)

    @cached_property
    def _diagonal(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues of B, and c^2 in its eigenvectors: (columns, q) each."""
        if self.matrix.ndim == 2:
            return self.matrix, self.linear.square()
        values, vectors = torch.linalg.eigh(self.matrix)
        return values, (vectors.mT @ self.linear[:, :, None])[..., 0].square()

    def moments(self, top: int) -> Tensor:
        """E Q^m, m = 0 .. top, of every column, from the cumulants: (top + 1, columns)."""
        b, c2 = self._diagonal
        cumulants = [torch.zeros(len(b), dtype=b.dtype)] * 2 + [
            2.0 ** (m - 1) * math.factorial(m - 1) * (b**m).sum(1)
            + 2.0 ** (m - 3) * math.factorial(m) * (b ** (m - 2) * c2).sum(1)
            for m in range(2, top + 1)
        ]
        moments = [torch.ones_like(cumulants[0])]
        for m in range(1, top + 1):
            moments.append(sum((math.comb(m - 1, j - 1) * cumulants[j] * moments[m - j] for j in range(1, m + 1)),
                               torch.zeros_like(cumulants[0])))  # fmt: skip
        return torch.stack(moments)

    def log_growth(self, power: float) -> Tensor:
        """log E e^{pQ} = -log det(I - 2pB)/2 + p^2 c'(I - 2pB)^{-1}c/2 - p tr B, infinite where e^{4Q} has no mean."""
        b, c2 = self._diagonal
        left = 1 - 2 * power * b.clamp(max=_BOUNDED)
        log_mean = (power**2 * c2 / left / 2 - left.log() / 2 - power * b).sum(1)
        return torch.where((b < _BOUNDED).all(1), log_mean, torch.inf)

    @cached_property
    def has_exponential(self) -> Tensor:
        """Whether e^{4Q} has a mean and e^-4 of the e^Q are effective: (columns,)."""
        return self.log_growth(2.0) - 2 * self.log_growth(1.0) <= _SPREAD

    def controls(self, q: Tensor, degree: int) -> Tensor:
        """Q^m - E Q^m for m = 1 .. degree, and what e^Q has beyond them, centred: (n, ...) -> (n, ..., degree + 1).

        Each in units of the size of its largest power, since e^Q is almost a sum of powers where Q is small. Zero where
        Q is constant, and the last one where e^Q varies too much to be of use.
        """
        shape = q.shape[1:]
        moments = [moment.reshape(shape) for moment in self.moments(max(degree, 2))]
        size = torch.where(moments[2] > 0, moments[2], 1.0).sqrt()
        found = [(q**m - moments[m]) / size**m for m in range(1, degree + 1)]
        beyond, mean = torch.expm1(q), torch.expm1(self.log_growth(1.0)).reshape(shape)
        for m in range(1, degree + 1):
            beyond, mean = beyond - q**m / math.factorial(m), mean - moments[m] / math.factorial(m)
        unit = size ** (degree + 1) / math.factorial(degree + 1)
        useful = self.has_exponential.reshape(shape)
        return torch.stack([*found, torch.where(useful, (beyond - mean) / unit, 0.0)], -1)

    def moved_controls(self, z: Tensor, degree: int) -> Tensor:
        """z, the controls of Q, and z e^Q/E e^Q - (I - 2B)^{-1}c, or z Q - c where e^Q is of no use.

        For quantities about linear in z under weights about e^Q; of the first column: (n, q) -> (n, 2q + degree + 1).
        """
        q, c = self(z)[:, :1], self.linear[0]
        products = z * q - c
        if bool(self.has_exponential[0]):
            b = self.matrix[0] if self.matrix.ndim == 3 else self.matrix[0].diag()
            mean = torch.linalg.solve(torch.eye(len(c), dtype=c.dtype) - 2 * b, c)
            products = z * torch.exp(q - self.log_growth(1.0)) - mean
        return torch.cat([z, self.controls(q, degree)[:, 0], products], 1)


def cross_fitted(targets: Tensor, controls: Tensor, folds: int) -> Tensor:
    """targets (n, k, columns) minus their regressions on centred controls (n, c, columns), of the same shape.

    Each fold's coefficients come from the other folds, so that the residuals are independent of them.
    """
    t, c = targets.permute(2, 0, 1), controls.permute(2, 0, 1)
    design = torch.cat([torch.ones_like(c[..., :1]), c], 2)
    edges = torch.linspace(0, len(targets), folds + 1).long().tolist()
    parts = [slice(a, b) for a, b in zip(edges, edges[1:])]
    grams = torch.stack([design[:, p].mT @ design[:, p] for p in parts])
    sides = torch.stack([design[:, p].mT @ t[:, p] for p in parts])
    left = t.clone()
    for k, p in enumerate(parts):
        beta = torch.linalg.pinv(grams.sum(0) - grams[k], hermitian=True) @ (sides.sum(0) - sides[k])
        left[:, p] -= c[:, p] @ beta[:, 1:]
    return left.permute(1, 2, 0)


def fitted(integrand: Integrand, noise: Noise, n: int) -> Surrogates:
    """Surrogates of F at the least cost on its leading normals, one a start, from about n/8 pilot draws.

    Up to 24 normals by least squares of F on all their products. Above, on their squares; and where F has slopes by the
    regression of grad F = c + 2 B z on z, for the diagonal of B and up to 256 normals for all of it: whichever leaves
    least of F, by generalised cross-validation.
    """
    q = integrand.leading
    width = q * (q + 3) // 2 if q <= _BY_VALUES else 2 * q
    size = max(n // 8, 4 * width, min(16 * width, 2**12))
    pieces = list(integrand.draws(noise, "pilot", size))
    found = [_evaluated(integrand, piece, q > _BY_VALUES) for piece in pieces]
    z, f = torch.cat(pieces)[:, :q], torch.cat([values for values, _ in found])
    slopes = [slope for _, slope in found if slope is not None]
    if not slopes:
        return _by_values(z, f)
    if q > _BY_SLOPES:
        return _by_own_slopes(z, torch.cat(slopes))
    fits = [_by_values(z, f), _by_own_slopes(z, torch.cat(slopes)), _by_slopes(z, torch.cat(slopes))]
    left = torch.stack([(f - fit(z)).var(0) for fit in fits])
    left[0] /= (1 - width / len(z)) ** 2  # it was fitted to these very values
    best = left.argmin(0).tolist()
    matrices = [fit.matrix for fit in fits]
    if 2 in best:  # some matrix is full
        matrices = [torch.diag_embed(matrix) for matrix in matrices[:2]] + matrices[2:]
    linear = torch.stack([fits[k].linear[column] for column, k in enumerate(best)])
    return Surrogates(linear, torch.stack([matrices[k][column] for column, k in enumerate(best)]))


def _evaluated(integrand: Integrand, z: Tensor, sloped: bool) -> tuple[Tensor, Tensor | None]:
    """F (m, rows), and its slopes in the leading normals (m, rows, q) where they are asked for and exist."""
    if not sloped:
        return integrand.rough(z), None
    with torch.enable_grad():
        leading = z[:, : integrand.leading].clone().requires_grad_()
        f = integrand.rough(torch.cat([leading, z[:, integrand.leading :]], 1))
        if not f.requires_grad:
            return f, None
        slopes = [torch.autograd.grad(column.sum(), leading, retain_graph=True)[0] for column in f.unbind(1)]
    return f.detach(), torch.stack(slopes, 1)


def _by_values(z: Tensor, f: Tensor) -> Surrogates:
    """Least squares of f (m, columns) on 1, z and z_i z_j - delta_ij, or z_i^2 - 1 only above 24 normals."""
    q = z.shape[1]
    i, j = torch.triu_indices(q, q) if q <= _BY_VALUES else torch.arange(q).expand(2, q)
    products = z[:, i] * z[:, j] - (i == j).to(z)
    design = torch.cat([torch.ones(len(z), 1, dtype=z.dtype), z, products], 1)
    found = torch.linalg.solve(design.mT @ design, design.mT @ f)  # orthogonal columns, up to sampling
    linear, quadratic = found[1 : q + 1].mT, found[q + 1 :].mT
    if q > _BY_VALUES:
        return Surrogates(linear, quadratic)
    half = torch.zeros(len(linear), q, q, dtype=z.dtype)
    half[:, i, j] = quadratic / 2
    return Surrogates(linear, half + half.mT)


def _by_slopes(z: Tensor, slopes: Tensor) -> Surrogates:
    """Least squares of the slopes (m, columns, q) on 1 and z: c and 2B, made symmetric."""
    design = torch.cat([torch.ones(len(z), 1, dtype=z.dtype), z], 1)
    found = torch.linalg.solve(design.mT @ design, design.mT @ slopes.flatten(1)).unflatten(1, slopes.shape[1:])
    matrix = found[1:].movedim(1, 0)
    return Surrogates(found[0], (matrix + matrix.mT) / 4)


def _by_own_slopes(z: Tensor, slopes: Tensor) -> Surrogates:
    """Each slope (m, columns, q) on 1 and its own normal: c and the diagonal of 2B."""
    centred = z - z.mean(0)
    bend = (slopes * centred[:, None]).mean(0) / centred.square().mean(0)
    return Surrogates(slopes.mean(0) - bend * z.mean(0), bend / 2)
