"""Orthonormal coordinates on an affine subspace of R^D."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.laws.base import Law
from sdecontrol.laws.parameters import Coefficients, apply, apply_affine, as_float64, common_dtype


class Frame:
    """Coordinates on the affine subspace {offset + B u}, B (D, d) with orthonormal columns.

    Raises: BadInput for wrong shapes, or when B'B is off the identity by more than 1e-8 (1e-5 for a float32
    basis).
    """

    def __init__(self, basis: Any, offset: Any):
        b, o = as_float64("basis", basis), as_float64("offset", offset)
        check(
            b.ndim == 2 and 0 < b.shape[1] <= b.shape[0],
            f"basis of shape {tuple(b.shape)}",
            "(D, d) with d <= D",
        )
        check(o.shape in {(), (len(b),)}, f"offset of shape {tuple(o.shape)}", f"a number or ({len(b)},)")
        off = float((b.mT @ b - torch.eye(b.shape[1], dtype=torch.float64)).abs().max())
        rounding = 1e-5 if common_dtype(basis) == torch.float32 else 1e-8
        check(
            off <= rounding,
            f"a basis whose columns are off orthonormal by {off:.3g}",
            f"at most {rounding:g}",
            "Pass torch.linalg.qr(basis).Q.",
        )
        self._set(b, o.expand(len(b)))

    def _set(self, basis: Tensor, offset: Tensor) -> None:
        self.basis, self.offset = basis, offset
        self.dim, self.latent_dim = basis.shape
        self._centred = not bool(offset.any())
        self._terms = Coefficients(lambda: (self.basis, self.offset))

    def through(self, offset: Tensor) -> Frame:
        """The same directions through another point (D,)."""
        frame = Frame.__new__(Frame)
        frame._set(self.basis, offset)
        return frame

    def centre(self, x: Tensor, a: float = 1.0) -> Tensor:
        """x - a offset."""
        return x if self._centred else torch.sub(x, self._terms.like(x)[1], alpha=a)

    def project(self, x: Tensor) -> Tensor:
        """B' x: (n, D) -> (n, d)."""
        return apply(self._terms.like(x)[0].mT, x)

    def encode(self, x: Tensor, a: float = 1.0) -> Tensor:
        """B' (x - a offset): (n, D) -> (n, d)."""
        return self.project(self.centre(x, a))

    def decode(self, u: Tensor, a: float = 1.0) -> Tensor:
        """a offset + B u: (n, d) -> (n, D)."""
        basis, offset = self._terms.like(u)
        return apply(basis, u) if self._centred else apply_affine(basis, u, a * offset)

    def plus_scaled(self, u: Tensor, y: Tensor, scale: float) -> Tensor:
        """B u + scale y, in one pass: (n, d), (n, D) -> (n, D)."""
        return torch.addmm(y.mT, self._terms.like(u)[0], u.mT, beta=scale).mT

    def normal(self, y: Tensor) -> Tensor:
        """(I - B B') y: the part of y off the span."""
        return self.plus_scaled(-self.project(y), y, 1.0)


def check_latent(frame: Frame, law: Law) -> None:
    check(
        law.event_shape == (frame.latent_dim,),
        f"a latent law on events {law.event_shape}",
        f"({frame.latent_dim},), the number of columns of the basis",
    )
