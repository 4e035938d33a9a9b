"""Features of time: functions t -> (m,) on which a family's coefficients are linear."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import check

_SAME_TIME = 1e-12


class TimeFeatures(ABC):
    """phi(t) in R^count, float64; each time is computed once."""

    count: int

    def __init__(self, count: int):
        check(isinstance(count, int) and count >= 1, f"{count!r} features", "a positive integer")
        self.count, self._known = count, dict[tuple[float, torch.dtype], Tensor]()

    def __call__(self, t: float, dtype: torch.dtype = torch.float64) -> Tensor:
        """phi(t): (count,)."""
        found = self._known.get((t, dtype))
        if found is None:
            found = self._known[t, dtype] = torch.as_tensor(self.evaluate(t), dtype=dtype)
        return found

    @abstractmethod
    def evaluate(self, t: float) -> np.ndarray:
        """phi(t) without the cache."""


class Polynomials(TimeFeatures):
    """Legendre polynomials of degree < count in 2 t / horizon - 1: well conditioned, spectral for smooth gains."""

    def __init__(self, count: int = 8, horizon: float = 1.0):
        super().__init__(count)
        self.horizon = horizon

    def evaluate(self, t: float) -> np.ndarray:
        return np.polynomial.legendre.legvander(np.array([2 * t / self.horizon - 1]), self.count - 1)[0]


class Cosines(TimeFeatures):
    """1, cos(pi t / horizon), ..., cos((count - 1) pi t / horizon): the input of a network."""

    def __init__(self, count: int = 16, horizon: float = 1.0):
        super().__init__(count)
        self.horizon = horizon

    def evaluate(self, t: float) -> np.ndarray:
        return np.cos(np.pi * np.arange(self.count) * t / self.horizon)


class Decays(TimeFeatures):
    """1 and exp(-(horizon - t)/tau_j), tau_j geometric from horizon to `shortest` horizon: for controls that act late.

    Where the reference forgets at a rate, the reward is felt only that long before the end.
    """

    def __init__(self, count: int = 8, horizon: float = 1.0, shortest: float = 5e-3):
        super().__init__(count)
        check(
            count >= 3 and 0 < shortest < 1, f"count = {count}, shortest = {shortest}", "count >= 3, 0 < shortest < 1"
        )
        self.horizon, self.scales = horizon, horizon * np.geomspace(1.0, shortest, count - 1)

    def evaluate(self, t: float) -> np.ndarray:
        return np.concatenate([[1.0], np.exp(-(self.horizon - t) / self.scales)])


class GridTimes(TimeFeatures):
    """The indicator of each of the given times: a coefficient of its own for every step of one grid.

    Raises: BadInput at any other time.
    """

    def __init__(self, times: Iterable[float]):
        self.times = np.asarray(list(times), dtype=np.float64)
        super().__init__(len(self.times))

    def evaluate(self, t: float) -> np.ndarray:
        near = np.abs(self.times - t) <= _SAME_TIME * (1 + abs(t))
        check(bool(near.sum() == 1), f"t = {t}", "one of the grid times that the family was made for",
              "Use Polynomials for a family that knows every time.")  # fmt: skip
        return near.astype(np.float64)
