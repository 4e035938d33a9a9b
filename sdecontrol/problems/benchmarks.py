"""Reference problems of the control literature, each with its exact value and control.

All in this library's convention: rewards are maximised, v = temperature log E exp((r(Y_T) + int rho)/temperature); the
costs of the papers are minus these rewards and their V is minus this v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import UnknownName, check
from sdecontrol.exact.continuum.log_quadratic import AMPLITUDE, LogQuadraticExact, LogQuadraticReward
from sdecontrol.exact.continuum.separable import SeparableExact
from sdecontrol.exact.line_spectrum import LineSpectrum
from sdecontrol.laws import Dirac, Gaussian, GaussianMixture
from sdecontrol.problems.base import Problem
from sdecontrol.processes import Affine, DiffusionProcess, ReverseProcess
from sdecontrol.rewards import Linear, Quadratic, Step
from sdecontrol.schedules import VP

QUADRATIC_OU = {"easy": (0.2, 0.2, 0.1), "hard": (1.0, 1.0, 0.5)}  # drift, running and terminal curvature


def log_quadratic_hjb(dim: int = 100, strength: float = 1.0) -> Problem:
    """dY = sqrt(2) dB from 0 on [0, 1], r(x) = -log((1 + |x|^2)/2), temperature 1/strength.

    u = -v solves u_t + Laplacian u - strength |grad u|^2 = 0. Exact answers by one-dimensional quadrature in any
    dimension. Source: the 100-dimensional example of Han, Jentzen and E (2018).
    """
    check(isinstance(dim, int) and dim >= 1, f"dim = {dim!r}", "a positive integer")
    check(np.isfinite(strength) and strength > 0, f"strength = {strength}", "a positive number")
    still = Affine(torch.zeros(dim, dim, dtype=torch.float64))
    process = DiffusionProcess(still, AMPLITUDE, Dirac(torch.zeros(dim, dtype=torch.float64)))
    name, exact = f"log-quadratic-hjb-{dim}d-{strength:g}", LogQuadraticExact(dim, strength)
    return Problem(process, LogQuadraticReward(), 1 / strength, name=name, exact=lambda _: exact)


def quadratic_ou(kind: str = "easy", dim: int = 20) -> Problem:
    """dY = a Y dt + dB from 0 on [0, 1], running reward -p |x|^2, reward -q |x|^2, temperature 1.

    (a, p, q) is (0.2, 0.2, 0.1) for "easy" and (1, 1, 0.5) for "hard". v(t, x) = -F(t) |x|^2 - d int_t^1 F with
    F' = -2 a F + 2 F^2 - p, F(1) = q; exact answers by Riccati equations.
    Source: Nusken and Richter (2021), Domingo-Enrich et al. (2023).
    """
    if kind not in QUADRATIC_OU:
        raise UnknownName("quadratic OU problem", kind, QUADRATIC_OU)
    a, p, q = QUADRATIC_OU[kind]
    eye = torch.eye(dim, dtype=torch.float64)
    process = DiffusionProcess(Affine(a * eye), 1.0, Dirac(torch.zeros(dim, dtype=torch.float64)))
    running = Quadratic(curvature=2 * p * eye)
    return Problem(process, Quadratic(curvature=2 * q * eye), 1.0, running, name=f"quadratic-ou-{kind}")


def linear_ou(dim: int = 10) -> Problem:
    """dY = -Y dt + dB from 0 on [0, 1], r(x) = -sum x_i, temperature 1: u*(t, x) = -e^{t-1} for every coordinate.

    Exact answers by Riccati equations. Source: Nusken and Richter (2021).
    """
    eye = torch.eye(dim, dtype=torch.float64)
    process = DiffusionProcess(Affine(-eye), 1.0, Dirac(torch.zeros(dim, dtype=torch.float64)))
    return Problem(process, Linear(-torch.ones(dim, dtype=torch.float64)), 1.0, name="linear-ou")


@dataclass(frozen=True)
class Wells:
    """Coordinates in V(x) = depth (x^2 - 1)^2, rewarded by -pull (x^2 - 1)^2."""

    count: int
    depth: float
    pull: float

    def force(self, x: Tensor) -> Tensor:
        return -4 * self.depth * x * (x.square() - 1)

    def reward(self, x: Tensor) -> Tensor:
        return -self.pull * (x.square() - 1).square()

    def line(self) -> LineSpectrum:
        return LineSpectrum(
            lambda x: self.depth * (x.square() - 1).square(), lambda x: -self.force(x),
            lambda x: self.depth * (12 * x.square() - 4), self.reward,
        )  # fmt: skip


@dataclass(frozen=True)
class Bowls:
    """Coordinates in V(x) = x^2/2, rewarded by -pull x^2/2."""

    count: int
    pull: float

    def force(self, x: Tensor) -> Tensor:
        return -x

    def reward(self, x: Tensor) -> Tensor:
        return -self.pull * x.square() / 2

    def line(self) -> LineSpectrum:
        return LineSpectrum(lambda x: x.square() / 2, lambda x: x, torch.ones_like, self.reward)


def _independent(groups: Sequence[Wells | Bowls], name: str) -> Problem:
    """dY_i = -V_i'(Y_i) dt + dB_i from 0 on [0, 1], reward sum r_i, temperature 1."""
    groups = [group for group in groups if group.count]
    sizes = [group.count for group in groups]
    start = Dirac(torch.zeros(sum(sizes), dtype=torch.float64))

    def drift(t: float, x: Tensor) -> Tensor:
        return torch.cat([group.force(part) for group, part in zip(groups, x.split(sizes, 1))], 1)

    def reward(x: Tensor) -> Tensor:
        return torch.stack([group.reward(part).sum(1) for group, part in zip(groups, x.split(sizes, 1))]).sum(0)

    def exact(problem: Problem) -> SeparableExact:
        edges = np.cumsum([0, *sizes])
        columns = [slice(int(a), int(b)) for a, b in zip(edges[:-1], edges[1:])]
        lines = [(part, group.line()) for part, group in zip(columns, groups)]
        return SeparableExact(lines, start, 1.0, problem.process.horizon, problem.temperature)

    return Problem(DiffusionProcess(drift, 1.0, start), reward, 1.0, name=name, exact=exact)


