"""Proposition 3.2: how far the tilt moves the law, the bounds' proved constants, and reward collapse."""

from __future__ import annotations

import math

import numpy as np

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.routes.atoms import atoms_of
from sdecontrol.claims.routes.output import output_law
from sdecontrol.claims.routes.perturbed import gaussian_kl
from sdecontrol.claims.routes.schedule_chain import own_chain, vanishing
from sdecontrol.claims.routes.static import (
    DRAWS,
    StepRoute,
    check_static,
    core,
    draws,
    log_weights,
    plain_laws,
    ramp,
    static,
)
from sdecontrol.claims.routes.workbench import Workbench
from sdecontrol.errors import NoClosedForm
from sdecontrol.estimate import Estimate
from sdecontrol.laws import Gaussian, kl, tv, w2
from sdecontrol.rewards import as_quadratic

RANGES = (0.5, 2.0, 8.0)  # (max r - min r) / temperature of the bounded rewards
COOLING = (4.0, 1.0, 1 / 4, 1 / 16, 1 / 64)  # temperatures of the collapse, in units of the problem's
RARE = 0.3  # mass of p_pre that a step reward favours

PROPOSITION = Claim(
    "prop-3.2",
    "Fine-tuning moves the law by at most the square root of the reward gained over the temperature",
    "Tang 2403.06279, Prop. 3.2, (3.3)-(3.8); constants, sharp forms and limits: derived",
    r"""D = (E_{ft} r - E_{pre} r)/\alpha = KL(p_ft \| p_pre) + KL(p_pre \| p_ft), hence d_TV(p_ft, p_pre) <= \sqrt{D}/2
<= \sqrt{D/2}; for a reward of range R \alpha, d_TV <= \tanh(R/4) and each KL <= R^2/8. With a score error \epsilon,
d_TV(p_ft, p_data) <= d_TV(p_T, p_noise) + (\epsilon/2)(\int \sigma^2)^{1/2} + \sqrt{D}/2. As \alpha -> 0 the bounds
diverge, the distance does not: d_TV -> 1 - p_pre(argmax r), KL -> -log p_pre(argmax r).""",
)


@PROPOSITION.check(EXACT)
def symmetric_divergence(case: Case) -> None:
    """KL(p_ft || p_pre) + KL(p_pre || p_ft) = D; the smaller of them is at most D/2."""
    route = static(case.problem)
    terminal, reference = case.answers.terminal, case.answers.reference
    forward, note = float(case.answers.path_kl), "KL from log C and E_pre r"
    backward, error = float(case.answers.log_normalizer) - route.numbers.before, route.error + rounding(forward)
    if isinstance(core(terminal), Gaussian) and isinstance(core(reference), Gaussian):
        ft, pre = route.output.frame.moments(terminal), route.output.frame.moments(reference)
        forward, backward, note = gaussian_kl(*ft, *pre), gaussian_kl(*pre, *ft), "KLs from both laws"
        error += rounding(len(ft[0]), forward + backward, condition=max(np.linalg.cond(ft[1]), np.linalg.cond(pre[1])))
    case.identity("KL(p_ft, p_pre) + KL(p_pre, p_ft) = D", forward + backward, route.divergence, error, note=note)
    case.bound("smaller KL <= D/2", min(forward, backward), route.divergence / 2, error)


@PROPOSITION.check(EXACT)
def total_variation(case: Case) -> None:
    """d_TV(p_ft, p_pre) along the direction on which the weight depends, against the library's and the bounds."""
    route, quadratic = static(case.problem), as_quadratic(case.problem.reward)
    if quadratic is None or route.tilt is None:
        raise NotApplicable("a step reward is checked with its own bounds")
    law, q = route.output.law, route.tilt.q
    if not (np.abs(q.curvature).max() > 0 or np.abs(q.linear).max() > 0):
        raise NotApplicable("the reward is constant where p_pre lives, so p_ft = p_pre")
    if not np.abs(q.curvature).max() > 0:
        line, a, b = law.along(q.linear), 1.0, 0.0
    elif law.dim == 1:
        line, a, b = law.along(np.ones(1)), float(q.linear[0]), float(q.curvature[0, 0])
    else:
        raise NotApplicable("the weight depends on more than one direction: see the Monte Carlo rung")
    constant = q.constant - float(case.answers.log_normalizer)
    roots = np.roots([-b / 2, a, constant] if b else [a, constant])
    breaks = tuple(float(x.real) for x in roots if abs(x.imag) < 1e-9)
    f = lambda x: np.abs(np.expm1(constant + a * x - b * x * x / 2)) / 2  # noqa: E731
    distance = line.expect(f, breaks)
    x, w = line.nodes(breaks, order=24)
    error = rounding(1.0, condition=10) + abs(float(w @ f(x)) - distance) + route.errors.log_c + route.output.error
    try:
        found = tv(case.answers.terminal, case.answers.reference)
        case.identity("TV(p_ft, p_pre), both routes", (found.lower + found.upper) / 2, distance,
                      error + (found.upper - found.lower) / 2 + 1e-10, note=found.route)  # fmt: skip
    except NoClosedForm:
        pass
    root = math.sqrt(route.divergence)
    case.bound("TV(p_ft, p_pre) <= sqrt(D)/2", distance, root / 2, error, note=f"(3.3) says {root / math.sqrt(2):.4g}")


