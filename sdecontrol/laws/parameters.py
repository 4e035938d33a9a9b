"""How a law reads its parameters, and how it lends them to points of another dtype or device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import check


def as_float64(name: str, value: Any) -> Tensor:
    """A parameter as a finite float64 tensor; raises BadInput naming it otherwise."""
    tensor = torch.as_tensor(value, dtype=torch.float64)
    check(bool(torch.isfinite(tensor).all()), f"{name} with NaN or infinite entries", "finite numbers")
    return tensor


def common_dtype(*values: Any) -> torch.dtype:
    """float32 when every tensor among the values is a float32 tensor and there is one; else float64."""
    dtypes = {value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()}
    return torch.float32 if dtypes == {torch.float32} else torch.float64


class Coefficients:
    """Float64 tensors built once, when first needed, and cast once to each dtype and device of the points."""

    def __init__(self, build: Callable[[], tuple[Tensor, ...]]):
        self._build = build
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def like(self, x: Tensor) -> tuple[Tensor, ...]:
        key = (x.dtype, x.device)
        found = self._cast.get(key)
        if found is None:
            found = self._cast[key] = tuple(t.to(device=x.device, dtype=x.dtype) for t in self._build())
        return found


def apply(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix @ x_i for every point: (m, d), (n, d) -> (n, m), a view of (m, n) memory; x is never copied."""
    return torch.mm(matrix, x.mT).mT


def apply_affine(matrix: Tensor, x: Tensor, offset: Tensor) -> Tensor:
    """matrix @ x_i + offset for every point: (m, d), (n, d), (m,) -> (n, m), a view of (m, n) memory."""
    return torch.addmm(offset[:, None], matrix, x.mT).mT
