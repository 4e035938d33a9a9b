"""Exact laws of affine chains x+ = M x + m + N z under affine controls z = xi + sqrt(dt) (B x + b). No sampling.

Everything is a recursion on means, covariances and quadratics in float64: O(K d^3) for K steps in R^d.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdecontrol.controls import require_control
from sdecontrol.errors import InfiniteKL, NoClosedForm
from sdecontrol.exact.gaussian_ratio import initial_kl
from sdecontrol.exact.quadratic import LogQuadratic, symmetric
from sdecontrol.laws import Law


@dataclass(frozen=True, eq=False)
class ChainStep:
    """One affine step x+ = matrix x + offset + noise z, z ~ N(0, I), of length dt starting at time t."""

    t: float
    dt: float
    matrix: Tensor
    offset: Tensor
    noise: Tensor

    def closed_loop(self, gain: Tensor, offset: Tensor) -> ChainStep:
        """The step with z = xi + sqrt(dt) (gain x + offset), in xi."""
        push = math.sqrt(self.dt) * self.noise
        return ChainStep(self.t, self.dt, self.matrix + push @ gain, self.offset + push @ offset, self.noise)

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d,d) of x+ from those of x."""
        spread = self.matrix @ covariance @ self.matrix.mT + self.noise @ self.noise.mT
        return self.matrix @ mean + self.offset, symmetric(spread)


@dataclass(frozen=True, eq=False)
class AffineChain:
    """The chain that a kernel makes of an affine process on a grid: its steps, grid times and initial law."""

    steps: tuple[ChainStep, ...]
    times: tuple[float, ...]
    initial: Law

    @classmethod
    def of(cls, process: Any, kernel: Any, grid: Any) -> AffineChain:
        """Raises NoClosedForm where the process has no affine field."""
        if len(process.event_shape) != 1:
            raise NoClosedForm(f"moments of a chain are for vectors (d,); saw states of shape {process.event_shape}")
        times = [float(t) for t in grid.resolve(process).times]
        steps = []
        for t, t_next in zip(times[:-1], times[1:]):
            step = kernel.affine_step(process, t, t_next)
            steps.append(ChainStep(t, t_next - t, step.matrix, step.offset, step.noise))
        return cls(tuple(steps), tuple(times), process.initial_law(times[0]))

    @property
    def dim(self) -> int:
        return len(self.steps[0].offset)

    def feedback(self, control: Any | None) -> list[tuple[Tensor, Tensor]]:
        """(B, b) of u = B x + b at every step; zero on a last step without noise, where no control is called.

        Raises InfiniteKL where a control acts on an earlier step without noise.
        """
        d = self.dim
        zero = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
        if control is None:
            return [zero] * len(self.steps)
        affine_at = require_control(control).affine_at
        silent = [not bool(step.noise.any()) for step in self.steps]
        if any(silent[:-1]):
            k = silent.index(True)
            raise InfiniteKL(
                f"step {k} of {len(self.steps)} (t = {self.times[k]:.6g}) has no noise, so a control there costs an "
                "infinite KL; wanted noise on every step but the last. Use a kernel with noise, e.g. DDIM(eta=1.0)."
            )
        return [zero if quiet else affine_at(step.t) for quiet, step in zip(silent, self.steps)]

    def propagate(self, mean: Tensor, covariance: Tensor, steps: Iterable[ChainStep]) -> tuple[Tensor, Tensor]:
        """Means (K+1,d) and covariances (K+1,d,d) along the given steps."""
        means, covariances = [mean], [covariance]
        for step in steps:
            mean, covariance = step.moments(mean, covariance)
            means.append(mean)
            covariances.append(covariance)
        return torch.stack(means), torch.stack(covariances)


@dataclass(frozen=True, eq=False)
class Moments:
    """Exact first two moments at every grid time and the path KL of a controlled chain against its reference.

    means (K+1,d), covariances (K+1,d,d), energy (K,): E dt |u|^2 / 2 of every step. All three hold for any initial law
    with two moments; the laws themselves are Gaussian when the initial law is.
    """

    times: tuple[float, ...]
    means: Tensor
    covariances: Tensor
    energy: Tensor
    initial: Law
    reference_initial: Law

    @cached_property
    def kl_initial(self) -> float:
        """KL(nu || p_noise), inf where nu is not absolutely continuous."""
        return initial_kl(self.initial, self.reference_initial)

    @property
    def kl(self) -> float:
        """KL(Q^{u,nu} || Q) = KL(nu || p_noise) + sum_k E dt_k |u_k|^2 / 2, exact for the chain (derived).

        It is the KL of the laws of (x_0, z_1, ..., z_K); where a noise matrix is singular but not zero it is an
        upper bound for that of the states.
        """
        return self.kl_initial + float(self.energy.sum())


def moments(process: Any, kernel: Any, grid: Any, initial: Law | None = None, control: Any | None = None) -> Moments:
    """Exact moments and path KL of the chain under an affine control.

    With x+ = M x + m + N (xi + sqrt(dt) (B x + b)) and A = M + sqrt(dt) N B:
    mean+ = A mean + m + sqrt(dt) N b, covariance+ = A covariance A' + N N', energy = dt/2 E|B x + b|^2 (derived).
    `control` is affine, u = B x + b (`Control.affine_at`); `initial` replaces the process's own initial law.
    Raises NoClosedForm for a process that is not affine, InfiniteKL for a control on a noiseless step before the last.
    """
    chain = AffineChain.of(process, kernel, grid)
    start = chain.initial if initial is None else initial
    feedback = chain.feedback(control)
    steps = [step.closed_loop(*ub) for step, ub in zip(chain.steps, feedback)]
    means, covariances = chain.propagate(start.mean, start.covariance, steps)
    costs = [LogQuadratic.square(*ub, step.dt / 2) for step, ub in zip(steps, feedback)]
    energy = [cost.mean(m, c) for cost, m, c in zip(costs, means, covariances)]
    return Moments(chain.times, means, covariances, torch.tensor(energy, dtype=torch.float64), start, chain.initial)
