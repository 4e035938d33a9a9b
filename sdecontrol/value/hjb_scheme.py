"""What a scheme for the HJB equation is, and what it leaves behind: a field that knows v and grad v."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sdecontrol.value.hjb_splines import Splined

Array = np.ndarray
_KEPT_ENTRIES = 2**25  # float64 numbers of all kept splines together


@dataclass(frozen=True)
class Nodes:
    """v and grad v at one time on a tensor grid: value (n_1, ..., n_d), gradient (n_1, ..., n_d, d)."""

    axes: list[Array]
    value: Tensor
    gradient: Tensor


class Field(ABC):
    """The solution of one scheme at all times."""

    degree = 5  # of the splines between nodes

    def __init__(self) -> None:
        self._splines: OrderedDict[float, Splined] = OrderedDict()

    @abstractmethod
    def nodes(self, t: float) -> Nodes:
        """On the scheme's own nodes at generation time t."""

    def on_nodes(self, t: float, axes: list[Array]) -> Tensor:
        """v at generation time t on the nodes of the axes the solution was asked for: (n_1, ..., n_d)."""
        return self.nodes(t).value

    def splined(self, t: float) -> Splined:
        """The nodes at t as splines; kept, since every block of paths asks for the same times."""
        spline = self._splines.get(t)
        if spline is None:
            found = self.nodes(t)
            spline = self._splines[t] = Splined(found.axes, found.value, found.gradient, self.degree)
            kept = max(_KEPT_ENTRIES // (found.value.numel() + found.gradient.numel()), 2)
            if len(self._splines) > kept:
                self._splines.popitem(last=False)
        return spline

    def read(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """(v (n,), grad v (n, d)) at points x (n, d), as accurately as the scheme can."""
        return self.splined(t)(x)


class Scheme(ABC):
    """A way to solve v_t + b.grad v + g^2 lap v/2 + g^2 |grad v|^2/(2 temperature) + f = 0, v(T) = r, on a grid."""

    smallest: int  # points an axis

    @abstractmethod
    def floor(self, dim: int) -> float:
        """Relative to 1 + |v|: differences between grids below say nothing about the order in the node distance."""

    @abstractmethod
    def suits(self, problem: Any) -> bool:
        """Whether this scheme is the one to take when the user names none."""

    @abstractmethod
    def check(self, problem: Any) -> None:
        """Raise BadInput or NotDefined, before work, where the scheme cannot be used."""

    @abstractmethod
    def box(self, problem: Any) -> tuple[Array, Array]:
        """(low, high), (d,) each: a box that holds the tilted law."""

    @abstractmethod
    def outside(self, problem: Any, axes: list[Array]) -> float:
        """Share of the tilted law outside the box of the axes."""

    @abstractmethod
    def solve(self, problem: Any, axes: list[Array]) -> Field:
        """The field. Raises ValueBlowUp when the value is infinite before t = 0 is reached."""
