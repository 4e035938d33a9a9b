"""Prop. 3.3: the KL of two path laws is that of the initial laws plus the mean energy of the control."""

from __future__ import annotations

import math

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.routes.draws import NODES, TimeRule, extrapolated
from sdecontrol.claims.routes.ends import initial_kl, tilted_kl
from sdecontrol.claims.routes.generator import growth, places, residual_row
from sdecontrol.claims.routes.plain import GaussianSum
from sdecontrol.claims.routes.posterior import gaussian_kl, rule
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.workbench import Workbench, mixture_of, no_running_reward
from sdecontrol.controls import Control
from sdecontrol.estimate import Estimate
from sdecontrol.girsanov import path_kl, reverse_path_kl
from sdecontrol.kernels import EulerMaruyama
from sdecontrol.laws import Law
from sdecontrol.moments import AffineChain, ChainStep, moments
from sdecontrol.path_divergence import PathDivergence
from sdecontrol.time import TimeGrid

SAFETY = 3.0  # times what the last steps changed: their error is an estimate
FINE_NODES = 33  # noise levels of the rule in time where expectations are by quadrature too

CLAIM = Claim(
    "prop-3.3",
    "KL of path laws = KL of initial laws + mean energy of the control",
    "Tang 2403.06279, Prop. 3.3, (3.12)",
    r"""KL(Q^{u,\nu} \| Q) = KL(\nu \| p_noise) + \frac12 E_{Q^{u,\nu}} \int_0^T |u_t|^2 dt for admissible (u, \nu).""",
)


@CLAIM.check(EXACT)
def optimum_by_moment_equations(case: Case) -> None:
    """At (u*, nu*): the parts, their sum, and the KL of the two terminal laws, from scipy's moments of Y_t.

    With a running reward the law of a path given its end is not that of the reference: the terminal laws say less.
    """
    bench, answers = Workbench.of(case), case.answers
    star, start = (_full_moments(law) for law in (answers.initial, case.problem.process.initial_law(0.0)))
    initial = gaussian_kl(star, start)
    energy = bench.energy("optimum")
    error = energy.error + rounding(initial, condition=np.linalg.cond(start[1]) * len(start[0]))
    case.identity("KL(nu*||p_noise)", answers.kl_initial, initial, error, scale=max(initial, energy.value))
    case.identity("energy of u*", answers.energy, energy.value, error)
    case.identity("KL(Q*||Q) = KL(nu*||p_noise) + energy", answers.path_kl, initial + energy.value, error)
    if case.problem.running_reward is not None:
        return
    ends = bench.read(lambda s: gaussian_kl(s.moments("optimum"), s.moments("reference")))
    case.identity("KL(Q*||Q) = KL of the terminal laws", answers.path_kl, ends.value, ends.error + error)


@CLAIM.check(EXACT)
def optimum_by_quadrature(case: Case) -> None:
    """At (u*, nu*) for mixtures in one and two dimensions: mean energy over the noised tilt of the data."""
    no_running_reward(case)
    answers, latent = case.answers, mixture_of(case)
    if not latent.matched:
        raise NotApplicable("Q*_t is a finite mixture for the noised data law as the start only")
    tilted = latent.known_data.tilt(latent.rho).law
    spacings = (0.4, 0.5) if case.quick else (0.25, 0.3)

    def rate(t: float, spacing: float) -> float:
        nodes, weights = rule(latent.noised(tilted, t), spacing)
        u = answers.control(t, latent.lift(t, nodes)).numpy()
        return float(weights @ (u**2).sum(1)) / 2

    time, first = TimeRule(latent, NODES if case.quick else FINE_NODES), latent.noised(tilted, 0.0)
    energy, error = time.integrate(lambda t: rate(t, spacings[0]))
    error = SAFETY * error + abs(time.integrate(lambda t: rate(t, spacings[1]))[0] - energy)
    initial, other = (_mean_log_ratio(first, latent.start, spacing) for spacing in spacings)
    error_initial = abs(initial - other) + rounding(energy, condition=10.0)
    case.identity("KL(nu*||p_noise)", answers.kl_initial, initial, error_initial, scale=energy)
    case.identity("KL(Q*||Q) = KL(nu*||p_noise) + energy", answers.path_kl, initial + energy, error + error_initial)


