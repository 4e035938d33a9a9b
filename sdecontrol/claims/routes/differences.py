"""Derivatives of functions of time and state by fourth-order central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

STENCIL = ((-2, 1 / 12, -1 / 12), (-1, -8 / 12, 16 / 12), (1, 8 / 12, 16 / 12), (2, -1 / 12, -1 / 12))
CENTRE = -30 / 12  # of the second difference
ROUNDINGS = 64  # in one difference, in units of the size of the function


class Slopes(NamedTuple):
    """Of f(t, x (n, D)) -> (n,) at n points: time derivative (n,), gradient (n, D), Laplacian (n,)."""

    in_time: Tensor
    gradient: Tensor
    laplacian: Tensor

    @classmethod
    def of(cls, f: Callable[[float, Tensor], Tensor], t: float, x: Tensor, dt: float, dx: float) -> Slopes:
        n, d = x.shape
        steps = dx * torch.eye(d, dtype=x.dtype)
        in_time, gradient = torch.zeros(n, dtype=x.dtype), torch.zeros(n, d, dtype=x.dtype)
        second = CENTRE * d * f(t, x)
        for k, first, bend in STENCIL:
            moved = f(t, (x[:, None] + k * steps).reshape(n * d, d)).view(n, d)
            in_time += first / dt * f(t + k * dt, x)
            gradient += first / dx * moved
            second = second + bend * moved.sum(1)
        return cls(in_time, gradient, second / dx**2)


def divergence(field: Callable[[Tensor], Tensor], x: Tensor, dx: float) -> Tensor:
    """sum_i d field_i / d x_i at n points: (n, D) -> (n,)."""
    n, d = x.shape
    steps = dx * torch.eye(d, dtype=x.dtype)
    total = torch.zeros(n, dtype=x.dtype)
    for k, first, _ in STENCIL:
        moved = field((x[:, None] + k * steps).reshape(n * d, d)).view(n, d, d)
        total += first / dx * moved.diagonal(dim1=1, dim2=2).sum(1)
    return total