def double_well(dim: int = 10, deep: int = 3) -> Problem:
    """dY_i = -4 kappa_i Y_i (Y_i^2 - 1) dt + dB_i from 0 on [0, 1], r(x) = -sum nu_i (x_i^2 - 1)^2, temperature 1.

    (kappa, nu) = (5, 3) in the first `deep` coordinates and (1, 1) in the others. Exact answers coordinate by
    coordinate from the spectrum of the generator. Source: Nusken and Richter (2021).
    """
    check(0 <= deep <= dim and dim >= 1, f"deep = {deep} of {dim}", "0 <= deep <= dim")
    return _independent([Wells(deep, 5.0, 3.0), Wells(dim - deep, 1.0, 1.0)], "double-well")


def many_well(dim: int = 8, wells: int = 4) -> Problem:
    """2^wells modes: V(x) = 2 (x^2 - 1)^2 in `wells` coordinates, x^2/2 in the others; r(x) = -sum (x_i^2 - 1)^2 and
    -sum x_i^2/2; from 0 on [0, 1], temperature 1. Exact answers as a product over coordinates (derived).
    """
    check(0 <= wells <= dim and dim >= 1, f"wells = {wells} of {dim}", "0 <= wells <= dim")
    return _independent([Wells(wells, 2.0, 1.0), Bowls(dim - wells, 1.0)], "many-well")


def step_reward(height: float = 3.0, threshold: float = 1.0, temperature: float = 1.0) -> Problem:
    """N(0, 1) data under VP noising on the line and r = height 1{x > threshold}: a control that is unbounded near the
    data though the reward is bounded. Exact answers of the exact-score family (derived).
    """
    process = ReverseProcess(VP(0.1, 5.0), Gaussian([0.0], [[1.0]]), initial="marginal")
    return Problem(process, Step([1.0], threshold, height), temperature, name="step-reward")


def gaussian_mixture(dim: int = 2, modes: int = 3, temperature: float = 1.0) -> Problem:
    """`modes` Gaussians of standard deviation 0.4 on a circle of radius 2 in the first two coordinates (projected on
    the line in one dimension), VP noising, noised start, r = first coordinate. Exact answers are mixtures (derived).
    """
    check(dim >= 1 and modes >= 1, f"dim = {dim}, modes = {modes}", "positive integers")
    angles = 2 * np.pi * np.arange(modes) / modes
    places = np.stack([2 * np.cos(angles), 2 * np.sin(angles)], 1)[:, :dim]
    means = np.zeros((modes, dim))
    means[:, : places.shape[1]] = places
    weights = np.arange(1, modes + 1) / np.arange(1, modes + 1).sum()
    law = GaussianMixture(weights, means, np.repeat(0.16 * np.eye(dim)[None], modes, 0))
    process = ReverseProcess(VP(0.1, 8.0), law, initial="marginal")
    return Problem(process, Linear(np.eye(dim)[0]), temperature, name=f"gaussian-mixture-{dim}d")
