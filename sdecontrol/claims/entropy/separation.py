"""Eq. (3.13): the objective separates into a control problem from every start and a problem over the initial law."""

from __future__ import annotations

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.routes.atoms import relative_entropy
from sdecontrol.claims.routes.atoms_start import STARTS, starts_of
from sdecontrol.claims.routes.generator import growth, places, residual_row
from sdecontrol.claims.routes.local import Steps, vanishing_row
from sdecontrol.claims.routes.plain import GaussianSum, Quadric
from sdecontrol.claims.routes.posterior import gaussian, gaussian_kl, rule
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.workbench import LAW_ACCURACY, Workbench, mild, mixture_of, no_running_reward
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import total_reward
from sdecontrol.moments import AffineChain, moments
from sdecontrol.time import TimeGrid

CLAIM = Claim(
    "eq-3.13",
    "The objective separates: a control problem from every start, then one over the initial law",
    "Tang 2403.06279, (3.13)-(3.15)",
    r"""\max_{u,\nu} \int \nu(dy) J(u, y) - \alpha KL(\nu \| p_noise),
J(u, y) = E_{Q^u_y}[r(Y_T) - \frac{\alpha}{2} \int |u|^2];
v(0, y) = \max_u J(u, y), and the maximum over \nu is \alpha \log C.""",
)


@CLAIM.check(EXACT)
def best_control_from_a_point(case: Case) -> None:
    """J(u*, y) from the moment equations started at y, against v(0, y); any other control stays below."""
    bench = Workbench.of(case)
    latent = bench.latent
    bench.flow  # noqa: B018  raises NotApplicable
    values = case.answers.value(0.0, latent.lift(0.0, bench.starts)).numpy() / bench.temperature
    for i, value in enumerate(values):
        found = bench.conditional_objective(f"from {i}")
        case.identity(
            f"J(u*, y{i}) = v(0, y{i}), over the temperature", value, found.value, found.error + rounding(value)
        )
        other = bench.conditional_objective(f"test from {i}")
        case.bound(f"J(u, y{i}) <= v(0, y{i}) for an affine u", other.value, value, other.error)


@CLAIM.check(EXACT)
def initial_law_for_the_best_control(case: Case) -> None:
    """E_nu v(0, .)/temperature - KL(nu || p_noise) = log C - KL(nu || nu*) for nu*, p_noise and two others."""
    bench = Workbench.of(case)
    start, star = bench.latent.gaussian_start, bench.latent.moments(0.0, case.answers.initial)
    v = value_at_start(bench)
    log_c, condition = float(case.answers.log_normalizer), float(np.linalg.cond(start[1]))
    laws = {"nu*": star, "p_noise": start} | {name: test.start for name, test in bench.tests.items()}
    for name, law in laws.items():
        found = float(v(law[0]) - (v.curvature * law[1]).sum() / 2) - gaussian_kl(law, start)
        error = rounding(log_c, v.constant, 1.0, condition=condition, operations=1_000 * len(start[0]))
        case.identity(f"nu = {name}: E v(0, .)/temperature - KL", found, log_c - gaussian_kl(law, star), error)


@CLAIM.check(EXACT)
def initial_law_by_quadrature(case: Case) -> None:
    """The same identity in one and two dimensions where p_noise, nu* and v(0, .) have other forms: two Gaussian nu."""
    no_running_reward(case)
    bench, answers = Workbench.of(case), case.answers
    latent, log_c = mixture_of(case), float(case.answers.log_normalizer)
    if latent.dim > 2 or latent.codimension:
        raise NotApplicable("for mixtures in one and two dimensions")
    for name, test in bench.tests.items():
        nu = gaussian(*test.start)

        def sides(spacing: float, nu: GaussianSum = nu) -> Array:
            nodes, weights = rule(nu, spacing)
            y = latent.lift(0.0, nodes)
            own, value = nu.log_density(nodes), answers.value(0.0, y).numpy() / bench.temperature
            left = weights @ (value - own + latent.start.log_density(nodes))
            return np.array([left, log_c - weights @ (own - answers.initial.log_prob(y).numpy())])

        (left, right), other = sides(0.25), sides(0.3)
        error = abs(left - other[0]) + abs(right - other[1]) + rounding(1.0, log_c, condition=10.0)
        case.identity(f"nu = {name}: E v(0, .)/temperature - KL", left, right, error)


