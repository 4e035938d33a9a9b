"""Prop. 3.5: the value solves the Hamilton-Jacobi-Bellman equation, and its gradient is the best feedback."""

from __future__ import annotations

import torch
from torch import Tensor

from sdecontrol.claims.base import (
    DETECTION,
    DISCRETE,
    EPS,
    EXACT,
    MONTE_CARLO,
    RESOLUTION,
    Case,
    Claim,
    NotApplicable,
    rounding,
)
from sdecontrol.claims.routes.differences import ROUNDINGS, Slopes
from sdecontrol.claims.routes.local import order_row, rms, steps_at
from sdecontrol.claims.routes.ode import check_smooth
from sdecontrol.claims.routes.pairs import THETA
from sdecontrol.claims.routes.simulations import LEVELS, LOW
from sdecontrol.claims.routes.workbench import Workbench, compare_with_riccati
from sdecontrol.controls import require_control
from sdecontrol.evaluate import evaluate
from sdecontrol.moments import moments

POINTS = 6

CLAIM = Claim(
    "prop-3.5",
    "The value solves the HJB equation and u* = amplitude grad v / temperature is the best control",
    "Tang 2403.06279, Prop. 3.5, (3.17)-(3.19); gap identity: derived",
    r"""\partial_t v + b \cdot \nabla v + \frac{\sigma^2}{2} \Delta v + \frac{\sigma^2}{2 \alpha} |\nabla v|^2 = 0,
v(T, \cdot) = r, and u^* = \frac{\sigma}{\alpha} \nabla v attains
v(t, y) = \sup_u E[r(Y_T) - \frac{\alpha}{2} \int_t^T |u|^2 | Y_t = y]; a running reward adds itself to both.""",
)


def _terms(v: Slopes, sigma: float, alpha: float, drift: Tensor) -> Tensor:
    """The four terms of (3.18): (4, n)."""
    along, square = (drift * v.gradient).sum(1), v.gradient.square().sum(1)
    return torch.stack([v.in_time, along, sigma**2 / 2 * v.laplacian, sigma**2 / (2 * alpha) * square])