@PROPOSITION.check(EXACT)
def transport(case: Case) -> None:
    """W2(p_ft, p_pre) of two Gaussians against Bures' formula in numpy; below sqrt(2 s KL), s the largest variance.

    The bound is Talagrand's inequality for p_pre (derived): the distance that stays finite off a subspace.
    """
    check_static(case.problem)
    terminal, reference, frame = case.answers.terminal, case.answers.reference, output_law(case.problem).frame
    if not isinstance(core(terminal), Gaussian) or not isinstance(core(reference), Gaussian):
        raise NotApplicable("W2 is closed for Gaussians")
    (mean, covariance), (mean0, covariance0) = frame.moments(terminal), frame.moments(reference)
    values, vectors = np.linalg.eigh(covariance0)
    root = vectors * np.sqrt(values)
    mixed = np.sqrt(np.linalg.eigvalsh(root.T @ covariance @ root)).sum()
    square = float((mean - mean0) @ (mean - mean0) + np.trace(covariance + covariance0) - 2 * mixed)
    found = w2(terminal, reference)
    error = rounding(np.trace(covariance + covariance0), condition=np.linalg.cond(covariance0) * len(mean))
    case.identity("W2(p_ft, p_pre)^2, both routes", found**2, square, error)
    talagrand = 2 * float(values[-1]) * float(case.answers.path_kl)
    case.bound("W2(p_ft, p_pre)^2 <= 2 s KL(p_ft, p_pre)", found**2, talagrand, error)


@PROPOSITION.check(DISCRETE)
def chain_divergence(case: Case) -> None:
    """The chain's own laws: their two KLs add up to its D, d_TV stays below the bound; D as the steps vanish."""
    check_static(case.problem)
    exact, plain, tilt, error = own_chain(case)
    bench = Workbench.of(case)
    ft, pre = (bench.latent.moments(bench.horizon, law) for law in (exact.terminal, exact.reference))
    gain = tilt.mean_q - plain.law.mean_of(tilt.q)
    both = gaussian_kl(*ft, *pre) + gaussian_kl(*pre, *ft)
    case.identity("chain: KL(p_ft, p_pre) + KL(p_pre, p_ft) = D", both, gain, 2 * error)
    case.bound("chain: smaller KL <= D/2", min(exact.path_kl, both - exact.path_kl), gain / 2, error)
    if bench.latent.dim == 1:
        distance = tv(exact.terminal, exact.reference)
        case.bound("chain: TV(p_ft, p_pre) <= sqrt(D)/2", distance.upper, math.sqrt(gain) / 2, error)
    rho = bench.latent.rho
    limit, error = vanishing(case, lambda chain: chain.law.tilt(rho).mean_q - chain.law.mean_of(rho))
    before = static(case.problem).numbers.before
    known = float(case.answers.path_kl + case.answers.log_normalizer) - before
    case.identity("D of the chain as the steps vanish", limit, known, error + static(case.problem).error)


@PROPOSITION.check(DISCRETE)
def atoms(case: Case) -> None:
    """The bounds for finitely many atoms of p_pre, whose reward is bounded: everything is a sum."""
    found = atoms_of(case)
    size = float(np.ptp(found.rho))
    error = found.error * (1 + size)
    forward, backward = kl(found.tilted, found.law), kl(found.law, found.tilted)
    distance = float(tv(found.tilted, found.law))
    case.identity("atoms: KL(p_ft, p_pre) + KL(p_pre, p_ft) = D", forward + backward, found.divergence, error)
    case.identity("atoms: KL(p_ft, p_pre)", forward, found.kl, error)
    half = float(np.abs(found.weights - found.shares).sum()) / 2
    case.identity("atoms: TV(p_ft, p_pre), both routes", distance, half, error)
    case.bound("atoms: TV <= sqrt(D)/2", distance, math.sqrt(found.divergence) / 2, error)
    case.bound("atoms: TV <= tanh(R/4)", distance, math.tanh(size / 4), error)
    case.bound("atoms: both KL <= R^2/8", max(forward, backward), size**2 / 8, error)


