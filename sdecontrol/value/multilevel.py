"""Multilevel Monte Carlo over the steps of a chain: few fine paths, many coarse ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdecontrol.errors import NotDefined, check
from sdecontrol.evaluate import total_reward
from sdecontrol.noise import Noise
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid
from sdecontrol.value.estimate import LogMean, spread, tails
from sdecontrol.value.integrand import Task, derived
from sdecontrol.value.methods import Method

_PILOT = 512
_ROUNDED = 16  # paths of a level, at least


@dataclass(frozen=True)
class Multilevel(Method):
    """h = E w_0 + sum_l E[w_l - w_{l-1}], w_l = e^F on steps of size d/2^l, both parts of a difference on one
    Brownian path (`Noise.coarsened`), the levels independent.

    n_l is proportional to sqrt(variance/cost) of a pilot, at the total cost of n pairs on the finest level. The last
    difference is counted 2^p/(2^p - 1) times, for all the finer ones; the step error is how far it is from being
    2^-p of the one before, over 2^p - 1. Weights must not collapse.
    Source: Giles (2008), Multilevel Monte Carlo path simulation.
    """

    levels: int = 4

    def __post_init__(self) -> None:
        check(self.levels >= 2, f"{self.levels} levels", "at least 2: a step error needs a difference")

    def run(self, task: Task, n: int, noise: Noise) -> LogMean:
        coarse = task.grids[-1]
        grids = [coarse if level == 0 else coarse.refine(2**level) for level in range(self.levels)]
        steps = [float(grid.steps) for grid in grids]
        cost = [steps[0]] + [fine + rough for fine, rough in zip(steps[1:], steps)]
        pilots = [self._pair(task, grids, l, _PILOT, derived(noise, f"pilot {l}")) for l in range(self.levels)]
        top = torch.stack([pair.amax((0, 1)) for pair in pilots]).amax(0)
        variances = [float(_difference(pair, top).var(0).max()) for pair in pilots]
        shares = [math.sqrt(v / c) for v, c in zip(variances, cost)]
        scale = n * cost[-1] / sum(s * c for s, c in zip(shares, cost)) if any(shares) else n
        counts = [max(_ROUNDED, math.ceil(scale * s)) for s in shares]
        pairs = [self._pair(task, grids, l, m, derived(noise, f"level {l}")) for l, m in enumerate(counts)]
        differences = [_difference(pair, top) for pair in pairs]
        means = torch.stack([d.mean(0) for d in differences])
        ratio = 2.0 ** self._order(task)
        factors = [1.0] * (self.levels - 1) + [ratio / (ratio - 1)]  # the last difference stands for all finer ones
        h = sum((f * m for f, m in zip(factors, means)), torch.zeros_like(top))
        if not bool((h > 0).all()):
            raise NotDefined("the sum over levels is not positive, as few weights carry it; use ImportanceSampling")
        error, carriers = spread(*(f * d / h for f, d in zip(factors, differences)))
        before = means[-2] / ratio if self.levels > 2 else torch.zeros_like(h)
        left = (means[-1] - before).abs() / (ratio - 1) / h
        return LogMean(top + h.log(), error, left, *tails(pairs[0][:, 0]), carriers, sum(counts), (self.name,) * len(h))

    def _order(self, task: Task) -> int:
        kernel = task.kernel or task.problem.process.default_kernel
        return kernel.order_weak if task.problem.running_reward is None else 1

    def _pair(self, task: Task, grids: list[TimeGrid], level: int, n: int, noise: Noise) -> Tensor:
        """F on a level and on the one below it (on level 0 only that one): (n, 2 or 1, rows)."""
        problem, rows = task.problem, len(task.x)
        fine = grids[level].resolve(problem.process).times
        starts = task.x.repeat_interleave(n, 0).to(problem.process.dtype)
        running = problem.running_reward is not None
        found = []
        for grid in grids[max(level - 1, 0) : level + 1][::-1]:
            path = simulate(
                problem.process, None, starts, grid=grid, kernel=task.kernel, n=n * rows, keep="ends",
                noise=noise.coarsened(fine),
                observe=(lambda k, t, y: problem.running_rate(t, y)) if running else None,
            )  # fmt: skip
            found.append((total_reward(problem, path) / problem.temperature).reshape(rows, n).mT)
        return torch.stack(found, 1)


def _difference(pair: Tensor, top: Tensor) -> Tensor:
    """w_l - w_{l-1}, or w_0, in units of e^top: (n, rows)."""
    weights = torch.exp(pair - top)
    return weights[:, 0] - weights[:, 1] if pair.shape[1] == 2 else weights[:, 0]
