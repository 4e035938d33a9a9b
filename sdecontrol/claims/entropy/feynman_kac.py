"""Eqs. (3.24) and (3.27): the value is a log expectation under the reference, the best control its gradient."""

from __future__ import annotations

import math

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.routes.local import order_row, rms, steps_at
from sdecontrol.claims.routes.posterior import score
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.simulations import LEVELS
from sdecontrol.claims.routes.workbench import WIDEST, Workbench, compare_with_riccati, mild, no_running_reward
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import total_reward

POINTS = 8
STENCIL = (-4, -2, -1, 1, 2, 4)  # of a first derivative, and of that with twice the step
LINEAR = (-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12)  # fourth-order first derivative

VALUE = Claim(
    "eq-3.24",
    "The value is a log expectation under the reference: e^{v/temperature} = E[e^{r(Y_T)/temperature} | Y_t]",
    "Tang 2403.06279, (3.24)",
    r"e^{v(t,y)/\alpha} = E_Q[e^{r(Y_T)/\alpha} | Y_t = y]; for an exact score Y_T | Y_t is clean given noisy.",
)

CONTROL = Claim(
    "eq-3.27",
    "The best control is the gradient of that log expectation",
    "Tang 2403.06279, (3.27); the difference of scores: derived",
    r"""u^*(t,y) = \sigma(t) \nabla_y \log E_Q[e^{r(Y_T)/\alpha} | Y_t = y]
= \sigma(t) [\nabla \log p^r_s - \nabla \log p_s](y).""",
)


@VALUE.check(EXACT)
def value_by_quadrature(case: Case) -> None:
    """v against the trapezoidal rule over the posterior of Y_T given Y_t."""
    no_running_reward(case)
    bench, latent, rng = Workbench.of(case), Workbench.of(case).latent, case.rng
    for t in bench.times[:-1]:
        x = latent.draw(t, POINTS, rng, widen=1.5)
        clean = latent.clean(t)
        growth = clean.log_growth(latent.rho, latent.encode(t, x))
        value = case.answers.value(t, x).numpy() / bench.temperature
        size = max(1.0, float(np.abs(value).max()), float(np.abs(clean.mean(latent.rho, latent.encode(t, x))).max()))
        error = rounding(size, condition=bench.condition, operations=100 * latent.dim)
        case.zero(
            f"t = {t:.3g}: v/temperature - log E e^r/temperature",
            float(np.abs(value - growth).max()),
            error,
            scale=size,
        )


@VALUE.check(EXACT)
def value_by_riccati(case: Case) -> None:
    """v against the Riccati equations of affine dynamics."""
    no_running_reward(case)
    compare_with_riccati(case, POINTS)


@VALUE.check(DISCRETE)
def value_over_a_step(case: Case) -> None:
    """log E[e^{v(t', x')/temperature}] over one step of the chain is v(t, x)/temperature, up to dt^2."""
    no_running_reward(case)
    bench = Workbench.of(case)
    steps = steps_at(bench, bench.middle)
    errors = [rms(np.log1p(step.mean(np.expm1(change)))) for step, change in steps.free]
    order_row(case, "log E e^(v' - v)/temperature over a step", errors, 2, steps.size)


@VALUE.check(MONTE_CARLO)
def value_of_the_chain(case: Case) -> None:
    """Affine problems: E[e^{r/temperature} dQ/dQ^u | Y_t = y] by paths from y under u*, against the chain's value.

    Any u gives this mean; near the optimum it has hardly any variance.
    """
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if not bench.affine:
        raise NotApplicable("the chain's value is known for affine problems")
    for t in (bench.middle,) if case.quick else (0.0, bench.middle):
        x = latent.draw(t, 1, case.rng)
        chain = case.problem.discretise(case.problem.process.default_kernel, bench.grid(1, t)).exact
        weight = mild(torch.exp(_log_weights(bench, t, x, 1) - float(chain.value(t, x)) / bench.temperature))
        case.sample(f"t = {t:.3g}: E e^(r/temperature) over e^(v of the chain/temperature)", Estimate.mean(weight), 1.0)