@CLAIM.check(EXACT)
def rate_of_the_divergence(case: Case) -> None:
    """At (u*, nu*) for mixtures in any dimension: A* log dQ*_t/dQ_t = |u*|^2 / 2 at points, so KL(Q*_t || Q_t) grows by
    the mean energy; it ends as KL(p_ft || p_pre) = KL(Q* || Q), and starts as KL(nu* || p_noise).
    """
    no_running_reward(case)
    answers, latent = case.answers, mixture_of(case)
    at = [(place, place.asked(answers.control)) for place in places(case)]
    rates = [growth(place).rate(u) for place, u in at]
    sides = [(rate, (u**2).sum(1) / 2, error) for (rate, error), (_, u) in zip(rates, at)]
    residual_row(case, "A* log dQ*_t/dQ_t - |u*|^2 / 2 at points", sides)
    case.identity("KL(Q*||Q) = KL(p_ft||p_pre)", answers.path_kl, *tilted_kl(latent))
    if latent.by_rule:
        case.identity("KL(nu*||p_noise)", answers.kl_initial, *initial_kl(latent))


@CLAIM.check(MONTE_CARLO)
def optimum_by_exact_draws(case: Case) -> None:
    """At (u*, nu*) for mixtures: under Q* Y_t is a draw of the tilted data noised to its level; no time steps."""
    no_running_reward(case)
    mixture_of(case)
    bench = Workbench.of(case)
    log_ratio, energy, bias = bench.optimal_costs
    total = Estimate.mean(bench.optimal_draws.weights * (energy + log_ratio))
    title = "KL(Q*||Q) = E*[log dnu*/dp_noise + int |u*|^2 / 2]"
    case.sample(title, total, case.answers.path_kl, bias=bias)


@CLAIM.check(DISCRETE)
def joint_gaussian_of_a_short_chain(case: Case) -> None:
    """Four steps: KL of the joint Gaussian laws of (x_0, ..., x_4) by dense covariances, against the recursion."""
    bench, process = Workbench.of(case), case.problem.process
    grid, kernel = TimeGrid.explicit([process.horizon * k / 5 for k in range(5)]), process.default_kernel
    steps = AffineChain.of(process, kernel, grid).steps
    start = process.initial_law(0.0)
    for name, test in list(bench.tests.items())[: 1 if case.quick else 2]:
        controlled = _joint(steps, test.initial, test.control)
        left = moments(process, kernel, grid, test.initial, test.control).kl
        reference = _joint(steps, start, None)
        condition = float(np.linalg.cond(reference[1]))
        error = rounding(left, condition=condition, operations=len(reference[0]))
        case.identity(f"{name}: KL of the joint law of five states", left, gaussian_kl(controlled, reference), error)


@CLAIM.check(DISCRETE)
def chain_to_continuum(case: Case) -> None:
    """KL of ever finer Euler chains under random affine controls, extrapolated, against the moment equations."""
    bench, process = Workbench.of(case), case.problem.process
    bench.flow  # noqa: B018  raises NotApplicable
    counts = [8, 16, 32] if case.quick else [16, 32, 64, 128]
    for name, test in list(bench.tests.items())[: 1 if case.quick else 2]:
        grids = [TimeGrid.uniform(steps) for steps in counts]
        found = [moments(process, EulerMaruyama(), grid, test.initial, test.control) for grid in grids]
        energies = [float(m.energy.sum()) for m in found]
        value, error = extrapolated(energies)
        error = SAFETY * error + abs(value - energies[-1]) / 8 ** (len(counts) - 1)
        energy = bench.energy(name)
        case.identity(f"{name}: energy as the steps vanish", value, energy.value, error + energy.error)


@CLAIM.check(MONTE_CARLO)
def simulated_affine(case: Case) -> None:
    """Simulated KL and mean log ratio against the exact KL of the same chain; the reverse KL from reference paths."""
    bench, process = Workbench.of(case), case.problem.process
    test, kernel, grid = bench.tests["affine 1"], process.default_kernel, bench.grid()
    exact = moments(process, kernel, grid, test.initial, test.control)
    path = bench.path("test")
    case.sample("path KL", path_kl(path), exact.kl)
    log_ratio = path.log_ratio()
    case.sample("mean log ratio", Estimate.mean(log_ratio), exact.kl, scale=float(log_ratio.std()))
    reverse = PathDivergence(process, kernel, grid, (test.control, test.initial), (None, None)).reverse_kl
    case.sample("reverse KL", reverse_path_kl(bench.path("reference"), test.control, test.initial), reverse)


