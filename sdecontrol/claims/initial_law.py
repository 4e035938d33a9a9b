"""Prop. 3.4: the best initial law is the prior tilted by the value at time 0."""

from __future__ import annotations

import math

import numpy as np
import torch

from sdecontrol.claims.base import EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.posterior import gaussian, gaussian_kl, rule, start_nodes, tilted_mass
from sdecontrol.claims.quadrature import Array, log_sum_exp
from sdecontrol.claims.separation import value_at_start
from sdecontrol.claims.workbench import Workbench, mild, no_running_reward
from sdecontrol.estimate import Estimate

CLAIM = Claim(
    "prop-3.4",
    "The best initial law is the prior tilted by the value, nu* = e^{v(0,.)/temperature} p_noise / C",
    "Tang 2403.06279, Prop. 3.4, (3.16)",
    r"\nu^*(dy) = e^{v(0,y)/\alpha} p_noise(dy) / E_{p_noise} e^{v(0,\cdot)/\alpha}, where the constant is C.",
)


@CLAIM.check(EXACT)
def density(case: Case) -> None:
    """log nu* at points: from the answers' own value and log C, and from a value and a log C of the second route."""
    no_running_reward(case)
    bench, answers, latent = Workbench.of(case), case.answers, Workbench.of(case).latent
    points = latent.draw(0.0, 64, case.rng, widen=1.5)
    start = case.problem.process.initial_law(0.0)
    log_nu = answers.initial.log_prob(points).numpy()
    log_start = start.log_prob(points).numpy()
    value = answers.value(0.0, points).numpy() / bench.temperature
    size = max(float(np.abs(a).max()) for a in (log_nu, log_start, value))
    own = value + log_start - answers.log_normalizer
    error = rounding(size, condition=float(latent.dim))
    case.zero(
        "log nu* - v(0, .)/temperature - log p_noise + log C", float(np.abs(log_nu - own).max()), error, scale=size
    )
    growth = latent.clean(0.0).log_growth(latent.rho, latent.encode(0.0, points))
    log_c, error_of_rule = latent.log_normalizer()
    second = growth + log_start - log_c
    error = error + error_of_rule + rounding(size, log_c, condition=_condition(bench))
    case.zero("log nu*, all by the second route", float(np.abs(log_nu - second).max()), error, scale=size)


@CLAIM.check(EXACT)
def normaliser(case: Case) -> None:
    """E_{p_noise} e^{v(0, .)/temperature} against log C: by quadrature, or above two dimensions of a quadratic v."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    log_c = float(case.answers.log_normalizer)
    if latent.dim <= 2 and latent.codimension == 0:
        estimates = []
        for spacing in (0.25, 0.3):
            nodes, log_weights = _start_rule(bench, spacing)
            values = case.answers.value(0.0, latent.lift(0.0, nodes)).numpy() / bench.temperature
            estimates.append(float(log_sum_exp(values + log_weights)))
        error = abs(estimates[0] - estimates[1]) + rounding(1.0, log_c, condition=10.0)
        case.identity("log E_{p_noise} e^{v(0, .)/temperature} by quadrature", log_c, estimates[0], error)
        return
    v, start = value_at_start(bench), latent.start
    mass, error = tilted_mass(start, v)
    error += rounding(1.0, mass, condition=_condition(bench), operations=100 * latent.dim)
    case.identity("log E_{p_noise} e^{v(0, .)/temperature}, v a quadratic", log_c, mass, error)
    star = latent.moments(0.0, case.answers.initial)
    tilted = start.tilt(v).law
    distance = gaussian_kl(star, (tilted.mean, tilted.covariance))
    case.zero("KL(nu* || tilted prior)", distance, error)


@CLAIM.check(MONTE_CARLO)
def weighted_prior(case: Case) -> None:
    """Prior draws weighted by e^{v(0, .)/temperature} / C: mean 1, and the moments of nu* along its shift."""
    no_running_reward(case)
    bench, answers, prior = Workbench.of(case), case.answers, case.problem.process.initial_law(0.0)
    y = prior.sample(bench.draws, case.noise, "prior").to(torch.float64)
    weights = mild(torch.exp(answers.value(0.0, y) / bench.temperature - answers.log_normalizer))
    case.sample("E_{p_noise} e^{v(0, .)/temperature} / C", Estimate.mean(weights), 1.0)
    direction = _direction(case)
    along = y @ direction
    mean, variance = _moments_along(case, direction)
    deviation = math.sqrt(variance)
    case.sample("mean of nu* along its shift", Estimate.mean(weights * (along - mean)), 0.0, scale=deviation)
    square = weights * ((along - mean) ** 2 - variance)
    case.sample("variance of nu* along its shift", Estimate.mean(square), 0.0, scale=variance)


@CLAIM.check(MONTE_CARLO)
def draws(case: Case) -> None:
    """Draws of nu* have its moments."""
    no_running_reward(case)
    bench = Workbench.of(case)
    if not bench.draws_initial:
        raise NotApplicable("nu* is drawn by importance resampling here")
    direction = _direction(case)
    along = case.answers.initial.sample(bench.draws, case.noise, "nu").to(torch.float64) @ direction
    mean, variance = _moments_along(case, direction)
    case.sample("mean of draws of nu*", Estimate.mean(along - mean), 0.0, scale=math.sqrt(variance))
    case.sample("variance of draws of nu*", Estimate.mean((along - mean) ** 2), variance)


def _start_rule(bench: Workbench, spacing: float) -> tuple[Array, Array]:
    """Nodes and log weights for p_noise, placed where e^{v(0, .)/temperature} p_noise lives."""
    latent = bench.latent
    if latent.data is not None and latent.by_rule:
        return start_nodes(*latent.gaussian_start, spacing)
    if latent.data is not None and len(latent.data.clouds) > 1:
        around = latent.noised(latent.data.tilt(latent.rho).law, 0.0)
    else:
        around = gaussian(*latent.moments(0.0, bench.answers.initial))
    nodes, weights = rule(around, spacing)
    return nodes, np.log(weights) + latent.start.log_density(nodes) - around.log_density(nodes)


def _direction(case: Case) -> torch.Tensor:
    """grad v(0, .) at the mean of p_noise, of unit length: where nu* moves (the first axis where it vanishes)."""
    centre = case.problem.process.initial_law(0.0).mean[None]
    u = case.answers.control(0.0, centre)[0]
    size = float(u.norm())
    return u / size if size > 0 else torch.eye(len(u), dtype=torch.float64)[0]


def _moments_along(case: Case, direction: torch.Tensor) -> tuple[float, float]:
    """Mean and variance of direction . Y under nu*: of the law where it has them, else by the second route."""
    law = case.answers.initial
    try:
        return float(direction @ law.mean), float(direction @ law.covariance @ direction)
    except NotImplementedError:
        bench = Workbench.of(case)
        latent = bench.latent
        nodes, weights = rule(latent.start, 0.3)
        growth = latent.clean(0.0).log_growth(latent.rho, nodes)
        weights = weights * np.exp(growth - growth.max())
        along = (latent.lift(0.0, nodes) @ direction).numpy()
        weights = weights / weights.sum()
        mean = float(weights @ along)
        return mean, float(weights @ (along - mean) ** 2)


def _condition(bench: Workbench) -> float:
    """Worst condition number of the second route's posterior at t = 0."""
    return max(10.0, *(float(np.linalg.cond(c)) for c in bench.latent.clean(0.0).covariances))