@CLAIM.check(EXACT)
def any_control_of_a_mixture(case: Case) -> None:
    """Mixtures in any dimension, (3.14): A^u v/temperature - |u|^2 / 2 = -|u - u*|^2 / 2 at points, for every u.

    Integrated along Q^u_y it is J(u, y) = v(0, y) - temperature E int |u - u*|^2 / 2. v is the second route's, and at
    t = 0 the answers' too; u is none, u* and a random one.
    """
    no_running_reward(case)
    mixture_of(case)
    answers, sides, rng = case.answers, [], case.rng
    for place in places(case):
        best = place.asked(answers.control)
        size = float(np.sqrt(np.square(best).mean()))
        for u in (np.zeros_like(best), best, size * rng.standard_normal(best.shape)):
            rate, error = growth(place).rate(u)
            sides.append((rate, (u * best).sum(1) - (best**2).sum(1) / 2, error))
    residual_row(case, "A^u v/temperature - (|u|^2 - |u - u*|^2) / 2 at points, for three u", sides)
    starts = starts_of(case)
    value = answers.value(0.0, starts.y).numpy() / case.problem.temperature
    worst = float(np.abs(value - starts.growth).max())
    case.zero(f"v(0, y)/temperature at {STARTS} y, by the second route", worst, starts.error)


@CLAIM.check(EXACT)
def initial_laws_on_atoms(case: Case) -> None:
    """Mixtures in any dimension, (3.15) over finitely many starts: sum_j nu_j (v(0, y_j)/temperature - log nu_j/p_j)
    = log C - KL(nu || nu*), with log C and nu* by the second route, for nu*, equal weights and two others.
    """
    no_running_reward(case)
    mixture_of(case)
    starts, prior = starts_of(case), np.full(STARTS, 1 / STARTS)
    value = case.answers.value(0.0, starts.y).numpy() / case.problem.temperature
    laws = {"nu*": starts.weights, "p_noise": prior}
    laws |= {f"random {i}": case.rng.dirichlet(np.full(STARTS, spread)) for i, spread in enumerate((3.0, 0.3), 1)}
    for name, nu in laws.items():
        found = float(nu @ value) - relative_entropy(nu, prior)
        known = starts.log_c - relative_entropy(nu, starts.weights)
        title = f"{STARTS} starts, nu = {name}: E v(0, .)/temperature - KL"
        case.identity(title, found, known, starts.error * (1 + float(np.abs(value).max())))


@CLAIM.check(DISCRETE)
def both_problems_over_a_step(case: Case) -> None:
    """One step from y under u*, then v: it is worth J(y), and J/temperature - log dnu*/dp_noise = log C for all y.

    That is what it takes to be the maximum over nu of (3.15). It holds up to dt^2: the gap vanishes with the step, for
    the right nu*, and so does the gap over the step, for the right u*.
    """
    bench, answers = Workbench.of(case), case.answers
    steps = Steps(bench, 0.0)
    p_noise, log_c = case.problem.process.initial_law(0.0), float(answers.log_normalizer)
    tilt = (answers.initial.log_prob(steps.x) - p_noise.log_prob(steps.x)).numpy() + log_c
    energy = steps.control.square().sum(1).numpy() / 2
    taken = steps.of(bench.process.default_kernel, steps.control)
    gaps = [step.mean(step.values(bench)) - tilt + step.dt * (steps.running - energy) for step in taken]
    size = max(steps.size, float(p_noise.log_prob(steps.x).abs().max()), abs(log_c))
    accuracy = LAW_ACCURACY if bench.latent.data is not None and bench.latent.by_rule else 0.0
    title = "J/temperature - log dnu*/dp_noise - log C over a step"
    vanishing_row(case, title, gaps, size, accuracy)
    lengths = [t_next - steps.t for t_next in steps.ends]
    rates = [gap / dt for gap, dt in zip(gaps, lengths)]
    vanishing_row(case, f"{title}, per unit of time", rates, size / lengths[-1], accuracy)


