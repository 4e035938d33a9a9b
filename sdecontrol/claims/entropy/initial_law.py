"""Prop. 3.4: the best initial law is the prior tilted by the value at time 0."""

from __future__ import annotations

import math

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.entropy.separation import value_at_start
from sdecontrol.claims.routes.atoms import relative_entropy
from sdecontrol.claims.routes.atoms_start import STARTS, starts_of
from sdecontrol.claims.routes.posterior import gaussian, gaussian_kl, rule, start_nodes, tilted_mass
from sdecontrol.claims.routes.quadrature import Array, log_sum_exp
from sdecontrol.claims.routes.schedule_chain import PlainChain, distance, own_chain, vanishing
from sdecontrol.claims.routes.workbench import Workbench, mild, no_running_reward
from sdecontrol.estimate import Estimate
from sdecontrol.laws import DiscreteLaw, kl

OTHER_STARTS = ((1.0, 0.0), (1.0, 0.5), (0.8, -0.3), (1.3, 0.0))  # scale of p_noise's spread, shift in deviations

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


@CLAIM.check(DISCRETE)
def chain_start(case: Case) -> None:
    """The chain's nu* against the start given its tilted end; other starts fall short by KL(nu || nu*).

    Their objective is E_nu V - KL(nu || p_noise), V = v(0, .)/temperature the chain's own value.
    """
    no_running_reward(case)
    exact, plain, _, error = chain = own_chain(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    star, found = chain.optimum.at(0), latent.moments(0.0, exact.initial)
    case.zero("chain: moments of nu*, in standard deviations", distance(found, star), error * _condition(bench))
    best, gaps, misses = float(exact.log_normalizer), [], []
    mean, covariance = plain.start
    for scale, push in OTHER_STARTS:
        other = mean + push * np.sqrt(np.diag(covariance)) / math.sqrt(latent.dim), scale**2 * covariance
        root = math.sqrt(latent.dim) * np.linalg.cholesky(other[1]).T
        corners = latent.lift(0.0, np.concatenate([other[0] + root, other[0] - root]))  # exact for quadratics
        value = float(exact.value(0.0, corners).mean()) / bench.temperature
        gaps.append(best - value + gaussian_kl(other, plain.start))
        misses.append(gaps[-1] - gaussian_kl(other, star))
    error *= _condition(bench)
    case.bound(f"chain: 0 <= log Z - objective / T of {len(gaps)} other starts", 0.0, min(gaps), error)
    case.zero("chain: log Z - objective / T - KL(nu, nu*)", max(misses, key=abs), error, scale=max(gaps))


@CLAIM.check(DISCRETE)
def finer_chains(case: Case) -> None:
    """nu* of ever finer chains, seen along its shift, against the continuum's."""
    no_running_reward(case)
    latent = Workbench.of(case).latent
    rho, (mean, covariance) = latent.rho, latent.moments(0.0, case.answers.initial)
    start, spread = latent.gaussian_start
    shift = mean - start
    along = shift / np.linalg.norm(shift) if shift.any() else np.eye(latent.dim)[0]
    deviation = math.sqrt(along @ spread @ along)

    def star(chain: PlainChain) -> tuple[Array, Array]:
        return chain.under(chain.law.tilt(rho)).at(0)

    found, error = vanishing(case, lambda chain: float(along @ (star(chain)[0] - start)) / deviation)
    case.identity("shift of nu* as the steps vanish, in deviations", found, float(along @ shift) / deviation, error)
    found, error = vanishing(case, lambda chain: float(along @ star(chain)[1] @ along) / deviation**2)
    known = float(along @ covariance @ along) / deviation**2
    case.identity("variance of nu* over p_noise's as the steps vanish", found, known, error)


@CLAIM.check(DISCRETE)
def atoms(case: Case) -> None:
    """Finitely many starts: nu* weighs them by e^{v(0, .)/temperature}; other weights fall short by KL(nu || nu*)."""
    no_running_reward(case)
    starts, answers, temperature = starts_of(case), case.answers, case.problem.temperature
    law = DiscreteLaw(starts.y)
    value = lambda y: answers.value(0.0, y)  # noqa: E731
    known = law.log_expectation(value, temperature)
    case.identity(f"log E e^(v/T) over {STARTS} starts", known, starts.log_c, starts.error)
    star = law.tilt(value, temperature)
    gap = float(np.abs(star.weights.numpy() - starts.weights).max())
    case.zero("weights of nu* at them, from the value", gap, starts.error)
    ratio = answers.initial.log_prob(starts.y) - case.problem.process.initial_law(0.0).log_prob(starts.y)
    size = rounding(float(answers.initial.log_prob(starts.y).abs().max()), condition=_condition(Workbench.of(case)))
    gap = float(np.abs(ratio.softmax(0).numpy() - starts.weights).max())
    case.zero("weights of nu* at them, from its density", gap, starts.error + size)
    gaps, misses = [], []
    for spread in (0.01, 0.3, 3.0):
        logs = np.log(starts.weights) + spread * case.rng.standard_normal(STARTS)
        weights = np.exp(logs - log_sum_exp(logs))
        prior = relative_entropy(weights, np.full(STARTS, 1 / STARTS))
        gaps.append(known - float(weights @ starts.growth) + prior)
        misses.append(gaps[-1] - kl(DiscreteLaw(starts.y, torch.as_tensor(weights)), star))
    case.bound("0 <= log C - objective / T of 3 other weights", 0.0, min(gaps), starts.error)
    case.zero("log C - objective / T - KL(nu, nu*)", max(misses, key=abs), 10 * starts.error, scale=max(gaps))


@CLAIM.check(MONTE_CARLO)
def weighted_prior(case: Case) -> None:
    """Prior draws weighted by e^{v(0, .)/temperature} / C: mean 1, and the moments of nu* along its shift."""
    no_running_reward(case)
    bench, answers, prior = Workbench.of(case), case.answers, case.problem.process.initial_law(0.0)
    bench.latent.start  # noqa: B018  raises NotApplicable for a point
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
    bench.latent.start  # noqa: B018  raises NotApplicable for a point
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