@CLAIM.check(MONTE_CARLO)
def bounded_control(case: Case) -> None:
    """Any chain: E exp(-log ratio) = 1, mean log ratio = KL, and the reverse KL two ways, under a bounded control."""
    bench = Workbench.of(case)
    path = bench.path("bounded")
    log_ratio = path.log_ratio()
    weight = torch.exp(-log_ratio)
    case.sample("E exp(-log dQ^u/dQ)", Estimate.mean(weight), 1.0)
    martingale = Estimate.difference(log_ratio, path.weights.energy)
    case.sample("mean log ratio - energy", martingale, 0.0, scale=float(log_ratio.std()))
    if bench.affine:
        return  # the exact reverse KL of an affine control is the sharper test
    reverse = reverse_path_kl(bench.path("reference"), bench.bounded)
    weighted = Estimate.mean(-log_ratio * weight)
    case.sample("KL(Q||Q^u), reweighted and replayed", weighted, reverse, scale=float(log_ratio.std()))


@CLAIM.check(MONTE_CARLO)
def by_torchsde(case: Case) -> None:
    """logqp of torchsde's Euler scheme against the exact energy of the Euler chain on the same grid."""
    bench, process = Workbench.of(case), case.problem.process
    if case.quick or process.dim > 4:
        raise NotApplicable("torchsde is slow: left out of quick runs and above four dimensions")
    import torchsde

    steps, n = 20, 2_000
    test, grid = bench.tests["affine 2"], TimeGrid.uniform(steps)
    exact = float(moments(process, EulerMaruyama(), grid, test.initial, test.control).energy.sum())
    times = torch.as_tensor(grid.resolve(process).times.copy())
    y = test.initial.sample(n, case.noise, "torchsde")
    size = n, process.dim + 1  # the log ratio is one more coordinate
    brownian = torchsde.BrownianInterval(0.0, process.horizon, size=size, dtype=y.dtype, entropy=case.seed)
    sde = process.to_torchsde(test.control)
    _, log_ratio = torchsde.sdeint(sde, y, times, bm=brownian, dt=process.horizon / steps, method="euler", logqp=True)
    case.sample("energy by torchsde", Estimate.mean(log_ratio.sum(0)), exact)


def _mean_log_ratio(law: GaussianSum, other: GaussianSum, spacing: float) -> float:
    """KL(law || other) by a product rule."""
    nodes, weights = rule(law, spacing)
    return float(weights @ (law.log_density(nodes) - other.log_density(nodes)))


def _full_moments(law: Law) -> tuple[Array, Array]:
    return law.mean.numpy(), law.covariance.numpy()


def _joint(steps: tuple[ChainStep, ...], initial: Law, control: Control | None) -> tuple[Array, Array]:
    """Mean and covariance of (x_0, ..., x_K) stacked, for x+ = M x + m + N (xi + sqrt(dt) (B x + b))."""
    means, rows = [initial.mean.numpy()], [[initial.covariance.numpy()]]
    for step in steps:
        matrix, offset, noise = step.matrix.numpy(), step.offset.numpy(), step.noise.numpy()
        if control is not None:
            gain, shift = (part.numpy() for part in control.affine_at(step.t))
            matrix = matrix + math.sqrt(step.dt) * noise @ gain
            offset = offset + math.sqrt(step.dt) * noise @ shift
        means.append(matrix @ means[-1] + offset)
        row = [matrix @ block for block in rows[-1]]
        rows.append([*row, row[-1] @ matrix.T + noise @ noise.T])
    blocks = [[rows[max(i, j)][min(i, j)] for j in range(len(rows))] for i in range(len(rows))]
    square = [[b if i >= j else b.T for j, b in enumerate(row)] for i, row in enumerate(blocks)]
    return np.concatenate(means), np.block(square)
