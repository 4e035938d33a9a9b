"""h(t, x) = E e^{F(x, z)} over standard normals z: what a problem becomes once its noise is written out.

Where the law of Y_T given Y_t = x is known (affine dynamics; Gaussian, mixture or subspace data with their exact
score; no running reward), z are the normals of one draw of it. Else z are the normals of a chain, preceded by those of
its leading modes, and F comes on three nested grids whose differences show the step error.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NotFinite
from sdecontrol.kernels import Kernel
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.time import TimeGrid
from sdecontrol.value.transition import gaussians

_ELEMENTS = 2**21  # numbers held at once by one evaluation


class Integrand(ABC):
    """F = (r(Y_T) + int rho)/temperature as a function of the start x and of standard normals z.

    dim: number of normals; leading: how many of them, the first ones, carry most of the variance; levels: of steps,
    finest first; order: of the step error; several: whether e^F is a mean over several laws of Y_T already.
    chunk: rows of z to be evaluated at once.
    """

    rows: int
    dim: int
    leading: int
    levels: int
    order: int
    chunk: int
    several = False

    @abstractmethod
    def ends(self, z: Tensor) -> Tensor:
        """Outputs Y_T from the first start: (m, dim) -> (m, *event)."""

    @abstractmethod
    def log_weight(self, z: Tensor) -> Tensor:
        """F for every start with the same normals: (m, dim) -> (m, levels, rows), float64, differentiable in z."""

    def rough(self, z: Tensor) -> Tensor:
        """F for every start at the least cost, for pilots and proposals: (m, dim) -> (m, rows)."""
        return self.log_weight(z)[:, -1]

    @abstractmethod
    def slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """F and its gradient in the first start: (m, dim) -> (m, levels), (m, levels, d)."""

    def draws(self, noise: Noise, stream: str, n: int) -> Iterator[Tensor]:
        """n rows of `dim` standard normals, in pieces of about `chunk` rows."""
        return normals(noise, stream, n, self.dim, self.chunk)


def normals(noise: Noise, stream: str, n: int, dim: int, chunk: int = 1) -> Iterator[Tensor]:
    """n rows of standard normals (m, dim) in pieces of at least `chunk` rows, but for the last."""
    held: list[Tensor] = []
    for block in noise.blocks(stream, n, (dim,)):
        held.append(block.normal((dim,))[: block.count])
        if sum(map(len, held)) >= chunk:
            yield held[0] if len(held) == 1 else torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)


def derived(noise: Noise, label: str) -> Noise:
    """Independent noise of the same precision, addressed by (seed, label)."""
    digest = hashlib.blake2b(f"{noise.seed} {label}".encode(), digest_size=8).digest()
    return replace(noise, seed=int.from_bytes(digest, "little"))


def log_weights(integrand: Integrand, pieces: Iterator[Tensor]) -> Tensor:
    """F on all pieces of normals: (n, levels, rows)."""
    return torch.cat([integrand.log_weight(z) for z in pieces])


class TerminalIntegrand(Integrand):
    """F(x, z) = log sum_i omega_i(x) exp(r(centre_i(x) + root_i z)/temperature): no time steps."""

    levels, order = 1, 1

    def __init__(self, problem: Problem, t: float, x: Tensor):
        self.problem, self.x, self.law = problem, x, gaussians(problem, t)
        self.rows, self.dim = len(x), self.law.roots.shape[2]
        self.leading, self.several = self.dim, len(self.law.roots) > 1
        per_draw = len(self.law.roots) * self.law.roots.shape[1] * self.rows
        self.chunk = max(1, min(_ELEMENTS // per_draw, 2**15 // self.dim))
        self._shares, self._centres = self.law.log_shares(x), self.law.centres(x)
        first = self.law.roots[0]
        square = first.shape[0] == first.shape[1]
        scalar = square and bool((self.law.roots == first[0, 0] * torch.eye(len(first), dtype=first.dtype)).all())
        self._scale = float(first[0, 0]) if scalar else None

    def ends(self, z: Tensor) -> Tensor:
        """Those of the first component."""
        return self._centres[0, 0] + self.spread(z)[0]

    def spread(self, z: Tensor) -> list[Tensor]:
        """root_i z for each component: k tensors (m, D)."""
        if self._scale is not None:
            return [self._scale * z] * len(self.law.roots)
        return list(z @ self.law.roots.mT)

    def scaled_reward(self, y: Tensor) -> Tensor:
        """r/temperature in float64."""
        return checked(self.problem, self.problem.reward(y.to(self.problem.process.dtype)))

    def log_weight(self, z: Tensor) -> Tensor:
        spread, columns = self.spread(z), []
        for shares, centres in zip(self._shares, self._centres):
            parts = [self.scaled_reward(centre + moved) for centre, moved in zip(centres, spread)]
            columns.append(parts[0] if len(parts) == 1 else torch.logsumexp(torch.stack(parts, 1) + shares, 1))
        return torch.stack(columns, 1)[:, None]

    @cached_property
    def _moves(self) -> tuple[Tensor, Tensor]:
        """At the first start: grad log omega_i (k, d), and the derivatives of the centres, affine in x (k, D, d)."""
        x = self.x[:1]
        with torch.enable_grad():
            start = x.clone().requires_grad_()
            shares = self.law.log_shares(start)[0]
            steered = [_slope(share, start) for share in shares]
        moved = self.law.centres(x + torch.eye(x.shape[1], dtype=x.dtype)) - self.law.centres(x)
        return torch.cat(steered), moved.permute(1, 2, 0)

    def slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """grad F = sum_i share_i (grad log omega_i + G_i' grad r/temperature), share_i of the components in e^F."""
        rewards, pulled = [], []
        with torch.enable_grad():
            for centre, moved in zip(self._centres[0], self.spread(z)):
                y = (centre + moved).requires_grad_()
                rewards.append(self.scaled_reward(y))
                pulled.append(_slope(rewards[-1].sum(), y))
        f, shares = self._mixed([reward.detach() for reward in rewards])
        weighted = torch.cat([w[:, None] * slope for w, slope in zip(shares.mT, pulled)], 1)
        steered, moved = self._moves
        return f, (shares @ steered + weighted @ moved.flatten(0, 1))[:, None]

    def scores(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """F, and sum_i share_i (grad log omega_i + G_i' root_i^{-T} z): (m, 1), (m, 1, d).

        Given component i, Y_T = centre_i(x) + root_i z has score root_i^{-T} z in its centre, of derivative G_i in x.
        """
        f, shares = self._mixed([self.scaled_reward(c + moved) for c, moved in zip(self._centres[0], self.spread(z))])
        steered, moved = self._moves
        weighted = torch.cat([w[:, None] * z for w in shares.mT], 1)
        return f, (shares @ steered + weighted @ (self.law.inverses @ moved).flatten(0, 1))[:, None]

    def _mixed(self, rewards: list[Tensor]) -> tuple[Tensor, Tensor]:
        """F (m, 1) at the first start, and the shares of the components in e^F (m, k)."""
        parts = torch.stack(rewards, 1) + self._shares[0]
        return torch.logsumexp(parts, 1, keepdim=True), torch.softmax(parts, 1)


def _slope(value: Tensor, x: Tensor) -> Tensor:
    """Gradient of a scalar in x; zero where it does not depend on x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(value, x, retain_graph=True, materialize_grads=True)
    return found


def checked(problem: Problem, reward: Tensor) -> Tensor:
    """A reward as r/temperature in float64. Raises NotFinite for NaN or infinite ones."""
    if not bool(torch.isfinite(reward).all()):
        raise NotFinite("the reward", 0, problem.process.horizon)
    return reward.double() / problem.temperature


@dataclass(frozen=True, eq=False)
class Task:
    """What is asked: the value of a problem at time t from the rows of x.

    grid: the coarsest of three nested ones. by_paths: take a chain even where the law of Y_T is known.
    """

    problem: Problem
    t: float
    x: Tensor
    grid: TimeGrid | None = None
    kernel: Kernel | None = None
    by_paths: bool = False

    def subset(self, rows: Sequence[int]) -> Task:
        return replace(self, x=self.x[list(rows)])

    def each(self) -> list[Task]:
        """One task a row."""
        return [self.subset([i]) for i in range(len(self.x))]

    @cached_property
    def integrand(self) -> Integrand:
        """By the exact law of Y_T where it is known, else by a chain."""
        if self.by_paths:
            return self.chain
        try:
            return TerminalIntegrand(self.problem, self.t, self.x)
        except NoClosedForm:
            return self.chain

    @cached_property
    def chain(self) -> Any:
        from sdecontrol.value.paths import PathIntegrand  # it subclasses Integrand: this module cannot import it above

        return PathIntegrand(self.problem, self.x, self.grids, self.kernel or self.problem.process.default_kernel)

    @cached_property
    def grids(self) -> list[TimeGrid]:
        """Three nested grids from t to the end, finest first: steps halved twice in equal parts of time."""
        process = self.problem.process
        grid = self.grid or process.default_grid
        times = grid.resolve(process).times[:: 1 if self.grid else 4]
        rounding = 1e-9 * process.horizon
        later = [float(s) for s in times if s > self.t + rounding]
        coarse = TimeGrid.explicit([self.t, *later])
        return [coarse.refine(4), coarse.refine(2), coarse]


def leading_modes(steps: int, dim: int) -> int:
    """How many modes of a path of `steps` steps in `dim` dimensions are singled out: about 128 normals."""
    return min(steps, max(2, math.ceil(128 / dim)))
