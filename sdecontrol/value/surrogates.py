"""Quadratics of standard normals, whose powers and exponential have known means: the controls of `ControlVariates`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_BOUNDED = 0.125  # eigenvalues of B below which e^{4Q} has a mean
_SPREAD = 4.0  # largest log of E e^{2Q} / (E e^Q)^2


@dataclass(frozen=True, eq=False)
class Surrogates:
    """Q = sum_i c_i z_i + b_i (z_i^2 - 1) in eigenvectors of its matrix: b and c^2 (columns, q) of every column."""

    b: Tensor
    c2: Tensor
    degree: int

    def controls(self, q: Tensor) -> Tensor:
        """Q^m - E Q^m for m = 1 .. degree, and what e^Q has beyond them, centred: (n, ...) -> (n, ..., degree + 1).

        Each in units of the size of its largest power, since e^Q is almost a sum of powers where Q is small. Zero where
        Q is constant, and the last one where e^Q varies too much to be of use.
        """
        shape = q.shape[1:]
        moments = [moment.reshape(shape) for moment in self.moments]
        size = torch.where(moments[2] > 0, moments[2], 1.0).sqrt()
        found = [(q**m - moments[m]) / size**m for m in range(1, self.degree + 1)]
        beyond, mean = torch.expm1(q), torch.expm1(self.log_growth(1.0)).reshape(shape)
        for m in range(1, self.degree + 1):
            beyond, mean = beyond - q**m / math.factorial(m), mean - moments[m] / math.factorial(m)
        useful = (self.log_growth(2.0) - 2 * self.log_growth(1.0) <= _SPREAD).reshape(shape)
        unit = size ** (self.degree + 1) / math.factorial(self.degree + 1)
        return torch.stack([*found, torch.where(useful, (beyond - mean) / unit, 0.0)], -1)

    @cached_property
    def moments(self) -> Tensor:
        """E Q^m, m = 0 .. 2 degree, of every column, from the cumulants: (2 degree + 1, columns)."""
        top = 2 * self.degree
        cumulants = [torch.zeros(len(self.b), dtype=self.b.dtype)] * 2 + [
            2.0 ** (m - 1) * math.factorial(m - 1) * (self.b**m).sum(1)
            + 2.0 ** (m - 3) * math.factorial(m) * (self.b ** (m - 2) * self.c2).sum(1)
            for m in range(2, top + 1)
        ]
        moments = [torch.ones_like(cumulants[0])]
        for m in range(1, top + 1):
            moments.append(sum((math.comb(m - 1, j - 1) * cumulants[j] * moments[m - j] for j in range(1, m + 1)),
                               torch.zeros_like(cumulants[0])))  # fmt: skip
        return torch.stack(moments)

    def log_growth(self, power: float) -> Tensor:
        """log E e^{power Q} of every column, infinite where e^{4Q} has no mean."""
        left = 1 - 2 * power * self.b.clamp(max=_BOUNDED)
        log_mean = (power**2 * self.c2 / left / 2 - left.log() / 2 - power * self.b).sum(1)
        return torch.where((self.b < _BOUNDED).all(1), log_mean, torch.inf)