def step_route(case: Case, mass: float, size: float) -> tuple[StepRoute, float, str]:
    """A step reward of height size * temperature on that mass of p_pre, with the library's log C; error and origin."""
    check_static(case.problem)
    output = output_law(case.problem)
    step = ramp(case.problem).step(mass, size * case.problem.temperature)
    route = StepRoute.of(output, step, case.problem.temperature)
    error = rounding(1.0, condition=math.sqrt(output.law.condition)) + 100 * output.error
    try:
        log_c = float(case.answers.reference.log_expectation(step, case.problem.temperature))
    except NoClosedForm:
        return route, error, "C by quadrature"
    moved = math.expm1(log_c) / math.expm1(size)  # p_pre's mass on the step, as the library's C has it
    return StepRoute(size, moved, 1 - moved), error, "C by the library"


@PROPOSITION.check(EXACT)
def bounded_reward(case: Case) -> None:
    """(3.6) for step rewards along the gradient of r; the mass 1/(1 + e^{R/2}) attains tanh(R/4)."""
    for size in RANGES:
        sharp, error, note = step_route(case, 1 / (1 + math.exp(size / 2)), size)
        best = math.tanh(size / 4)
        case.identity(f"TV = tanh(R/4) on its worst set, R = {size:g}", sharp.total_variation, best, error, note=note)
        step, error, _ = step_route(case, RARE, size)
        loose = f"R/4 = {size / 4:.4g}, sqrt(M/T) = {math.sqrt(size):.4g}" + (", which is empty" if size >= 1 else "")
        case.bound(f"TV <= tanh(R/4), R = {size:g}", step.total_variation, best, error, note=loose)
        case.bound(f"both KL <= R^2/8, R = {size:g}", max(step.kl, step.reverse_kl), size**2 / 8, error * (1 + size))


@PROPOSITION.check(EXACT)
def collapse(case: Case) -> None:
    """A step reward while the temperature falls: the distance tends to 1 - P(step), the bound to infinity."""
    for factor in COOLING:
        step, error, note = step_route(case, RARE, 2 / factor)
        root, temperature = math.sqrt(step.divergence), factor * case.problem.temperature
        said = f"KL {step.kl:.6g}, sqrt(D)/2 {root / 2:.4g}, sqrt(M/T) {math.sqrt(2 / factor):.4g}; {note}"
        quantity = f"TV at temperature {temperature:.4g} <= sqrt(D/2)"
        case.bound(quantity, step.total_variation, root / math.sqrt(2), error, note=said)
    left = math.exp(-2 / COOLING[-1])
    case.identity("TV at the last = 1 - p_pre(argmax r)", step.total_variation, 1 - RARE, error + left)
    case.identity("KL at the last = -log p_pre(argmax r)", step.kl, -math.log(RARE), 2 / COOLING[-1] * (error + left))


@PROPOSITION.check(MONTE_CARLO)
def distances(case: Case) -> None:
    """d_TV two ways, E_ft(1 - 1/w)_+ = E_pre(1 - w)_+, under the bounds; both KL by draws."""
    check_static(case.problem)
    plain, tilted = plain_laws(case)
    log_pre = log_weights(case, draws(case, case.answers.reference, plain, "p_pre", DRAWS))
    log_ft = log_weights(case, draws(case, case.answers.terminal, tilted, "p_ft", DRAWS))
    upper, lower = (Estimate.mean(np.clip(-np.expm1(log_w), 0, None)) for log_w in (-log_ft, log_pre))
    case.sample("TV = E_ft(1 - 1/w)_+ = E_pre(1 - w)_+", upper, lower, scale=1.0)
    forward, backward = Estimate.mean(log_ft), Estimate.mean(log_pre) * -1.0
    path_kl = float(case.answers.path_kl)
    case.sample("KL(p_ft, p_pre) by draws", forward, path_kl, scale=max(1.0, path_kl))
    gain = forward + backward
    root = math.sqrt(max(float(gain.value), 1e-300))
    for label, factor in (("sqrt(D)/2", 0.5), ("sqrt(D/2)", math.sqrt(0.5))):
        right = Estimate(factor * root, factor * float(gain.stderr) / (2 * root), gain.n)
        case.sample_bound(f"TV(p_ft, p_pre) <= {label}", upper, right)
