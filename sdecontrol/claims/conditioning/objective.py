"""CTRL, Lemma 3: the objective is the mean log likelihood minus the KL of the path laws."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.conditioning.rows import SAFETY, along, bench_of, finite, titled
from sdecontrol.claims.routes.draws import OptimalDraws, TimeRule, extrapolated
from sdecontrol.claims.routes.labels import LinearLabel, Subject, answers_of, subject_of
from sdecontrol.claims.routes.latent import Latent
from sdecontrol.claims.routes.posterior import rule
from sdecontrol.claims.routes.quadrature import LOG_2PI, OTHER_SPACING, SPACING
from sdecontrol.claims.routes.simulations import clock
from sdecontrol.estimate import Estimate
from sdecontrol.moments import moments
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid

STRENGTH = 3.0
NODES = 33  # noise levels of the rule in time

CLAIM = Claim(
    "ctrl-lemma-3",
    "The objective of CTRL is E[strength log p(y|x_T)] less KL(P^g||P_pre), whose rate is |f-g|^2 / 2 sigma^2",
    "CTRL 2406.12120, Lemma 3, (12)-(14); the KL of the starts where they are not a point: derived",
    r"""J(g) = E_{P^g}[\gamma \log p(y|x_T)] - KL(P^g \| P^{pre}),
KL(P^g \| P^{pre}) = \frac12 E_{P^g} \int_0^T |f^{pre} - g|^2 / \sigma^2 dt, and max_g J = \log C.""",
)


@CLAIM.check(EXACT)
def energy_of_the_optimum(case: Case) -> None:
    """Gaussian data: 1/2 E int |u*|^2 dt by a rule in time over scalar Gaussians, plus the KL of the starts."""
    subject = subject_of(case)
    if subject.latent.data is not None and len(subject.latent.data.clouds) > 1:
        raise NotApplicable("for mixtures the mean energy is by draws")
    answers = answers_of(case, subject.linear, STRENGTH)
    energy, error = _energy(subject, subject.linear)
    total = answers.kl_initial + energy
    case.identity("energy of u*", answers.energy, energy, error, scale=answers.path_kl)
    case.identity("KL(P*||P_pre) = KL of the starts + energy", answers.path_kl, total, error)


@lru_cache(maxsize=8)  # the wrong answers are compared with the same number
def _energy(subject: Subject, label: LinearLabel) -> tuple[float, float]:
    """1/2 E* int |u*|^2 dt with u* = amplitude J'w (y - w.m)/(P + tau^2/strength), w.m a tilted scalar."""
    process, latent = subject.problem.process, subject.latent

    def rate(t: float) -> float:
        clean = subject.clean(t)
        pull = clean.gains[0].T @ label.w
        variance = float(label.w @ clean.covariances[0] @ label.w) + label.noise**2 / STRENGTH
        centre, covariance = subject.moments(t)
        mean, spread = float(clean.offsets[0] @ label.w + pull @ centre), float(pull @ covariance @ pull)
        gain = spread / (spread + variance)
        miss = label.target - mean
        square = (miss * (1 - gain)) ** 2 + spread * (1 - gain)
        return process.amplitude(t) ** 2 * float(pull @ pull) * square / (2 * variance**2)

    if latent.data is not None:
        total, error = TimeRule(latent, NODES).integrate(rate)
        return total, SAFETY * error
    totals = []
    for order in (6, 9):
        x, w = np.polynomial.legendre.leggauss(order)
        times = process.horizon * (1 + x) / 2
        totals.append(process.horizon / 2 * float(w @ [rate(float(t)) for t in times]))
    return totals[1], abs(totals[1] - totals[0]) + rounding(totals[1], condition=100.0)


@CLAIM.check(EXACT)
def likelihood_less_log_c(case: Case) -> None:
    """KL(P*||P_pre) = E_{p_gamma}[strength log p] - log C, and J(g*) = log C; moments by Kalman's update."""
    subject = subject_of(case)
    answers = answers_of(case, subject.linear, STRENGTH)
    likelihood, log_c = _mean_likelihood(subject, subject.linear)
    error = rounding(likelihood, log_c, condition=subject.reference.condition, operations=10_000)
    case.identity("KL(P*||P_pre) = E[strength log p] - log C", answers.path_kl, likelihood - log_c, error)
    case.identity("J(g*) = log C", likelihood - answers.path_kl, answers.log_normalizer, error)


def _mean_likelihood(subject: Subject, label: LinearLabel) -> tuple[float, float]:
    """E_{p_gamma}[strength log p] and log C, by Kalman's update."""
    law, log_c = label.tilt(subject.reference, STRENGTH)
    mean, variance = along(law, label.w)
    square = ((label.target - mean) ** 2 + variance) / label.noise**2
    return -STRENGTH * (square / 2 + math.log(label.noise) + LOG_2PI / 2), log_c