@CLAIM.check(DISCRETE)
def objective_of_a_chain(case: Case) -> None:
    """For an affine u on a short chain: moments under nu, against J(u, y) by conditional moments averaged over nu.

    J is quadratic in y, so its mean over nu is exact at the 2 d points mean +- sqrt(d) root e_i.
    """
    bench = Workbench.of(case)
    process, test, latent = case.problem.process, bench.tests["affine 2"], bench.latent
    grid, kernel = TimeGrid.explicit([process.horizon * k / 8 for k in range(8)]), process.default_kernel
    found = moments(process, kernel, grid, test.initial, test.control)
    left = bench.chain_reward(found) - float(found.energy.sum())
    root = np.linalg.cholesky(test.initial.covariance.numpy()) * np.sqrt(process.dim)
    points = test.initial.mean.numpy() + np.vstack([root.T, -root.T])
    right = float(_conditional(bench, grid, points).mean())
    error = rounding(left, float(np.abs(bench.whole_reward(points)).max()), operations=100 * process.dim)
    case.identity("E_nu J(u, .)", left, right, error, note=f"{len(points)} starts; d = {latent.dim}")


@CLAIM.check(MONTE_CARLO)
def reweighted_starts(case: Case) -> None:
    """int nu(dy) J(u*, y) from paths started at nu, and from paths started at p_noise weighted by dnu/dp_noise."""
    bench = Workbench.of(case)
    name, nu = ("optimum", case.answers.initial) if bench.draws_initial else ("moved", bench.tests["affine 1"].initial)
    kept = bench.path("untilted")
    ratio = mild(torch.exp(nu.log_prob(kept.initial) - kept.reference_initial.log_prob(kept.initial)))
    reward = total_reward(case.problem, kept) / bench.temperature
    gap = Estimate.difference(bench.profit(name), ratio * bench.profit("untilted"))
    case.sample(f"E_nu J(u*, .) two ways, nu of {name!r}", gap, 0.0, scale=float(reward.std()))
    case.sample("E_{p_noise} dnu/dp_noise", Estimate.mean(ratio), 1.0)


def value_at_start(bench: Workbench) -> Quadric:
    """v(0, .)/temperature as a quadratic of the latent start, read off the answers' values at points."""
    latent = bench.latent
    latent.sde, latent.rho  # noqa: B018  raise NotApplicable
    mean, covariance = latent.gaussian_start
    scale = np.sqrt(np.diag(covariance))
    d = latent.dim
    steps = np.eye(d) * scale
    pairs = [(i, j) for i in range(d) for j in range(i)]
    points = [np.zeros((1, d)), steps, -steps, *([np.stack([steps[i] + steps[j] for i, j in pairs])] if pairs else [])]
    values = bench.answers.value(0.0, latent.lift(0.0, mean + np.vstack(points))).numpy() / bench.temperature
    centre, up, down, both = values[0], values[1 : d + 1], values[d + 1 : 2 * d + 1], values[2 * d + 1 :]
    slope, bend = (up - down) / 2, up + down - 2 * centre
    hessian = np.diag(bend)
    for (i, j), value in zip(pairs, both):
        hessian[i, j] = hessian[j, i] = value - centre - slope[i] - slope[j] - (bend[i] + bend[j]) / 2
    linear, curvature = slope / scale, -hessian / np.outer(scale, scale)
    shifted = float(centre - linear @ mean - mean @ curvature @ mean / 2)
    return Quadric(shifted, linear + curvature @ mean, curvature)


def _conditional(bench: Workbench, grid: TimeGrid, points: Array) -> Array:
    """E[rewards/temperature - sum dt |u|^2/2] of the chain from each point (n, D), by a recursion of its own."""
    process, control = bench.process, bench.tests["affine 2"].control
    means, spread, total = points, np.zeros((process.dim, process.dim)), np.zeros(len(points))
    running = bench.whole_running
    for step in AffineChain.of(process, process.default_kernel, grid).steps:
        matrix, offset, noise = step.matrix.numpy(), step.offset.numpy(), step.noise.numpy()
        gain, shift = (part.numpy() for part in control.affine_at(step.t))
        u = means @ gain.T + shift
        total -= step.dt / 2 * ((u**2).sum(1) + np.sum((gain @ spread) * gain))
        if running is not None:
            total += step.dt * (running(means) - np.sum(running.curvature * spread) / 2)
        closed = matrix + np.sqrt(step.dt) * noise @ gain
        means, spread = (
            means @ matrix.T + offset + np.sqrt(step.dt) * u @ noise.T,
            closed @ spread @ closed.T + noise @ noise.T,
        )
    return bench.whole_reward(means) - np.sum(bench.whole_reward.curvature * spread) / 2 + total