@VALUE.check(MONTE_CARLO)
def value_by_paths(case: Case) -> None:
    """Other problems: the same mean against v, as the steps vanish."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if bench.affine:
        raise NotApplicable("affine problems are compared with their exact chain")
    bench.check_chain()
    for t in (bench.middle,) if case.quick else (0.0, bench.middle):
        x = latent.draw(t, 1, case.rng)
        log_value = float(case.answers.value(t, x)) / bench.temperature
        weights = {level: torch.exp(_log_weights(bench, t, x, level) - log_value) for level in LEVELS}
        mild(weights[LEVELS[-1]])
        weight, bias = bench.extrapolated(weights.__getitem__)
        case.sample(f"t = {t:.3g}: E e^((r - v)/temperature) as the steps vanish", weight, 1.0, bias=bias)


@VALUE.check(MONTE_CARLO)
def value_by_posterior_draws(case: Case) -> None:
    """E e^{(r(Y_T) - v)/temperature} over draws of Y_T given Y_t = y by the second route: no time steps."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    t, z, draws = _posterior_draws(case)
    weight = np.exp(latent.rho(draws) - float(case.answers.value(t, latent.lift(t, z))) / bench.temperature)
    case.sample(f"t = {t:.3g}: E e^((r(Y_T) - v)/temperature)", Estimate.mean(weight), 1.0)


@CONTROL.check(EXACT)
def control_by_differences(case: Case) -> None:
    """u* along random directions against differences of the log expectation by quadrature."""
    no_running_reward(case)
    bench, latent, rng = Workbench.of(case), Workbench.of(case).latent, case.rng
    worst, error = 0.0, 0.0
    for t in bench.times[:-1]:
        z = latent.encode(t, latent.draw(t, 4, rng, widen=1.5))
        sigma, clean = bench.process.amplitude(t), latent.clean(t)
        u = case.answers.control(t, latent.lift(t, z)).numpy() @ latent.frame.basis
        scale = max(1e-300, float(np.abs(u).max()))
        direction = rng.normal(size=latent.dim)
        direction /= np.linalg.norm(direction)
        step = 1e-2 * bench.narrowest(t)
        moved = np.concatenate([z + k * step * direction for k in STENCIL])
        growth = dict(zip(STENCIL, clean.log_growth(latent.rho, moved).reshape(len(STENCIL), -1)))
        fine, coarse = (sigma / (c * step) * sum(w * growth[c * k] for k, w in LINEAR) for c in (1, 2))
        size = max(1.0, *(float(np.abs(g).max()) for g in (clean.mean(latent.rho, z), growth[1])))
        noise = rounding(size, operations=100 * latent.dim) * sigma / step
        worst = max(worst, float(np.abs(u @ direction - fine).max()) / scale)
        error = max(error, (float(np.abs(fine - coarse).max()) + noise) / scale)
    case.zero("u* - amplitude times difference of log E, relative", worst, error)


@CONTROL.check(EXACT)
def control_by_scores(case: Case) -> None:
    """u* = amplitude (score of the noised tilt of the data - score of the noised data), scores by the second route."""
    no_running_reward(case)
    bench, latent, rng = Workbench.of(case), Workbench.of(case).latent, case.rng
    tilted = latent.known_data.tilt(latent.rho).law
    for t in bench.times[:-1]:
        z = latent.encode(t, latent.draw(t, POINTS, rng, widen=1.5))
        before, after = (score(latent.noised(law, t), z) for law in (latent.known_data, tilted))
        sigma = bench.process.amplitude(t)
        u = case.answers.control(t, latent.lift(t, z)).numpy() @ latent.frame.basis
        size = sigma * max(float(np.abs(before).max()), float(np.abs(after).max()))
        depth = max(1.0, float(np.abs(latent.noised(tilted, t).log_density(z)).max()))  # of the shares of components
        error = rounding(size * depth, condition=bench.condition, operations=100 * latent.dim)
        gap = float(np.abs(u - sigma * (after - before)).max())
        case.zero(f"t = {t:.3g}: u* - difference of scores", gap, error, scale=max(float(np.abs(u).max()), 1e-300))


