"""Eq. (3.28): the control with log and expectation swapped, exact for linear rewards on Gaussian data only."""

from __future__ import annotations

import numpy as np

from sdecontrol.claims.base import EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.workbench import Workbench, no_running_reward
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import total_reward
from sdecontrol.laws import Dirac
from sdecontrol.moments import moments

POINTS = 8

CLAIM = Claim(
    "eq-3.28",
    "Swapping log and E: amplitude grad E[r | Y_t] / temperature is u* iff r is linear and the data Gaussian",
    "Tang 2403.06279, (3.28); where it is exact, and its error: derived",
    r"""u^{lin} = \frac{\sigma}{\alpha} \nabla_y E_Q[r(Y_T) | Y_t = y]; E[r | y] \le v;
for Gaussian data and quadratic r, J^{-1} u^{lin} = (I + K P / \alpha) J^{-1} u^*: exact iff K = 0.""",
)


@CLAIM.check(EXACT)
def gaussian_data(case: Case) -> None:
    """Gaussian data: J^{-1} u_lin = (I + K P/temperature) J^{-1} u*; u_lin = u* where K = 0; the loss of the swap."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    latent.sde  # noqa: B018  raises NotApplicable
    linear = not bool(latent.rho.curvature.any())
    worst, error, apart = 0.0, 0.0, 0.0
    for t in bench.times[:-1]:
        z = latent.encode(t, latent.draw(t, POINTS, case.rng, widen=1.5))
        clean = latent.clean(t)
        swapped = bench.process.amplitude(t) * clean.mean_gradient(latent.rho, z)
        u = case.answers.control(t, latent.lift(t, z)).numpy() @ latent.frame.basis
        inverse = np.linalg.inv(clean.gains[0])
        factor = np.eye(latent.dim) + latent.rho.curvature @ clean.covariances[0]
        left, right = swapped @ inverse, u @ inverse @ factor.T
        size = float(np.abs(left).max())
        worst = max(worst, float(np.abs(left - right).max()) / size)
        error = max(error, rounding(1.0, condition=float(np.linalg.cond(clean.gains[0])), operations=1000 * latent.dim))
        apart = max(apart, float(np.abs(swapped - u).max() / np.abs(u).max()))
    note = "so u_lin = u*" if linear else f"u_lin is off by up to {apart:.2g} of u*"
    case.zero("J^-1 u_lin - (I + KP/temperature) J^-1 u*, relative", worst, error, note=note)
    if linear:
        case.zero("u_lin - u*, relative", apart, error)


@CLAIM.check(EXACT)
def loss_of_the_swap(case: Case) -> None:
    """log C - J(u_lin, nu*)/temperature = E int |u_lin - u*|^2 / 2, by the moment equations."""
    no_running_reward(case)
    bench, log_c = Workbench.of(case), float(case.answers.log_normalizer)
    if "swapped" not in bench.flow.members:
        raise NotApplicable("solved for exact scores, and not in quick runs")
    found, apart = bench.objective("swapped"), bench.apart("swapped")
    case.identity(
        "log C - J(u_lin)/temperature",
        log_c - found.value,
        apart.value,
        found.error + apart.error,
        scale=max(1.0, log_c),
    )


@CLAIM.check(EXACT)
def jensen(case: Case) -> None:
    """E[r | y] <= v(t, y), the former by the second route's posterior."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    for t in bench.times[:-1]:
        x = latent.draw(t, 64, case.rng, widen=1.5)
        mean = latent.clean(t).mean(latent.rho, latent.encode(t, x))
        value = case.answers.value(t, x).numpy() / bench.temperature
        k = int(np.argmax(mean - value))
        case.bound(
            f"t = {t:.3g}: E[r|y] <= v, over the temperature, worst of 64",
            mean[k],
            value[k],
            rounding(mean[k], value[k]),
        )


@CLAIM.check(EXACT)
def mixtures(case: Case) -> None:
    """Mixtures: u_lin - u* does not vanish, not even for a linear reward; its size is stated."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if len(latent.known_data.clouds) == 1:
        raise NotApplicable("for mixtures")
    gaps, size = [], 0.0
    tilted = latent.known_data.tilt(latent.rho).law
    for t in bench.times[1:-1]:
        z = latent.noised(tilted, t).draw(256, case.rng)
        swapped = bench.process.amplitude(t) * latent.clean(t).mean_gradient(latent.rho, z)
        u = case.answers.control(t, latent.lift(t, z)).numpy() @ latent.frame.basis
        gaps.append(float(np.sqrt(((swapped - u) ** 2).sum(1).mean())))
        size = max(size, float(np.sqrt((u**2).sum(1).mean())))
    note = f"rms of u_lin - u* under Q*: {max(gaps) / size:.2g} of the rms of u*"
    case.bound("0 < rms of u_lin - u*, relative", 1e-6, max(gaps) / size, note=note)


@CLAIM.check(MONTE_CARLO)
def conditional_mean(case: Case) -> None:
    """E[r(Y_T) | Y_t = y] by paths of the reference from y, against the chain's exact mean; and below v."""
    no_running_reward(case)
    bench, latent, process = Workbench.of(case), Workbench.of(case).latent, case.problem.process
    bench.check_chain()
    t = 0.5 * bench.horizon
    x = latent.draw(t, 1, case.rng)
    rewards = []
    for fine in (False, True):
        path = bench.path_from(t, x, None, fine)
        rewards.append(total_reward(case.problem, path) / bench.temperature)
        if bench.affine:
            break
    value = float(case.answers.value(t, x)) / bench.temperature
    if bench.affine:
        kernel, grid = process.default_kernel, bench.clock(bench.steps, t)
        value = float(case.problem.discretise(kernel, grid).exact.value(t, x)) / bench.temperature
        exact = moments(process, kernel, grid, Dirac(x[0]))
        truth, bias = bench.whole_reward_mean(exact.means[-1].numpy(), exact.covariances[-1].numpy()), 0.0
        estimate = bench.mean(rewards[0])
    else:
        truth = float(latent.clean(t).mean(latent.rho, latent.encode(t, x))[0])
        estimate, bias = bench.extrapolate(*rewards)
    case.sample(f"t = {t:.3g}: E[r|y] / temperature", estimate, truth, bias=bias, scale=float(rewards[0].std()))
    gap = Estimate(estimate.value - bias, estimate.stderr, estimate.n)
    case.sample_bound(f"t = {t:.3g}: E[r|y] <= v, over the temperature", gap, value)