@CLAIM.check(EXACT)
def component_label(case: Case) -> None:
    """The same for the component of a mixture, E[log p] by a product rule, in one and two dimensions."""
    subject = subject_of(case)
    if len(subject.labels) == 1 or not subject.latent.matched:
        raise NotApplicable("for mixtures from their own noised law, whose output is a mixture")
    label = subject.labels[1]
    law, log_c = label.tilt(subject.reference, 1.0)
    totals = []
    for spacing in (SPACING / 2, OTHER_SPACING / 2):
        nodes, weights = rule(law, spacing)
        totals.append(float(weights @ label.log_likelihood(nodes, 1.0)))
    error = 3 * abs(totals[0] - totals[1]) + rounding(log_c, operations=10_000)
    kl = answers_of(case, label, 1.0).path_kl
    case.identity(titled(label, 1.0, "KL(P*||P_pre) = E log p - log C"), kl, totals[1] - log_c, error)


@CLAIM.check(DISCRETE)
def finite_chain(case: Case) -> None:
    """(13) and (12) on a finite chain, all paths summed, for the optimum and for the scaled kernels."""
    _, all_paths, log_p = finite(case)
    chain, weight = all_paths.chain, STRENGTH * log_p
    log_c = all_paths.log_tilted(weight)[1]
    for name, other in (("optimum", chain.conditioned(weight)), ("scaled kernels", chain.scaled(log_p, STRENGTH))):
        log_path = all_paths.log_p_of(other)
        direct = float(np.exp(log_path) @ (log_path - all_paths.log_reference))
        found = sum(other.path_kl(chain))
        case.identity(f"finite chain, {name}: KL of starts + steps", found, direct, rounding(direct, log_c))
        objective = float(other.marginals()[-1] @ weight) - found
        if name == "optimum":
            case.identity(f"finite chain, {name}: J = log C", objective, log_c, rounding(direct, log_c))
        else:
            case.bound(f"finite chain, {name}: J <= log C", objective, log_c)


@CLAIM.check(DISCRETE)
def kl_of_the_chain(case: Case) -> None:
    """Affine processes: the KL of ever finer chains under u* from nu*, extrapolated, against Kalman's update."""
    subject, process = subject_of(case), case.problem.process
    if not process.is_affine:
        raise NotApplicable("the chain's KL is known for affine dynamics")
    if case.quick:
        raise NotApplicable("four chains are left out of a quick run")
    likelihood, log_c = _mean_likelihood(subject, subject.linear)
    answers, bench = answers_of(case, subject.linear, STRENGTH), bench_of(case, subject.linear, STRENGTH)
    grids = [clock(bench.latent, n) for n in (16, 32, 64, 128)]
    chains = [moments(process, process.default_kernel, grid, answers.initial, answers.control) for grid in grids]
    value, error = extrapolated([chain.kl for chain in chains])
    case.identity("KL of the chain under u* as the steps vanish", value, likelihood - log_c, SAFETY * error)


@CLAIM.check(MONTE_CARLO)
def energy_by_draws(case: Case) -> None:
    """KL(P*||P_pre) by draws of the tilted data noised to every level; no time steps."""
    subject = subject_of(case)
    problem = subject.problem_of(subject.linear, STRENGTH)
    answers, latent = answers_of(case, subject.linear, STRENGTH), Latent(problem)
    draws = OptimalDraws(latent, max(1_000, case.paths // (10 if latent.dim > 4 else 4)), case.rng)
    first, start = latent.lift(0.0, draws.states[0]), problem.process.initial_law(0.0)
    log_ratio = (answers.initial.log_prob(first) - start.log_prob(first)).numpy()
    energy, bias = draws.energy(lambda t, z: answers.control(t, latent.lift(t, z)).numpy())
    total = Estimate.mean(draws.weights * (energy + log_ratio))
    case.sample("KL(P*||P_pre) = E*[log dnu*/dp_noise + int |u*|^2 / 2]", total, answers.path_kl, bias=bias)


@CLAIM.check(MONTE_CARLO)
def simulated_energy(case: Case) -> None:
    """Affine processes: the simulated energy and log ratio of u* against the exact KL of the same chain."""
    subject, process = subject_of(case), case.problem.process
    if not process.is_affine:
        raise NotApplicable("the chain's KL is known for affine dynamics")
    answers = answers_of(case, subject.linear, STRENGTH)
    grid = TimeGrid.explicit([process.horizon * k / 12 for k in range(12)])
    exact = moments(process, process.default_kernel, grid, answers.initial, answers.control)
    path = simulate(process, answers.control, answers.initial, grid=grid, n=case.paths // 4, noise=case.noise,
                    keep="ends")  # fmt: skip
    log_ratio = path.log_ratio()
    case.sample("mean log ratio of the chain under u*", Estimate.mean(log_ratio), exact.kl,
                scale=float(log_ratio.std()))  # fmt: skip
