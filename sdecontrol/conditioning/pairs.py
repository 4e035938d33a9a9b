"""Offline pairs (x, y): what a label likelihood is learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sdecontrol.errors import BadInput, check
from sdecontrol.noise import Noise


@dataclass(frozen=True, eq=False)
class Examples:
    """Points x (n, *event) with one y each: (n,)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> Self:
        return self._with(self.x[rows], self.y[rows])

    def _with(self, x: Tensor, y: Tensor) -> Self:
        return type(self)(x, y)

    def split(self, fraction: float, noise: Noise | None = None) -> tuple[Self, Self]:
        """(training, held-out) pairs in random order, that fraction held out. Raises BadInput when one is empty."""
        check(0 < fraction < 1, f"a held-out fraction of {fraction}", "a number between 0 and 1")
        held = round(fraction * len(self))
        check(0 < held < len(self), f"{held} of {len(self)} pairs held out", "at least one pair on either side")
        order = torch.cat([block.uniform() for block in (noise or Noise(0)).blocks("split", len(self), (1,))])
        order = order[: len(self)].argsort()
        return self[order[held:]], self[order[:held]]

    def _check_points(self) -> None:
        x, y = self.x, self.y
        check(isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= 2 and len(x) > 0,
              f"x of type {type(x).__name__}" + (f" and shape {tuple(x.shape)}" if isinstance(x, Tensor) else ""),
              "points (n, *event), floating")  # fmt: skip
        check(isinstance(y, Tensor) and y.shape == (len(x),),
              f"y of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"y of type {type(y).__name__}",
              f"one for each of the {len(x)} points: ({len(x)},)")  # fmt: skip
        check(bool(torch.isfinite(x).all()), "x with NaN or infinite entries", "finite points")


@dataclass(frozen=True, eq=False)
class Pairs(Examples):
    """Pairs of a point and a class in 0 .. classes - 1.

    Raises: BadInput for shapes that do not match, points that are not finite, labels that are no integers or out of
    range, and, unless `empty` is allowed, a class without a pair: maximum likelihood then sends its odds to zero.
    """

    classes: int
    empty: bool = False

    def __post_init__(self) -> None:
        self._check_points()
        check(isinstance(self.classes, int) and self.classes >= 2, f"classes = {self.classes!r}", "2 or more")
        check(not self.y.is_floating_point() and self.y.dtype != torch.bool, f"labels of type {self.y.dtype}",
              "integers", "Pass y.long(); for a continuous label use TargetPairs.")  # fmt: skip
        low, high = int(self.y.min()), int(self.y.max())
        check(low >= 0 and high < self.classes, f"labels from {low} to {high}", f"classes 0 .. {self.classes - 1}")
        missing = [c for c, count in enumerate(self.counts.tolist()) if count == 0]
        check(self.empty or not missing, f"no pair of class {', '.join(map(str, missing))}",
              "at least one of every class", "Gather such pairs, merge classes, or pass empty=True.")  # fmt: skip

    def _with(self, x: Tensor, y: Tensor) -> Self:
        return type(self)(x, y, self.classes, empty=True)

    @property
    def counts(self) -> Tensor:
        """Pairs of each class: (classes,)."""
        return torch.bincount(self.y, minlength=self.classes)


@dataclass(frozen=True, eq=False)
class TargetPairs(Examples):
    """Pairs of a point and a number. Raises BadInput for shapes that do not match and numbers that are not finite."""

    def __post_init__(self) -> None:
        self._check_points()
        check(self.y.is_floating_point(), f"targets of type {self.y.dtype}", "floating numbers")
        check(bool(torch.isfinite(self.y).all()), "targets with NaN or infinite entries", "finite numbers")


def check_label(label: Any, classes: int) -> int:
    """The class as an int. Raises BadInput unless it is one of 0 .. classes - 1."""
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
        raise BadInput(f"saw label {label!r}; wanted a class in 0 .. {classes - 1}, those of the classifier.")
    return label
