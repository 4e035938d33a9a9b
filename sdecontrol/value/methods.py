"""Means of e^F over the prior normals: plain, antithetic, randomised quasi-Monte Carlo, control variates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import NotDefined, check
from sdecontrol.noise import Noise
from sdecontrol.value.estimate import LogMean, of_nets, of_units, of_weights
from sdecontrol.value.integrand import Integrand, Task, log_weights, normals
from sdecontrol.value.surrogates import Surrogates


class Method(ABC):
    """A way to estimate log h at the rows of a task from about n evaluations of F a row."""

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def run(self, task: Task, n: int, noise: Noise) -> LogMean:
        """log h with its errors. Common random numbers across rows where F is evaluated for all of them at once."""


@dataclass(frozen=True)
class Plain(Method):
    """h = mean of e^F: unbiased, standard error by the delta method. Fails where few weights carry the mean."""

    def run(self, task: Task, n: int, noise: Noise) -> LogMean:
        integrand = task.integrand
        return of_weights(log_weights(integrand, integrand.draws(noise, "value", n)), integrand.order, self.name)


@dataclass(frozen=True)
class Antithetic(Method):
    """Pairs (e^{F(z)} + e^{F(-z)})/2: the odd part of e^F costs nothing. Of no use where e^F is even in z."""

    def run(self, task: Task, n: int, noise: Noise) -> LogMean:
        integrand = task.integrand
        draws = integrand.draws(noise, "value", n // 2)
        pairs = [(integrand.log_weight(z), integrand.log_weight(-z)) for z in draws]
        plus, minus = (torch.cat(side) for side in zip(*pairs))
        top = torch.maximum(plus.amax(0), minus.amax(0))
        units = (torch.exp(plus - top) + torch.exp(minus - top)) / 2
        both = torch.cat([plus, minus])
        return of_units(units, top, both[:, 0], integrand.order, len(both), self.name)


@dataclass(frozen=True)
class QuasiMonteCarlo(Method):
    """`randomisations` independently scrambled Sobol nets; the standard error is that of their means (few degrees).

    A net meets the largest weights once or not at all, so that the spread of a few nets may not show them: what the
    largest ones, one a net, would vary by if they fell independently is added to it in quadrature.

    The net fills the first `dims` normals (those of the end point and of the leading modes of the path; for an exactly
    known transition all of them, largest variance first), pseudo-random normals the others. Points are the centres of
    the cells of the net, so that no normal is infinite. n is rounded down to randomisations times a power of two.
    Fails like Plain where weights collapse, and gains little where e^F varies in many directions at once.
    """

    randomisations: int = 16
    dims: int = 1024

    def __post_init__(self) -> None:
        check(self.randomisations >= 4, f"{self.randomisations} randomisations", "at least 4, for a standard error")

    def run(self, task: Task, n: int, noise: Noise) -> LogMean:
        integrand = task.integrand
        bits = int(math.log2(max(n // self.randomisations, 2)))
        found = [log_weights(integrand, self._points(integrand, noise, r, bits)) for r in range(self.randomisations)]
        return of_nets(torch.stack(found), integrand.order, self.name)

    def _points(self, integrand: Integrand, noise: Noise, index: int, bits: int) -> Iterator[Tensor]:
        """2^bits rows of normals of one randomisation, in pieces of a power of two."""
        filled = min(self.dims, integrand.leading)
        generator = noise.block("sobol", index, index + 1, (1,)).generator
        seed = torch.randint(2**62, (2,), generator=generator).tolist()
        from scipy.stats import qmc  # here: it takes a quarter of a second to load

        net = qmc.Sobol(filled, bits=30, rng=np.random.default_rng(seed))
        piece = min(1 << int(math.log2(max(integrand.chunk, 2))), 2**bits)
        others = integrand.dim - filled
        rest = normals(noise, f"beside sobol {index}", 2**bits, others, piece) if others else _nothing(2**bits, piece)
        for beside in rest:
            z = torch.special.ndtri(torch.from_numpy(net.random(len(beside))) + 2.0**-31)
            yield torch.cat([z, beside], 1) if others else z


def _nothing(n: int, piece: int) -> Iterator[Tensor]:
    """n rows without columns, `piece` at a time."""
    yield from torch.zeros(n, 0, dtype=torch.float64).split(piece)


@dataclass(frozen=True)
class ControlVariates(Method):
    """A quadratic surrogate Q of F, and e^F regressed on Q, ..., Q^degree and e^Q, whose means are known exactly.

    Q(z) = c . z + z'Bz - tr B is fitted to F on a pilot (B full up to `full` leading normals, else diagonal). Its
    moments follow from its cumulants kappa_m = 2^{m-1} (m-1)! tr B^m + 2^{m-3} m! c'B^{m-2}c, and

        E e^Q = det(I - 2B)^{-1/2} exp(c'(I - 2B)^{-1}c/2 - tr B),

    used where e^{4Q} has a mean and at least e^-4 of the e^Q are effective. The regression is cross-fitted over
    `folds`: each fold's coefficients come from the others, so the residuals' error bar is honest. Where F is quadratic
    nothing is left but rounding; where it is a smooth function of a quadratic the variance falls by orders of
    magnitude; where weights collapse the regression follows a few of them. Raises: NotDefined when its mean turns
    negative.
    """

    degree: int = 3
    folds: int = 8
    full: int = 24

    def run(self, task: Task, n: int, noise: Noise) -> LogMean:
        integrand = task.integrand
        q = integrand.leading
        width = self._features(torch.zeros(1, q, dtype=torch.float64)).shape[1]
        size = max(n // 8, 4 * width, min(16 * width, 2**12))
        coefficients, surrogates = self._fit(integrand, noise, size)
        log_w, controls = [], []
        for z in integrand.draws(noise, "value", n):
            log_w.append(integrand.log_weight(z))
            controls.append((self._features(z[:, :q]) @ coefficients).reshape(len(z), *log_w[-1].shape[1:]))
        weights, surrogate = torch.cat(log_w), torch.cat(controls)
        top = weights.amax(0)
        units = self._residuals(torch.exp(weights - top), surrogates.controls(surrogate))
        if not bool((units.mean(0) > 0).all()):
            raise NotDefined(
                "control variates gave a negative mean of positive weights, as few of them carry it; use Laplace(), "
                "Adapted() or Portfolio()"
            )
        return of_units(units, top, weights[:, 0], integrand.order, len(weights), self.name)

    def _features(self, z: Tensor) -> Tensor:
        """z, then z_i z_j - delta_ij for i <= j, or z_i^2 - 1 only above `full` normals."""
        if z.shape[1] > self.full:
            return torch.cat([z, z.square() - 1], 1)
        i, j = torch.triu_indices(z.shape[1], z.shape[1])
        return torch.cat([z, z[:, i] * z[:, j] - (i == j).to(z)], 1)

    def _fit(self, integrand: Integrand, noise: Noise, size: int) -> tuple[Tensor, Surrogates]:
        """Least squares of F on 1, z and the quadratic features over pilot normals: their coefficients."""
        pieces = list(integrand.draws(noise, "pilot", size))
        z = torch.cat(pieces)[:, : integrand.leading]
        f = torch.cat([integrand.rough(piece) for piece in pieces]).repeat(1, integrand.levels)
        features = self._features(z)
        design = torch.cat([torch.ones(len(z), 1, dtype=z.dtype), features], 1)
        found = torch.linalg.solve(design.mT @ design, design.mT @ f)[1:]  # orthogonal columns, up to sampling
        return found, Surrogates(*self._diagonal(found, integrand.leading), self.degree)

    def _diagonal(self, coefficients: Tensor, q: int) -> tuple[Tensor, Tensor]:
        """The eigenvalues of B and the squares of c in its eigenvectors: (columns, q) each."""
        linear, quadratic = coefficients[:q], coefficients[q:]
        if q > self.full:
            return quadratic.mT, linear.mT.square()
        i, j = torch.triu_indices(q, q)
        matrix = torch.zeros(coefficients.shape[1], q, q, dtype=coefficients.dtype)
        matrix[:, i, j] = quadratic.mT / 2
        values, vectors = torch.linalg.eigh(matrix + matrix.mT)
        return values, (vectors.mT @ linear.mT[:, :, None])[..., 0].square()

    def _residuals(self, weights: Tensor, controls: Tensor) -> Tensor:
        """weights (n, ...) minus the fitted combination of centred controls (n, ..., c), cross-fitted."""
        n, shape = len(weights), weights.shape
        w, c = weights.reshape(n, -1), controls.reshape(n, -1, controls.shape[-1])
        design = torch.cat([torch.ones_like(c[..., :1]), c], 2)
        edges = np.linspace(0, n, self.folds + 1).astype(int)
        parts = [slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:])]
        grams = torch.stack([torch.einsum("nci,ncj->cij", design[p], design[p]) for p in parts])
        sides = torch.stack([torch.einsum("nci,nc->ci", design[p], w[p]) for p in parts])
        residuals = torch.empty_like(w)
        for k, p in enumerate(parts):
            beta = torch.linalg.pinv(grams.sum(0) - grams[k], hermitian=True) @ (sides.sum(0) - sides[k])[..., None]
            residuals[p] = w[p] - torch.einsum("nci,ci->nc", c[p], beta[:, 1:, 0])
        return residuals.reshape(shape)
