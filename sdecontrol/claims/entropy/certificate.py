"""Prop. 3.6 by simulation: the pathwise certificate r/temperature - log ratio - log C, and the law of Y_T."""

from __future__ import annotations

import math

import numpy as np
import torch

from sdecontrol.claims.base import MONTE_CARLO, Case, NotApplicable
from sdecontrol.claims.entropy.path_law import CLAIM
from sdecontrol.claims.routes.simulations import LEVELS
from sdecontrol.claims.routes.static import draws_exactly
from sdecontrol.claims.routes.workbench import Workbench, no_running_reward
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import total_reward
from sdecontrol.moments import Moments, moments
from sdecontrol.noise import Noise

NOISES = 4096  # normals of a step, all in one path
STEPS, LAGS = 24, 40


@CLAIM.check(MONTE_CARLO)
def simulated_chain(case: Case) -> None:
    """Affine problems: simulated moments of Y_T and the mean certificate, against the exact ones of the same chain."""
    no_running_reward(case)
    bench = Workbench.of(case)
    exact = _chain(bench, level=1)
    path = bench.path("optimum")
    direction = _direction(bench, exact.means[-1])
    along = path.terminal.double() @ direction
    mean, variance = float(direction @ exact.means[-1]), float(direction @ exact.covariances[-1] @ direction)
    case.sample("mean of Y_T along grad r", bench.mean(along - mean), 0.0, scale=math.sqrt(variance))
    case.sample("variance of Y_T along grad r", bench.mean((along - mean) ** 2), variance)
    truth = _chain_residual(bench, exact)
    residual = bench.mean(_residual(bench, level=1))
    title = "certificate: mean of r/temperature - log ratio - log C"
    case.sample(title, residual, truth, scale=max(1.0, exact.kl), note="scale: the path KL, at least one nat")


@CLAIM.check(MONTE_CARLO)
def noise_of_the_steps(case: Case) -> None:
    """The noise of a step has nothing to do with that of the steps after it: the mean of their products is zero."""
    no_running_reward(case)
    steps = Noise(case.seed).steps(0, (NOISES,), np.arange(2.0))
    normals = torch.stack([next(steps).flatten() for _ in range(STEPS + LAGS)])
    later = normals.unfold(0, LAGS, 1)[1:].sum(2) / math.sqrt(LAGS)
    products = Estimate.mean((normals[: len(later)] * later).double().flatten())
    case.sample(f"mean product of a step's noise with that of the next {LAGS}", products, 0.0, scale=1.0)


@CLAIM.check(MONTE_CARLO)
def pathwise_certificate(case: Case) -> None:
    """(3.20): R = r/temperature - log ratio - log C vanishes on every path, as do its mean and its square.

    Nested grids with the same noise, extrapolated to vanishing steps.
    """
    no_running_reward(case)
    bench = Workbench.of(case)
    bench.check_grids()
    finest = bench.path("optimum", LEVELS[-1])
    reward = total_reward(case.problem, finest) / bench.temperature
    start = bench.start_weights(finest)
    size = math.sqrt(float((start * (reward - case.answers.log_normalizer).square()).mean()))
    weights = {level: bench.start_weights(bench.path("optimum", level)) for level in LEVELS}
    mean, bias = bench.extrapolated(lambda level: weights[level] * _residual(bench, level), size)
    if bench.affine:  # the same extrapolation of the exact chains: no allowance is needed
        coarse, fine = (_chain_residual(bench, _chain(bench, level)) for level in LEVELS[1:])
        truth = 2 * fine - coarse
        case.sample("mean of R, extrapolated from two chains", mean, truth, scale=size)
    else:
        case.sample("mean of R as the steps vanish", mean, 0.0, bias=bias, scale=size)
    squares = {level: weights[level] * _residual(bench, level).square() for level in LEVELS}
    floor, bias = bench.extrapolated(squares.__getitem__, size**2)
    rms = ", ".join(f"{math.sqrt(float(s.mean())):.3g}" for s in squares.values())
    note = f"right: the steps' own error; rms {rms} as the steps are halved, {size:.3g} without control"
    case.sample_bound("mean square of R as the steps vanish: no floor", floor, bias, note=note)


@CLAIM.check(MONTE_CARLO)
def terminal_reward(case: Case) -> None:
    """Other problems: mean reward of Y_T from (nu*, u*) as the steps vanish, against p_ft by the second route."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if bench.affine:
        raise NotApplicable("affine problems are compared with their exact chain")
    bench.check_grids()
    reference = latent.reference(bench.horizon)
    truth = reference.tilt(latent.rho).mean_q

    def rewards(level: int) -> torch.Tensor:
        path = bench.path("optimum", level)
        return bench.start_weights(path) * total_reward(case.problem, path) / bench.temperature

    size = max(float(rewards(1).std()), abs(truth - reference.mean_of(latent.rho)))
    estimate, bias = bench.extrapolated(rewards, size)
    case.sample("E r(Y_T) / temperature as the steps vanish", estimate, truth, bias=bias, scale=size)


@CLAIM.check(MONTE_CARLO)
def draws_of_the_tilt(case: Case) -> None:
    """Draws of p_ft itself: their mean reward against the second route's."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if not draws_exactly(case.answers.terminal):
        raise NotApplicable("p_ft is drawn by importance resampling here")
    truth = latent.reference(bench.horizon).tilt(latent.rho).mean_q
    x = case.answers.terminal.sample(case.paths, case.noise, "terminal")
    reward = case.problem.reward(x).double() / bench.temperature
    case.sample("E r / temperature over draws of p_ft", Estimate.mean(reward), truth, scale=float(reward.std()))


def _chain(bench: Workbench, level: int) -> Moments:
    """The exact moments of the affine chain under the optimum."""
    control, initial = bench.pair("optimum")
    return moments(bench.process, bench.process.default_kernel, bench.grid(level), initial, control)


def _chain_residual(bench: Workbench, exact: Moments) -> float:
    """E[r/temperature - log ratio] - log C of an affine chain, exactly."""
    reward = bench.whole_reward_mean(exact.means[-1].numpy(), exact.covariances[-1].numpy())
    return reward - exact.kl - float(bench.answers.log_normalizer)


def _direction(bench: Workbench, centre: torch.Tensor) -> torch.Tensor:
    """grad r at a point, of unit length (the first axis where it vanishes)."""
    rho = bench.whole_reward
    pull = torch.as_tensor(rho.linear - rho.curvature @ centre.numpy())
    size = float(pull.norm())
    return pull / size if size > 0 else torch.eye(len(pull), dtype=torch.float64)[0]


def _residual(bench: Workbench, level: int) -> torch.Tensor:
    """R of each path under (u*, nu*)."""
    path = bench.path("optimum", level)
    log_ratio = path.log_ratio() + bench.log_start(path)
    return total_reward(bench.problem, path) / bench.temperature - log_ratio - bench.answers.log_normalizer
