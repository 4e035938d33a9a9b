"""The schedule of a discrete chain, from its table of alphas_cumprod."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.schedules.base import Level, VariancePreserving, check_decay, make_positive


class _Cells(NamedTuple):
    """Levels and decays at the N+1 ends of the cells, -f in the N cells: tuples, or tensors for tensors."""

    levels: Any
    decays: Any
    rates: Any


@dataclass(frozen=True, repr=False)
class Tabulated(VariancePreserving):
    """A discrete chain's table as a schedule: alpha(s_j)^2 = alphas_cumprod[j] at s_j = horizon (j+1)/N.

    s = 0 is alpha = 1 and log alpha is linear between the levels, so f and g2 are constant on (s_{j-1}, s_j]:
    g2(s_j) = -(N/horizon) log(1 - beta_j). A level within rounding of s_j counts as s_j.
    alphas_cumprod: sequence, array or tensor of N >= 1 numbers, 1 > a_0 > a_1 > ... > a_{N-1} > 0, index 0
    the least noisy, without a leading 1; kept as a tuple of floats.
    Accuracy: rounding for s_next = 0; a relative 1e-15 s/(s - s_next) for steps.
    Raises: BadInput for anything else, a table of zero terminal SNR included (its log alpha is not finite).
    """

    alphas_cumprod: Sequence[float] | np.ndarray | Tensor
    horizon: float = 1.0
    smooth = False

    def __post_init__(self) -> None:
        make_positive(self, "horizon")
        table = np.asarray(self.alphas_cumprod, dtype=np.float64)
        check(table.ndim == 1 and table.size >= 1, f"alphas_cumprod of shape {table.shape}", "a list")
        good = np.isfinite(table).all() and (np.diff(table) < 0).all() and table[0] < 1 and table[-1] > 0
        check(bool(good), f"alphas_cumprod from {table[0]} to {table[-1]}",
              "strictly decreasing numbers inside (0, 1), the least noisy first",
              "Leave out a leading 1 (s = 0 is alpha = 1 already); a final 0 has no finite log alpha.")
        object.__setattr__(self, "alphas_cumprod", tuple(table.tolist()))
        check_decay(self._cells.decays[-1])

    @classmethod
    def stable_diffusion(cls, horizon: float = 1.0) -> Tabulated:
        """Stable Diffusion: sqrt(beta) linear from sqrt(0.00085) to sqrt(0.012), N = 1000, in float64."""
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        return cls(np.cumprod(1 - betas), horizon)

    def __repr__(self) -> str:
        return f"Tabulated(<{self.size} numbers>, horizon={self.horizon})"

    @property
    def size(self) -> int:
        """N, the number of entries of the table."""
        return len(self.alphas_cumprod)

    def level(self, index: int) -> float:
        """s_j = horizon (j+1)/N, the level of entry j = `index` (the chain's integer timestep)."""
        check(isinstance(index, int | np.integer) and 0 <= index < self.size, f"index {index!r}",
              f"an integer from 0 to {self.size - 1}")
        return self.horizon * (int(index) + 1) / self.size

    def index(self, s: float) -> int:
        """The entry j that sits at level s; BadInput unless s is one of the s_j, to 1e-9 of a cell."""
        position = self._level(s) * self.size / self.horizon
        nearest = round(position)
        check(nearest >= 1 and abs(position - nearest) <= 1e-9, f"level {s!r} = {position} cells",
              "a level of the table, 1 cell or more", "Use a grid through schedule.level(j).")
        return nearest - 1

    @cached_property
    def _cells(self) -> _Cells:
        levels = tuple(self.horizon * j / self.size for j in range(self.size + 1))
        decays = (0.0, *(-math.log(float(a)) / 2 for a in self.alphas_cumprod))
        return _Cells(levels, decays, tuple((np.diff(decays) / np.diff(levels)).tolist()))

    @cached_property
    def _cell_tensors(self) -> _Cells:
        return _Cells(*(torch.tensor(column, dtype=torch.float64) for column in self._cells))

    def _columns(self, x: float | Tensor) -> _Cells:
        if isinstance(x, Tensor):
            return _Cells(*(column.to(x.device) for column in self._cell_tensors))
        return self._cells

    def _cell(self, s: Level) -> Any:
        """j with s in (levels[j], levels[j+1]], up to rounding: an int, or a tensor of them."""
        position = s * (self.size / self.horizon) - 1e-15 * self.size
        if isinstance(position, Tensor):
            return position.detach().floor().long().clamp(0, self.size - 1)
        return min(max(math.floor(position), 0), self.size - 1)

    def _f(self, s: Level) -> Level:
        return -self._columns(s).rates[self._cell(s)] + 0.0 * s

    def _decay(self, s: Level, s_next: Level) -> Level:
        levels, decays, rates = self._columns(s)
        i, j = self._cell(s), self._cell(s_next)
        return (decays[i] - decays[j]) + rates[i] * (s - levels[i]) - rates[j] * (s_next - levels[j])

    def _level_of_decay(self, decay: Level) -> Level:
        levels, decays, rates = self._columns(decay)
        if isinstance(decay, Tensor):
            j: Any = (torch.searchsorted(decays, decay.detach()) - 1).clamp(0, self.size - 1)
        else:
            j = min(max(bisect_left(decays, decay) - 1, 0), self.size - 1)
        return levels[j] + (decay - decays[j]) / rates[j]
