"""Which method for which row: a small pilot of each, and the one with the smallest error that can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdecontrol.errors import NotDefined, NotFinite
from sdecontrol.noise import Noise
from sdecontrol.value.estimate import LogMean
from sdecontrol.value.importance import Adapted, Laplace
from sdecontrol.value.integrand import Task, derived
from sdecontrol.value.methods import ControlVariates, Method, QuasiMonteCarlo

_PILOT_BY_LAW, _PILOT_BY_PATHS = 4096, 1024
_MARGIN = 2.0  # times the carriers that an error bar needs: those of the pilot are themselves estimated
_APART = 4.0  # standard errors by which a pilot may lie below another one before it is said to miss mass


@dataclass(frozen=True)
class Portfolio(Method):
    """Each row by the candidate whose pilot promises the smallest error, under fresh noise.

    A candidate counts for a row when its pilot's Pareto k is at most 0.7, 32 samples carry its error, and its log h is
    not below another counted candidate's by 4 standard errors, which is how missing mass shows. Where none counts, the
    largest effective sample size decides, and the result warns. What no candidate's pilot has seen stays unseen:
    several separated modes need a control (`ImportanceSampling`). `resorts` cost more: each is tried where some row has
    no candidate yet that counts with the given share of its pilot effective.
    """

    candidates: Sequence[Method] = field(default_factory=lambda: (QuasiMonteCarlo(), ControlVariates()))
    resorts: Sequence[tuple[float, Method]] = field(default_factory=lambda: ((0.5, Adapted()), (0.1, Laplace())))

    def run(self, task: Task, n: int, noise: Noise) -> LogMean:
        size = _PILOT_BY_LAW if task.integrand.levels == 1 else _PILOT_BY_PATHS
        tried, chosen = self.choose(task, min(n, size), derived(noise, "portfolio pilot"))
        parts, order = [], []
        for k, method in enumerate(tried):
            rows = [row for row, index in enumerate(chosen) if index == k]
            if rows:
                parts.append(method.run(task.subset(rows), n, noise))
                order += rows
        return LogMean.join(parts, order)

    def choose(self, task: Task, n: int, noise: Noise) -> tuple[list[Method], list[int]]:
        """The methods that were tried, and the index of the chosen one for every row."""
        tried = list(self.candidates)
        pilots = [_pilot(method, task, n, noise) for method in tried]
        for share, method in self.resorts:
            if not bool(_easy(pilots, share * n).all()):
                tried.append(method)
                pilots.append(_pilot(method, task, n, noise))
        log_h, error, ess = (torch.stack([getattr(p, name) for p in pilots]) for name in ("log_h", "stderr", "ess"))
        counted = torch.stack([p.trusted(_MARGIN) for p in pilots])
        lower = torch.where(counted, log_h - _APART * error, -torch.inf).amax(0)
        counted &= log_h + _APART * error >= lower
        by_error = torch.where(counted, error, torch.inf).argmin(0)
        return tried, torch.where(counted.any(0), by_error, ess.argmax(0)).tolist()


def _easy(pilots: Sequence[LogMean], wanted: float) -> Tensor:
    """Whether a row has a pilot to be believed with that many of its weights effective."""
    return torch.stack([p.trusted(_MARGIN) & (p.ess > wanted) for p in pilots]).any(0)


def _pilot(method: Method, task: Task, n: int, noise: Noise) -> LogMean:
    """The method's result, or one that never counts where the method does not apply."""
    try:
        return method.run(task, n, noise)
    except (NotDefined, NotFinite):
        rows = torch.zeros(len(task.x), dtype=torch.float64)
        never: Tensor = rows + torch.inf
        return LogMean(rows - torch.inf, never, rows, rows - 1, never, rows, n, (method.name,) * len(rows))
