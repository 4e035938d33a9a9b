"""Lemma 3.1: the entropy-regularised maximiser is the exponential tilt, its value temperature * log C."""

from __future__ import annotations

import math

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.routes.atoms import ATOMS, atoms_of, relative_entropy
from sdecontrol.claims.routes.output import Output, output_law
from sdecontrol.claims.routes.perturbed import gaussian_kl, perturbations
from sdecontrol.claims.routes.plain import latent_data
from sdecontrol.claims.routes.quadrature import OTHER_SPACING, Array, log_sum_exp
from sdecontrol.claims.routes.schedule_chain import own_chain, vanishing
from sdecontrol.claims.routes.static import (
    DRAWS,
    POINTS,
    check_static,
    core,
    draws,
    draws_exactly,
    exponent,
    log_density,
    log_weights,
    plain_laws,
    static,
)
from sdecontrol.claims.routes.workbench import Workbench
from sdecontrol.estimate import Estimate
from sdecontrol.laws import DiscreteLaw, Gaussian, kl
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import as_quadratic

SIZES = (0.01, 0.1, 0.5)  # of the perturbed laws, in standard deviations of p_ft
PERTURBED_DRAWS = 16_000
FAR = 4.0  # KL(p_ft || p_pre) beyond which the two laws overlap so little that more draws are needed
OFFSET = 800.0  # added to log weights: e^800 is no float64
BATCHES = 2_500  # of draws, whose means say what the standard error is
MILD = math.log(4.0)  # log E w^2 up to which means of weighted samples have an honest standard error at these n

LEMMA = Claim(
    "lemma-3.1",
    "The best law is the tilt e^{r/temperature} p_pre / C, of value temperature log C",
    "Tang 2403.06279, Lemma 3.1, (3.1)-(3.2); value, gap and number of proposals: derived",
    r"""max_p E_p[r(Y)] - \alpha KL(p \| p_pre) is attained at p_ft(dy) = C^{-1} e^{r(y)/\alpha} p_pre(dy),
C = E_{p_pre} e^{r/\alpha} < \infty, if E_{p_pre} |r| e^{r/\alpha} < \infty (else the supremum is not attained);
its value is \alpha \log C, any other p stays below it by \alpha KL(p \| p_ft), and rejection sampling needs
e^{\sup r/\alpha} / C proposals from p_pre a draw: infinitely many where r is unbounded.""",
)


@LEMMA.check(EXACT)
def normaliser(case: Case) -> None:
    """log C against products of one-dimensional quadratures where covariance and curvature are diagonal."""
    route = static(case.problem)
    case.identity("log C against quadrature", case.answers.log_normalizer, route.log_c, route.errors.log_c)


@LEMMA.check(EXACT)
def value(case: Case) -> None:
    """temperature log C = E_ft r - temperature KL(p_ft || p_pre), the mean by quadrature and the KL the library's."""
    route, temperature = static(case.problem), case.problem.temperature
    mean, kl = temperature * route.numbers.after, case.answers.path_kl
    error = temperature * route.error + rounding(mean, kl)
    case.identity("T log C = E_ft r - T KL(p_ft, p_pre)", case.answers.optimum, mean - temperature * kl, error)
    terminal, reference = case.answers.terminal, case.answers.reference
    if isinstance(core(terminal), Gaussian) and isinstance(core(reference), Gaussian):
        frame = route.output.frame
        (m, s), (mean0, s0) = frame.moments(terminal), frame.moments(reference)
        error = rounding(kl, len(m), condition=float(np.linalg.cond(s0)))
        case.identity("KL(p_ft, p_pre) from both laws", kl, gaussian_kl(m, s, mean0, s0), error + route.error)


