"""F along the paths of a chain, on three nested grids driven by one Brownian path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.evaluate import total_reward
from sdecontrol.kernels import Kernel
from sdecontrol.noise import Noise
from sdecontrol.path import Path
from sdecontrol.problems.base import Problem
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid
from sdecontrol.value.integrand import Integrand, leading_modes

_PATH_ELEMENTS = 2**21  # normals of the paths simulated at once


@dataclass(frozen=True)
class GivenNoise(Noise):
    """The normals (steps, paths, d) of a simulation, given instead of drawn."""

    normals: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))

    def steps(self, index: int, event_shape: Any, times: np.ndarray, start: int = 0) -> Iterator[Tensor]:
        size = self.block_size(event_shape)
        for xi in self.normals[start:]:
            part = xi[index * size : (index + 1) * size]
            if len(part) < size:
                part = torch.cat([part, part.new_zeros(size - len(part), part.shape[1])])
            yield part.reshape(size, *event_shape)


class PathIntegrand(Integrand):
    """F = (r(Y_T) + sum_k rho(t_k, Y_k) dt)/temperature of the chain that a kernel makes on each of three grids.

    The dim normals are those of the leading modes of Brownian motion on the fine grid (its principal components, the
    end point first), then one a step, from which the modes are taken out: xi = e + V (zeta - V' e), V the leading right
    singular vectors of the map from normals to the path. xi is standard normal when (zeta, e) is.
    """

    def __init__(self, problem: Problem, x: Tensor, grids: list[TimeGrid], kernel: Kernel):
        self.problem, self.x, self.grids, self.kernel = problem, x, grids, kernel
        process = problem.process
        self.rows, self.event_dim, self.levels = len(x), process.dim, len(grids)
        self.order = kernel.order_weak if problem.running_reward is None else 1
        self.dt = [torch.tensor(grid.resolve(process).dt) for grid in grids]
        self.steps = len(self.dt[0])
        modes = leading_modes(self.steps, self.event_dim)
        path_map = torch.tril(torch.ones(self.steps, self.steps, dtype=torch.float64)) * self.dt[0].sqrt()
        self.modes = torch.linalg.svd(path_map).Vh[:modes].mT
        self.leading = modes * self.event_dim
        self.dim = self.leading + self.steps * self.event_dim
        self.chunk = max(1, _PATH_ELEMENTS // (self.steps * self.event_dim * self.rows))

    def normals(self, z: Tensor) -> list[Tensor]:
        """The normals of each grid, finest first: (m, dim) -> (steps, m, d) each."""
        m, d = len(z), self.event_dim
        zeta, e = z[:, : self.leading].reshape(m, -1, d), z[:, self.leading :].reshape(m, self.steps, d)
        finest = e + self.modes @ (zeta - self.modes.mT @ e)
        found = [finest]
        for dt in self.dt[:-1]:
            weights = dt.sqrt().reshape(-1, 2)
            pairs = found[-1].reshape(m, -1, 2, d) * (weights / weights.norm(dim=1, keepdim=True))[..., None]
            found.append(pairs.sum(2))
        return [xi.permute(1, 2, 0).contiguous().mT for xi in found]

    def simulated(self, x: Tensor, xi: Tensor, level: int, *, grad: bool, keep: str = "ends") -> Path:
        """The chain on one grid from states x (m, *event) with the normals xi (steps, m, d)."""
        running, process = self.problem.running_reward is not None, self.problem.process
        return simulate(
            process, None, x.to(process.dtype), grid=self.grids[level], kernel=self.kernel, n=len(x),
            noise=GivenNoise(normals=xi), keep=keep, grad=grad,
            observe=(lambda k, t, y: self.problem.running_rate(t, y)) if running else None,
        )  # fmt: skip

    def ends(self, z: Tensor) -> Tensor:
        coarsest = self.levels - 1
        starts = self.x[:1].repeat_interleave(len(z), 0)
        return self.simulated(starts, self.normals(z)[coarsest], coarsest, grad=False).terminal

    def growth(self, path: Path) -> Tensor:
        """F of each path."""
        return total_reward(self.problem, path) / self.problem.temperature

    def log_weight(self, z: Tensor) -> Tensor:
        return torch.stack([self._on(level, xi, z) for level, xi in enumerate(self.normals(z))], 1)

    def rough(self, z: Tensor) -> Tensor:
        """On the coarsest grid only."""
        return self._on(self.levels - 1, self.normals(z)[-1], z)

    def _on(self, level: int, xi: Tensor, z: Tensor) -> Tensor:
        """F on one grid for every start, path by path with the same normals: (m, rows)."""
        starts = self.x.repeat_interleave(len(z), 0)
        path = self.simulated(starts, xi.repeat(1, self.rows, 1), level, grad=z.requires_grad)
        return self.growth(path).reshape(self.rows, len(z)).mT

    def slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = self.x[:1].repeat(len(z), *(1 for _ in self.x.shape[1:])).requires_grad_()
        with torch.enable_grad():
            f = [self.growth(self.simulated(x, xi, k, grad=True)) for k, xi in enumerate(self.normals(z))]
            found = [torch.autograd.grad(column.sum(), x)[0] for column in f]
        return torch.stack(f, 1).detach(), torch.stack(found, 1)
