"""Means of e^F dP/dq over other laws q of the normals or of the paths: for weights that collapse under the prior."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from sdecontrol.controls import require_control
from sdecontrol.errors import NotDefined, check
from sdecontrol.evaluate import total_reward
from sdecontrol.girsanov import effective_sample_size
from sdecontrol.noise import Noise
from sdecontrol.simulate import simulate
from sdecontrol.value.estimate import LogMean, of_weights
from sdecontrol.value.integrand import Integrand, Task, normals
from sdecontrol.value.methods import Method

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class ImportanceSampling(Method):
    """Paths under a control u: h = mean of e^{F - log dQ^u/dQ}, unbiased for the chain for every u.

    Zero variance at the chain's optimum; any control that is not far worse than none will do. Always by paths, on three
    nested grids with one Brownian path, so there is a step error even where the transition is known.
    """

    control: Any

    def run(self, task: Task, n: int, noise: Noise) -> LogMean:
        control, problem = require_control(self.control), task.problem
        kernel, rows = task.kernel or problem.process.default_kernel, len(task.x)
        starts = task.x.repeat_interleave(n, 0).to(problem.process.dtype)
        fine = task.grids[0].resolve(problem.process).times
        running = problem.running_reward is not None
        levels = []
        for grid in task.grids:
            path = simulate(
                problem.process, control, starts, grid=grid, kernel=kernel, n=n * rows, keep="ends",
                noise=noise.coarsened(fine),
                observe=(lambda k, t, y: problem.running_rate(t, y)) if running else None,
            )  # fmt: skip
            log_ratio = path.weights.martingale + path.weights.energy
            levels.append((total_reward(problem, path) / problem.temperature - log_ratio).reshape(rows, n).mT)
        order = 1 if running else kernel.order_weak
        return of_weights(torch.stack(levels, 1), order, self.name)


class Proposal(Method):
    """Another law q of the normals, with its own fit for every row: h = E_q[e^F p/q]."""

    def run(self, task: Task, n: int, noise: Noise) -> LogMean:
        return LogMean.join([self._run_row(one, n, noise) for one in task.each()])

    def _run_row(self, task: Task, n: int, noise: Noise) -> LogMean:
        integrand = task.integrand
        drawn = self.draws(integrand, n, noise)
        found = [integrand.log_weight(z) + log_ratio[:, None, None] for z, log_ratio in drawn]
        return of_weights(torch.cat(found), integrand.order, self.name)

    @abstractmethod
    def draws(self, integrand: Integrand, n: int, noise: Noise) -> Iterator[tuple[Tensor, Tensor]]:
        """n draws z (m, dim) of q and log p/q (m,), in pieces, for an integrand of one row: unbiased for every fit."""


@dataclass(frozen=True)
class Laplace(Proposal):
    """Student-t importance sampling at the mode of F(z) - |z|^2/2, scale = inverse Hessian there, `dof` degrees.

    On the leading normals; the others keep their law, and are zero where the mode is sought (on the coarsest grid). Its
    tails are heavier than every Gaussian's, so that weights stay bounded where F grows slower than |z|^2/2. Fails for
    several modes, and where the mass is in a shell far from the mode (many dimensions, middling temperature).
    Raises: NotDefined when F has no gradient in z, or no maximum; NotFinite where the search drives the chain to
    infinity.
    """

    dof: int = 1

    def draws(self, integrand: Integrand, n: int, noise: Noise) -> Iterator[tuple[Tensor, Tensor]]:
        mode, precision = self._mode(integrand, noise)
        factor = torch.linalg.cholesky(precision)  # precision = L L'
        q = len(mode)
        log_det = 2 * float(factor.diagonal().log().sum())
        constant = math.lgamma((self.dof + q) / 2) - math.lgamma(self.dof / 2) - q / 2 * math.log(self.dof * math.pi)
        for draws in normals(noise, "laplace", n, integrand.dim + self.dof, integrand.chunk):
            e, rest, g = draws[:, :q], draws[:, q : integrand.dim], draws[:, integrand.dim :]
            radius = (self.dof / g.square().sum(1)).sqrt()
            direction = torch.linalg.solve_triangular(factor.mT, e.mT, upper=True).mT
            z = mode + direction * radius[:, None]
            square = (e * radius[:, None]).square().sum(1)
            log_q = constant + log_det / 2 - (self.dof + q) / 2 * torch.log1p(square / self.dof)
            log_p = -z.square().sum(1) / 2 - q / 2 * LOG_2PI
            yield torch.cat([z, rest], 1), log_p - log_q

    @torch.enable_grad()
    def _mode(self, integrand: Integrand, noise: Noise) -> tuple[Tensor, Tensor]:
        """The mode (q,) of F - |z|^2/2 from the best of 256 prior draws, and minus the Hessian there (q, q)."""
        q, rest = integrand.leading, integrand.dim - integrand.leading

        def growth(z: Tensor) -> Tensor:
            f = integrand.rough(torch.cat([z, z.new_zeros(len(z), rest)], 1))[:, 0]
            if z.requires_grad and not f.requires_grad:
                raise NotDefined("the reward has no gradient, so there is no Laplace mode; use Adapted() or another")
            return f - z.square().sum(1) / 2

        def negative(z: np.ndarray) -> tuple[float, np.ndarray]:
            point = torch.tensor(z)[None].requires_grad_()
            value = growth(point)[0]
            (slope,) = torch.autograd.grad(value, point)
            return -value.item(), -slope[0].numpy()

        draws = torch.cat(list(normals(noise, "mode", 256, q)))
        start = draws[growth(draws).argmax()]
        found = minimize(negative, start.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-7})
        mode = torch.tensor(found.x)[None].requires_grad_()
        (slope,) = torch.autograd.grad(growth(mode)[0], mode, create_graph=True)
        rows = [torch.autograd.grad(part, mode, retain_graph=True)[0][0] for part in slope[0]]
        precision = -(torch.stack(rows) + torch.stack(rows).mT) / 2
        smallest = float(torch.linalg.eigvalsh(precision)[0])
        if smallest <= 0:
            raise NotDefined(
                f"F - |z|^2/2 has no maximum where its gradient vanishes (curvature {smallest:.3g}); use Adapted()"
            )
        return mode[0].detach(), precision


@dataclass(frozen=True)
class Adapted(Proposal):
    """A diagonal Gaussian fitted to e^F p by the cross-entropy method, with a share `defensive` of the prior.

    Each round draws from the current Gaussian q and moves it to the mean and variance under (e^F p/q)^gamma, gamma <= 1
    the largest power at which a tenth of the draws is effective; it ends once gamma = 1. The last draws are fresh, so
    the estimate is unbiased whatever the fit; the prior in the mixture keeps the weights below e^F/defensive.
    Fails where the tilted law is far from one Gaussian with independent coordinates.
    """

    defensive: float = 0.05
    rounds: int = 40

    def __post_init__(self) -> None:
        check(0 < self.defensive < 1, f"defensive = {self.defensive}", "a share in (0, 1)")

    def draws(self, integrand: Integrand, n: int, noise: Noise) -> Iterator[tuple[Tensor, Tensor]]:
        size = min(max(n // 16, 64 * integrand.leading, 1024), 2**14)
        mean, std = self._fit(integrand, size, noise)
        for draws in normals(noise, "adapted", n, integrand.dim + 1, integrand.chunk):
            z, rest = draws[:, : integrand.leading], draws[:, integrand.leading : -1]
            prior = torch.special.ndtr(draws[:, -1:]) < self.defensive
            z = torch.where(prior, z, mean + std * z)
            log_p, log_q = _log_normal(z, torch.zeros_like(mean), torch.ones_like(std)), _log_normal(z, mean, std)
            log_mixed = torch.logaddexp(log_p + math.log(self.defensive), log_q + math.log1p(-self.defensive))
            yield torch.cat([z, rest], 1), log_p - log_mixed

    def _fit(self, integrand: Integrand, size: int, noise: Noise) -> tuple[Tensor, Tensor]:
        q = integrand.leading
        mean, std = torch.zeros(q, dtype=torch.float64), torch.ones(q, dtype=torch.float64)
        prior = (mean, std)
        for step in range(self.rounds):
            points, log_w = [], []
            for draws in normals(noise, f"adapting {step}", size, integrand.dim, integrand.chunk):
                z = mean + std * draws[:, :q]
                f = integrand.rough(torch.cat([z, draws[:, q:]], 1))[:, 0]
                points.append(z)
                log_w.append(f + _log_normal(z, *prior) - _log_normal(z, mean, std))
            z, w = torch.cat(points), torch.cat(log_w)
            gamma = _power(w, 0.1 * size)
            share = torch.softmax(gamma * w, 0)[:, None]
            mean = (share * z).sum(0)
            std = (share * (z - mean).square()).sum(0).sqrt()
            if gamma == 1 and step > 0:
                break
        return mean, std


def _power(log_w: Tensor, wanted: float) -> float:
    """The largest gamma <= 1 at which the weights w^gamma have `wanted` effective samples, by bisection."""
    if effective_sample_size(log_w) >= wanted:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if effective_sample_size(middle * log_w) >= wanted else (low, middle)
    return low


def _log_normal(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(z; mean, diag std^2): (n, q) -> (n,)."""
    return -(((z - mean) / std).square().sum(1) + len(mean) * LOG_2PI) / 2 - std.log().sum()
