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
from sdecontrol.value.surrogates import cross_fitted, fitted


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

    Q is fitted to F, and to its slopes where it has any, on a pilot (`surrogates`); e^Q is used where e^{4Q} has a mean
    and at least e^-4 of the e^Q are effective. The regression is cross-fitted over `folds`: each fold's coefficients
    come from the others, so the residuals' error bar is honest. Where F is quadratic nothing is left but rounding;
    where it is a smooth function of a quadratic the variance falls by orders of magnitude; where weights collapse the
    regression follows a few of them. Raises: NotDefined when its mean turns negative.
    """

    degree: int = 3
    folds: int = 8

    def run(self, task: Task, n: int, noise: Noise) -> LogMean:
        integrand = task.integrand
        surrogates = fitted(integrand, noise, n)
        log_w, found = [], []
        for z in integrand.draws(noise, "value", n):
            log_w.append(integrand.log_weight(z))
            found.append(surrogates(z[:, : integrand.leading]))
        growth = torch.cat(log_w)
        top = growth.amax(0)
        weights, controls = torch.exp(growth - top), surrogates.controls(torch.cat(found), self.degree).mT
        units = torch.stack([cross_fitted(w[:, None], controls, self.folds)[:, 0] for w in weights.unbind(1)], 1)
        if not bool((units.mean(0) > 0).all()):
            raise NotDefined(
                "control variates gave a negative mean of positive weights, as few of them carry it; use Laplace(), "
                "Adapted() or Portfolio()"
            )
        return of_units(units, top, growth[:, 0], integrand.order, len(growth), self.name)

    def moved(self, integrand: Integrand, z: Tensor, noise: Noise) -> Tensor:
        """Centred controls for derivatives in the start, at normals z (n, dim): (n, c). Raises BadInput for small n."""
        found = fitted(integrand, noise, len(z)).moved_controls(z[:, : integrand.leading], self.degree)
        wanted = 4 * found.shape[1]
        check(len(z) >= wanted, f"{len(z)} samples for {found.shape[1]} control variates", f"at least {wanted}")
        return found