@CLAIM.check(EXACT)
def hamilton_jacobi_bellman(case: Case) -> None:
    """The residual of (3.18), relative to its largest term, and u* against the differences of v, at four times.

    The error is what twice the step changes (16 times that of the step itself), plus the rounding of the differences.
    """
    check_smooth(case.problem.process)
    bench, process, alpha, rng = Workbench.of(case), case.problem.process, case.problem.temperature, case.rng
    residual, error, slope, slope_error = 0.0, 0.0, 0.0, 0.0
    for fraction in (0.1, 0.4, 0.7, 0.9)[:: 2 if case.quick else 1]:
        t = fraction * process.horizon
        x = bench.points(t, POINTS // 2 if case.quick else POINTS, rng)
        dt, dx = 1e-3 * (process.horizon - t), 1e-2 * bench.narrowest(t)
        sigma, drift = process.amplitude(t), process.state(t, x).drift
        found = [Slopes.of(case.answers.value, t, x, factor * dt, factor * dx) for factor in (1, 2)]
        fine, coarse = (_terms(v, sigma, alpha, drift) for v in found)
        size = float(fine.abs().max()) or 1.0
        unit = ROUNDINGS * EPS * float(case.answers.value(t, x).abs().max())
        noise = unit * (1 / dt + sigma**2 * x.shape[1] / dx**2 + float(drift.abs().sum(1).max()) / dx)
        running = 0.0 if case.problem.running_reward is None else case.problem.running_rate(t, x).double()
        residual = max(residual, float((fine.sum(0) + running).abs().max()) / size)
        error = max(error, (float((fine - coarse).sum(0).abs().max()) + noise) / size)
        u, pulls = case.answers.control(t, x), [sigma / alpha * v.gradient for v in found]
        scale = max(float(u.abs().max()), float(pulls[0].abs().max())) or 1.0
        slope = max(slope, float((u - pulls[0]).abs().max()) / scale)
        changed = float((pulls[0] - pulls[1]).abs().max())
        slope_error = max(slope_error, (changed + unit * sigma / alpha / dx) / scale)
    case.zero("residual of (3.18) over its largest term", residual, error)
    case.zero("u* - amplitude grad v / temperature, relative", slope, slope_error)


@CLAIM.check(EXACT)
def terminal_condition(case: Case) -> None:
    """v(T, .) = r."""
    horizon = case.problem.process.horizon
    x = Workbench.of(case).points(horizon, 32, case.rng)
    reward = case.problem.reward(x).double()
    size = float(reward.abs().max())
    worst = float((case.answers.value(horizon, x) - reward).abs().max())
    case.zero("v(T, .) - r", worst, rounding(size), scale=size)


@CLAIM.check(EXACT)
def riccati_with_a_running_reward(case: Case) -> None:
    """v against the Riccati equations, where a running reward makes it another function than (3.24)."""
    if case.problem.running_reward is None:
        raise NotApplicable("without a running reward this is a check of (3.24)")
    compare_with_riccati(case, POINTS)


@CLAIM.check(EXACT)
def no_other_control(case: Case) -> None:
    """log C - J/temperature = KL(nu||nu*) + E int |u - u*|^2 / 2 >= 0 for other (u, nu), by the moment equations."""
    bench, log_c = Workbench.of(case), float(case.answers.log_normalizer)
    best = bench.objective("optimum")
    case.identity("J(u*, nu*) / temperature = log C", best.value, log_c, best.error)
    titles = {"weak": f"{THETA} u*", "turned": "u* turned", "untilted": "u* from p_noise"}
    titles |= {name: f"{name} control" for name in bench.tests}
    for name, title in titles.items():
        if name not in bench.flow.members:  # a quick run has fewer
            continue
        found, apart = bench.objective(name), bench.apart(name)
        start = bench.start_kl(name)
        error = found.error + apart.error
        case.identity(f"{title}: log C - J/temperature", log_c - found.value, start + apart.value, error)
        case.bound(f"{title}: J <= temperature log C, over it", found.value, log_c, found.error)


@CLAIM.check(DISCRETE)
def best_step(case: Case) -> None:
    """(3.17) over one step under u*: E v(t', x') - temperature dt |u*|^2 / 2 is v(t, x) up to dt^2."""
    bench = Workbench.of(case)
    steps = steps_at(bench, bench.middle)
    energy = steps.control.square().sum(1).numpy() / 2
    controlled = steps.of(bench.process.default_kernel, steps.control)
    gains = [(step, step.mean(step.values(bench)) - steps.value) for step in controlled]
    errors = [rms(gain + step.dt * (steps.running - energy)) for step, gain in gains]
    order_row(case, "(E v' - v)/temperature - dt |u*|^2 / 2 over a step under u*", errors, 2, steps.size)


@CLAIM.check(DISCRETE)
def no_other_chain(case: Case) -> None:
    """On the chain: its best mean shift reaches its objective, and u*, weakened, and affine controls stay below."""
    bench, process, alpha = Workbench.of(case), case.problem.process, case.problem.temperature
    grid, kernel = bench.grid(), process.default_kernel
    exact = case.problem.discretise(kernel, grid).exact
    exact.control  # noqa: B018  raises NoClosedForm
    test = bench.tests["affine 1"]
    pairs = {
        "best mean shift": (exact.control, exact.initial),
        "u*": (case.answers.control, case.answers.initial),
        f"{THETA} u*": (THETA * require_control(case.answers.control), case.answers.initial),
        "affine": (test.control, test.initial),
    }
    for name, (control, initial) in pairs.items():
        found = moments(process, kernel, grid, initial, control)
        reward = bench.chain_reward(found)
        objective = reward - found.kl
        error = rounding(reward, found.kl, exact.objective / alpha, condition=10.0, operations=100 * process.dim)
        if name == "best mean shift":
            case.identity(f"{name}: J of the chain / temperature", objective, exact.objective / alpha, error)
        else:
            case.bound(
                f"{name}: J of the chain <= that of the best mean shift", objective, exact.objective / alpha, error
            )


@CLAIM.check(MONTE_CARLO)
def simulated_objective(case: Case) -> None:
    """The simulated objective of u* against the exact one of the same chain; the reversed control loses."""
    bench = Workbench.of(case)
    exact = moments(
        case.problem.process, case.problem.process.default_kernel, bench.grid(), *reversed(bench.pair("optimum"))
    )
    truth = bench.chain_reward(exact) - float(exact.energy.sum())
    profit, note = bench.profit("optimum"), "scale: the path KL, at least one nat"
    case.sample("E[r/temperature - energy] under u*", bench.mean(profit), truth, scale=max(1.0, exact.kl), note=note)


@CLAIM.check(MONTE_CARLO)
def evaluated_gap(case: Case) -> None:
    """What `evaluate` says of (u*, nu*) on the chain, against the exact moments and the exact optimum of that chain."""
    bench, process, alpha = Workbench.of(case), case.problem.process, case.problem.temperature
    if not bench.affine or (case.quick and process.dim > LOW):
        raise NotApplicable("for affine problems, in a quick run those of few dimensions")
    control, initial = bench.pair("optimum")
    grid, kernel = bench.grid(), process.default_kernel
    found = moments(process, kernel, grid, initial, control)
    earned, chain = bench.chain_reward(found), case.problem.discretise(kernel, grid).exact
    seen = evaluate(case.problem, control, initial, grid=grid, kernel=kernel, n=bench.paths, noise=case.noise)
    case.sample("E of the rewards", seen.reward, alpha * earned, scale=alpha * max(1.0, found.kl))
    gap = chain.optimum - alpha * (earned - found.kl)
    case.sample("temperature KL(Q^u||Q*), the gap", seen.gap, gap, scale=alpha * max(1.0, found.kl))


@CLAIM.check(MONTE_CARLO)
def weaker_control(case: Case) -> None:
    """Where no exact chain is known: J(u*) - J(theta u*) = (1 - theta)^2 / theta^2 times the energy of theta u*.

    Paired paths on nested grids, extrapolated to vanishing steps; the sign, and the size where it is resolved.
    """
    bench = Workbench.of(case)
    if bench.affine:
        raise NotApplicable("affine problems are settled by the exact chain")
    bench.check_grids()

    def gap(level: int) -> Tensor:
        return bench.profit("optimum", level) - bench.profit("weak", level)

    def expected(level: int) -> Tensor:
        path = bench.path("weak", level)
        return bench.start_weights(path) * ((1 - THETA) / THETA) ** 2 * path.weights.energy

    scale = float(bench.path("optimum", LEVELS[-1]).weights.energy.mean())
    title = f"J(u*) - J({THETA} u*), over the temperature"
    lost, bias = bench.extrapolated(lambda level: -gap(level), scale)
    note = f"the right side for the steps; expected {float(expected(1).mean()):.2g}"
    case.sample_bound(f"0 <= {title}", lost, bias, note=note)
    excess, bias = bench.extrapolated(lambda level: gap(level) - expected(level), scale)
    if DETECTION * excess.stderr + bias <= RESOLUTION * scale:
        title = f"{title}, less E int |u* - u|^2 / 2"
        case.sample(title, excess, 0.0, bias=bias, scale=scale, note="scale: the energy of u*")


@CLAIM.check(MONTE_CARLO)
def reversed_control(case: Case) -> None:
    """Paired paths: the control of the wrong sign loses against u*."""
    bench = Workbench.of(case)
    gap = bench.mean(bench.profit("reversed") - bench.profit("optimum"))
    case.sample_bound("J(-u*) - J(u*) <= 0, over the temperature", gap, 0.0)