@LEMMA.check(EXACT)
def densities(case: Case) -> None:
    """log p_ft - log p_pre - r/temperature + log C = 0 pointwise, and both densities against the second route's."""
    route, problem = static(case.problem), case.problem
    law, frame = route.output.law, route.output.frame
    tilted_law = route.tilt.law if route.tilt else law
    u = np.concatenate([which.draw(POINTS // 2, case.rng) for which in (law, tilted_law)])
    x = frame.lift(u)
    pre, ft = log_density(case.answers.reference, x), log_density(case.answers.terminal, x)
    growth = problem.reward(x).numpy() / problem.temperature
    condition = max(law.condition, tilted_law.condition)
    size = np.abs(np.concatenate([pre, ft, growth, [law.dim]])).max()
    error = rounding(size, condition=condition) + route.output.error * size * condition
    residual = float(np.abs(ft - pre - growth + case.answers.log_normalizer).max())
    case.zero("log p_ft - log p_pre - r/T + log C", residual, error, scale=size, note=f"largest of {len(u)} points")
    plain = law.log_density(u)
    if route.output.by_rule:
        error += 2 * float(np.abs(plain - output_law(problem, OTHER_SPACING).law.log_density(u)).max())
    case.zero("log p_pre, both routes", float(np.abs(pre - plain).max()), error, scale=size)
    tilted = plain + growth - route.log_c
    case.zero("log p_ft, both routes", float(np.abs(ft - tilted).max()), error + route.errors.log_c, scale=size)


@LEMMA.check(EXACT)
def optimality(case: Case) -> None:
    """No perturbed law does better than temperature log C, and each falls short of it by temperature KL(p || p_ft)."""
    route, temperature = static(case.problem), case.problem.temperature
    frame, terminal = route.output.frame, case.answers.terminal
    moments = frame.moments(terminal) if isinstance(core(terminal), Gaussian) else None
    for size in SIZES:
        tried = perturbations(case, route, size)
        best = max(p.objective for p in tried)
        error = temperature * 3 * route.error
        case.bound(f"objective of {len(tried)} laws {size:g} away", temperature * best, case.answers.optimum, error)
        worst = 0.0
        for p in tried:
            gap = case.answers.optimum / temperature - p.objective
            cloud = p.tilt.law.clouds[0]
            kl = p.kl_to_optimum if moments is None else gaussian_kl(cloud.means[0], cloud.covariance, *moments)
            worst = max(worst, abs(gap - kl))
        note = "KL by quadrature" if moments is None else "KL from p_ft's mean and covariance"
        scale = temperature * tried[0].kl_to_optimum
        case.zero(f"gap - T KL(p, p_ft), {size:g} away", temperature * worst, error, scale=scale, note=note)


@LEMMA.check(EXACT)
def tilt_of_the_data(case: Case) -> None:
    """The lemma with the data law in place of p_pre: the library's tilt of it at points, against the second route's."""
    check_static(case.problem)
    process, quadratic = case.problem.process, as_quadratic(case.problem.reward)
    if not isinstance(process, ReverseProcess) or not process.has_exact_score or quadratic is None:
        raise NotApplicable("the tilt of the data law has a second route for an exact score and a quadratic reward")
    law, frame = latent_data(process.data_law)
    q = exponent(Output(law, frame), quadratic, case.problem.temperature)
    tilt = law.tilt(q)
    u = tilt.law.draw(POINTS // 4, case.rng)
    found = log_density(process.data_law.tilt(case.problem.reward, case.problem.temperature), frame.lift(u))
    plain = law.log_density(u) + q(u) - tilt.log_mass
    size = float(np.abs(np.concatenate([found, q(u) - q.constant, [law.dim, q.constant]])).max())
    error = rounding(size, condition=max(law.condition, tilt.law.condition))
    error += abs(tilt.log_mass - law.log_mass(q, OTHER_SPACING))
    case.zero("log p_data tilted, both routes", float(np.abs(found - plain).max()), error, scale=size)


@LEMMA.check(DISCRETE)
def chain(case: Case) -> None:
    """The chain's log Z, output law and value, against a recursion of its moments and quadrature of the tilt."""
    check_static(case.problem)
    exact, plain, tilt, error = own_chain(case)
    latent, temperature = Workbench.of(case).latent, case.problem.temperature
    (mean, covariance), reference = plain.moments[-1], exact.reference
    found_mean, found = latent.moments(case.problem.process.horizon, reference)
    normal = float(reference.covariance.trace() - np.trace(found))
    off = max(np.abs(found_mean - mean).max(), np.abs(found - covariance).max(), abs(normal))
    size = 1.0 + np.abs(reference.mean.numpy()).max() + float(reference.covariance.abs().max())
    error_of_moments = rounding(size, operations=100 * len(plain.moves) * case.problem.process.dim)
    case.zero("moments of the chain's p_pre", float(off), error_of_moments, note=f"{len(plain.moves)} steps")
    case.identity("log Z of the chain against quadrature", exact.log_normalizer, tilt.log_mass, error)
    value = temperature * (tilt.mean_q - exact.path_kl)
    case.identity("T log Z = E r - T KL(P*, P)", exact.optimum, value, temperature * error)


@LEMMA.check(DISCRETE)
def finer_chains(case: Case) -> None:
    """log Z and KL(P* || P) of ever finer chains, by moments and quadrature, against the continuum's."""
    check_static(case.problem)
    rho = Workbench.of(case).latent.rho
    mass, error = vanishing(case, lambda chain: chain.law.tilt(rho).log_mass)
    case.identity("log Z as the steps vanish", mass, case.answers.log_normalizer, error)
    divergence, error = vanishing(case, lambda chain: chain.law.tilt(rho).kl)
    case.identity("KL(P*, P) as the steps vanish", divergence, case.answers.path_kl, error)


@LEMMA.check(DISCRETE)
def atoms(case: Case) -> None:
    """The lemma for finitely many atoms of p_pre: log C, the tilt and the objective of other weights are sums."""
    found, problem = atoms_of(case), case.problem
    library = found.law.log_expectation(problem.reward, problem.temperature)
    case.identity(f"log C of {ATOMS} atoms", library, found.log_c, found.error)
    gap = float(np.abs(found.tilted.weights.numpy() - found.weights).max())
    case.zero("weights of the atoms' tilt", gap, found.error * found.weights.max())
    logs = torch.as_tensor(found.rho) + OFFSET
    value = Estimate.log_mean_exp(logs).value - OFFSET
    truth = float(log_sum_exp(found.rho)) - math.log(ATOMS)
    case.identity(f"log mean of e^(r/T + {OFFSET:g}), less {OFFSET:g}", value, truth, found.error + rounding(OFFSET))
    gaps, misses = [], []
    for weights in found.others(case.rng):
        gaps.append(library - (float(weights @ found.rho) - relative_entropy(weights, found.shares)))
        misses.append(gaps[-1] - kl(DiscreteLaw(found.points, torch.as_tensor(weights)), found.tilted))
    case.bound(f"0 <= log C - objective / T of {len(gaps)} other weights", 0.0, min(gaps), found.error)
    case.zero("log C - objective / T - KL to the tilt", max(misses, key=abs), 10 * found.error, scale=max(gaps))


@LEMMA.check(MONTE_CARLO)
def bridge(case: Case) -> None:
    """E_pre[psi w/(1+w)] = E_ft[psi/(1+w)], w = e^{r/temperature}/C: bounded, so its standard error can be trusted."""
    check_static(case.problem)
    plain, tilted = plain_laws(case)
    n = DRAWS if case.answers.path_kl <= FAR else 10 * DRAWS
    before = draws(case, case.answers.reference, plain, "p_pre", n)
    after = draws(case, case.answers.terminal, tilted, "p_ft", n)
    log_pre, log_ft = log_weights(case, before), log_weights(case, after)
    share_pre, share_ft = 1 / (1 + np.exp(-log_pre)), 1 / (1 + np.exp(log_ft))
    case.sample("E_pre w/(1+w) = E_ft 1/(1+w)", Estimate.mean(share_pre), Estimate.mean(share_ft), note="decides log C")
    scale = float(np.mean(share_pre * np.abs(log_pre)) + np.mean(share_ft * np.abs(log_ft))) / 2
    left, right = Estimate.mean(share_pre * log_pre), Estimate.mean(share_ft * log_ft)
    case.sample("the same, times log w", left, right, scale=scale)
    if np.ptp(share_pre) > 0:
        ratio = Estimate.mean(_batch_ratios(share_pre))
        case.sample("(its standard error by batch means / stated)^2", ratio, 1.0, note=f"{BATCHES} batches")


@LEMMA.check(MONTE_CARLO)
def weighted_moments(case: Case) -> None:
    """E_pre w = 1 and E_pre[w r] = E_ft r by draws from p_pre; where E_pre w^2 > 4 a mean of weights misleads."""
    route = static(case.problem)
    if route.tilt is None:
        raise NotApplicable("weights of a step reward are bounded: the bridge says it all")
    q = route.tilt.q
    log_second = route.output.law.tilt(q.times(2.0)).log_mass - 2 * route.log_c
    if log_second > MILD:
        second = math.exp(min(log_second, 700))
        raise NotApplicable(f"E_pre w^2 = {second:.3g}: a mean of weights has no honest standard error")
    x = draws(case, case.answers.reference, route.output.law, "weights", DRAWS)
    w = np.exp(log_weights(case, x))
    case.sample("E_pre w", Estimate.mean(w), 1.0)
    r = case.problem.reward(x).numpy()
    truth = route.numbers.after * case.problem.temperature
    case.sample("E_pre[w r] = E_ft r", Estimate.mean(w * r), truth, scale=abs(truth) + float(r.std()))


def _batch_ratios(samples: Array) -> Array:
    """(mean of a batch - mean of all)^2 over what the stated standard error says of it, of mean 1: (batches,).

    Whatever the law of independent samples, the variance of the mean of n of them is that of the means of B batches
    over B.
    """
    means, whole = samples.reshape(BATCHES, -1).mean(1), Estimate.mean(samples)
    return (means - means.mean()) ** 2 / ((BATCHES - 1) * whole.stderr**2)


@LEMMA.check(MONTE_CARLO)
def perturbed_gap(case: Case) -> None:
    """temperature log C - objective = temperature KL(p || p_ft), KL by draws from p and the library's log p_ft."""
    route = static(case.problem)
    terminal = case.answers.terminal
    if not draws_exactly(terminal):
        raise NotApplicable("log p_ft is a quadrature a point: compared at points on the exact rung")
    p = perturbations(case, route, 1.5)[0]
    u = p.tilt.law.draw(PERTURBED_DRAWS, case.rng)
    log_ratio = p.tilt.law.log_density(u) - log_density(terminal, route.output.frame.lift(u))
    gap = float(case.answers.log_normalizer) - p.objective
    case.sample("KL(p, p_ft) = log C - objective / T", Estimate.mean(log_ratio), gap)
