"""Eqs. (3.29)-(3.30) by Monte Carlo: the library's estimators of the gradient, for the reward and for an indicator."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from sdecontrol.claims.base import MONTE_CARLO, Case, NotApplicable
from sdecontrol.claims.entropy.feynman_kac import mild_point
from sdecontrol.claims.entropy.gradients import CLAIM
from sdecontrol.claims.routes.local import rms
from sdecontrol.claims.routes.plain import GaussianSum
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.simulations import LOW
from sdecontrol.claims.routes.workbench import Workbench, no_running_reward
from sdecontrol.estimate import Estimate
from sdecontrol.problems.base import Problem
from sdecontrol.rewards import Step
from sdecontrol.value import Bismut, LikelihoodRatio, UnreliableWeights, value_gradient

PATHS = 6_000  # of three chains that have to be extrapolated
ODDS = 3.0  # e^{height/temperature} of the jump


@CLAIM.check(MONTE_CARLO)
def estimated_gradient(case: Case) -> None:
    """The library's estimator of grad v, by (3.29), against u* temperature / amplitude."""
    no_running_reward(case)
    t, z = mild_point(case)
    bench = Workbench.of(case)
    x = torch.cat([bench.latent.lift(t, z), bench.points(t, 64, case.rng)])
    truth = bench.temperature / bench.process.amplitude(t) * case.answers.control(t, x).numpy()
    _gradient_row(case, case.problem, t, x[:1], truth[0], "grad v", scale=rms(truth))


@CLAIM.check(MONTE_CARLO)
def gradient_of_an_indicator(case: Case) -> None:
    """The same for a reward that jumps by temperature log 3, where derivatives along paths are zero.

    The truth: grad log(1 + 2 P(e.Y_T > c | y)), P and its gradient by normal integrals over the posterior.
    """
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if case.quick and latent.process.dim > LOW and not bench.affine:
        raise NotApplicable("in many dimensions a quick run tries one reward")
    t, z = mild_point(case)
    (a, h), clean = latent.level(t), latent.clean(t)
    posterior = clean.given(z, np.zeros(1))
    direction = latent.rho.linear - posterior.mean @ latent.rho.curvature
    direction = direction / np.linalg.norm(direction)
    threshold = float(direction @ posterior.mean)
    above, moved = _above(posterior, direction, threshold)
    slope = a / h * (ODDS - 1) * moved / (1 + (ODDS - 1) * above)
    basis, offset = latent.frame
    jump = Step(basis @ direction, threshold + float(offset @ basis @ direction), bench.temperature * math.log(ODDS))
    problem = Problem(bench.process, jump, bench.temperature)
    _gradient_row(case, problem, t, latent.lift(t, z), bench.temperature * basis @ slope, "grad v of an indicator")


def _above(law: GaussianSum, e: Array, c: float) -> tuple[float, Array]:
    """P(e.X > c) and E[1{e.X > c} (X - E X)] for a Gaussian sum."""
    total, moved = 0.0, np.zeros(law.dim)
    for cloud in law.clouds:
        std = math.sqrt(e @ cloud.covariance @ e)
        score = (cloud.means @ e - c) / std
        weights = np.exp(cloud.log_weights)
        total += float(weights @ ndtr(score))
        moved += (weights * ndtr(score)) @ (cloud.means - law.mean)
        moved += float(weights @ np.exp(-(score**2) / 2) / math.sqrt(2 * math.pi)) * cloud.covariance @ e / std
    return total, moved


def _gradient_row(
    case: Case, problem: Problem, t: float, x: Tensor, truth: Array, title: str, scale: float | None = None
) -> None:
    """`value_gradient` along the true gradient.

    By paths where these are cheap (affine chains are known exactly, others are extrapolated), else by the weight of
    the end; in two dimensions one of the rewards each way.
    """
    bench, process, jumps = Workbench.of(case), problem.process, problem is not case.problem
    low, size = process.dim <= LOW, float(np.linalg.norm(truth))
    chain = low and jumps and not bench.affine
    rule = Bismut(lambda s: process.amplitude(s) ** 2) if low and (bench.affine or jumps) else LikelihoodRatio()
    n = min(bench.paths, PATHS) if chain else bench.draws // 4 if low else 2 * bench.draws
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreliableWeights)
        try:
            found = value_gradient(
                problem, t, x, rule, n, case.noise, along=torch.as_tensor(truth / max(size, 1e-300))[None],
                grid=bench.grid(0, t) if chain else None,
            )  # fmt: skip
        except UnreliableWeights as reason:
            raise NotApplicable(str(reason)) from reason
    estimate = Estimate(float(found.value[0, 0]), float(found.stderr[0, 0]), found.n, found.route)
    case.sample(f"t = {t:.3g}: |{title}|", estimate, size, scale=scale, note=type(rule).__name__)