@CONTROL.check(EXACT)
def control_in_the_span(case: Case) -> None:
    """On a subspace: u* has no component off the span, and does not see that of the state."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if latent.codimension == 0:
        raise NotApplicable("the data fill the space")
    t = bench.horizon / 2
    x = latent.draw(t, POINTS, case.rng)
    u, basis = case.answers.control(t, x).numpy(), latent.frame.basis
    size = float(np.abs(u).max())
    error = rounding(size, operations=100 * bench.process.dim)
    case.zero("component of u* off the span", float(np.abs(u - u @ basis @ basis.T).max()), error, scale=size)
    projected = case.answers.control(t, latent.lift(t, latent.encode(t, x))).numpy()
    error = rounding(size, float(x.abs().max()), operations=100 * bench.process.dim)
    case.zero("change of u* when the state is projected", float(np.abs(u - projected).max()), error, scale=size)


@CONTROL.check(DISCRETE)
def tilted_noise_of_a_step(case: Case) -> None:
    """u* is the mean of a step's noise under the weights e^{v(t', x')/temperature}, over sqrt(dt), up to dt."""
    no_running_reward(case)
    bench = Workbench.of(case)
    steps = steps_at(bench, bench.middle)
    u = steps.control.numpy() @ steps.basis
    errors = []
    for step, change in steps.free:
        weights = np.exp(change)
        noise = step.mean(weights[..., None] * step.nodes) / step.mean(weights)[:, None]
        errors.append(rms(noise / np.sqrt(step.dt) - u) / rms(u))
    order_row(case, "E[z e^(v'/temperature)]/E[e^(v'/temperature)] - sqrt(dt) u*, over sqrt(dt)", errors, 1, 1.0)


@CONTROL.check(MONTE_CARLO)
def control_by_posterior_draws(case: Case) -> None:
    """Tweedie: grad log E[e^rho | y] = (a/h) (E[e^rho X]/E[e^rho] - E X), over draws of X = Y_T given Y_t = y."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    t, z, draws = _posterior_draws(case)
    x = latent.lift(t, z)
    a, h = latent.level(t)
    u = case.answers.control(t, x).numpy() @ latent.frame.basis
    direction = u[0] / max(float(np.linalg.norm(u[0])), 1e-300)
    weight = np.exp(latent.rho(draws) - float(case.answers.value(t, x)) / bench.temperature)
    centred = (draws - draws.mean(0)) @ direction
    samples = bench.process.amplitude(t) * a / h * (weight - 1) * centred  # the 1 takes away variance, not mean
    case.sample(f"t = {t:.3g}: |u*| from weighted draws", Estimate.mean(samples), float(np.linalg.norm(u[0])))


def _posterior_draws(case: Case) -> tuple[float, Array, Array]:
    """A mild point, and draws of Y_T given it."""
    bench, rng = Workbench.of(case), case.rng
    t, z = mild_point(case)
    return t, z, bench.latent.clean(t).draw(z, bench.draws, rng)


def mild_point(case: Case) -> tuple[float, Array]:
    """A time and one latent point (1, d) there, where e^{2 r/temperature} has a mean given Y_t.

    The earliest of a few times at which the weights spread mildly enough: the posterior narrows towards the data.
    """
    bench, latent, rng = Workbench.of(case), Workbench.of(case).latent, case.rng
    spread = math.inf
    for t in (bench.middle, *(bench.narrowed(factor) for factor in (6, 12, 24))):
        clean = latent.clean(t)
        z = latent.encode(t, latent.draw(t, 1, rng))
        square = clean.log_growth(latent.rho.times(2.0), z) - 2 * clean.log_growth(latent.rho, z)  # or NotApplicable
        spread = float(np.exp(square[0]))
        if spread <= WIDEST:
            return t, z
    raise NotApplicable(f"e^(r/temperature) spreads too widely for a plain mean: E w^2 = {spread:.3g}")


def _log_weights(bench: Workbench, t: float, x: torch.Tensor, level: int) -> torch.Tensor:
    """r/temperature - log dQ^u/dQ of paths from x (1, D) at t under u*."""
    path = bench.path_from(t, x, bench.answers.control, level)
    return total_reward(bench.problem, path) / bench.temperature - path.weights.martingale - path.weights.energy
