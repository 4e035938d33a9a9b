"""Eq. (3.28): the control with log and expectation swapped, exact for linear rewards on Gaussian data only."""

from __future__ import annotations

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.routes.local import Step, order_row, rms, steps_at
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.workbench import Workbench, no_running_reward
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import total_reward
from sdecontrol.laws import Dirac
from sdecontrol.moments import moments
from sdecontrol.processes import ReverseProcess

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
    """E[r | y] <= v(t, y), the former by the second route's posterior; how far u_lin is from u*."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    for t in bench.times[:-1]:
        x = latent.draw(t, 64, case.rng, widen=1.5)
        z, clean = latent.encode(t, x), latent.clean(t)
        mean, value = clean.mean(latent.rho, z), case.answers.value(t, x).numpy() / bench.temperature
        swapped = bench.process.amplitude(t) * clean.mean_gradient(latent.rho, z)
        u = case.answers.control(t, x).numpy() @ latent.frame.basis
        note = f"rms of u_lin - u*: {rms(swapped - u) / max(rms(u), 1e-300):.2g} of that of u*"
        k = int(np.argmax(mean - value))
        error = rounding(mean[k], value[k])
        case.bound(f"t = {t:.3g}: E[r|y] <= v, over the temperature, worst of 64", mean[k], value[k], error, note=note)


@CLAIM.check(DISCRETE)
def gap_of_a_step(case: Case) -> None:
    """What the swap loses in a step, log E e^{v'/temperature} - E v'/temperature, is dt |u*|^2 / 2 up to dt^2.

    Derived. In sum, under the reference, E[r | y] stays below v by temperature E int |u*|^2 / 2; E[r | y] has no gap.
    """
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    steps = steps_at(bench, bench.middle)
    energy = steps.control.square().sum(1).numpy() / 2
    losses = [np.log1p(step.mean(np.expm1(change))) - step.mean(change) for step, change in steps.free]
    errors = [rms(loss - step.dt * energy) for loss, (step, _) in zip(losses, steps.free)]
    order_row(case, "log E e^(v'/temperature) - E v'/temperature - dt |u*|^2 / 2 over a step", errors, 2, steps.size)
    if latent.data is None:
        return
    now = latent.clean(steps.t).mean(latent.rho, latent.encode(steps.t, steps.x))
    errors = [rms(step.mean(_mean_reward(bench, step)) - now) for step, _ in steps.free]
    order_row(case, "change of E[r|y]/temperature over a step", errors, 2, max(1.0, float(np.abs(now).max())))


@CLAIM.check(MONTE_CARLO)
def mean_of_the_chain(case: Case) -> None:
    """Affine problems: E[r(Y_T) | Y_t = y] by paths of the reference from y, against the chain's; below its v."""
    no_running_reward(case)
    bench, process = Workbench.of(case), case.problem.process
    if not bench.affine:
        raise NotApplicable("the chain's value is known for affine problems")
    t, kernel = bench.middle, process.default_kernel
    grid, x = bench.grid(1, t), bench.latent.draw(t, 1, case.rng)
    reward = total_reward(case.problem, bench.path_from(t, x, None)) / bench.temperature
    exact = moments(process, kernel, grid, Dirac(x[0]))
    truth = bench.whole_reward_mean(exact.means[-1].numpy(), exact.covariances[-1].numpy())
    found = bench.mean(reward)
    case.sample(f"t = {t:.3g}: E[r|y] / temperature", found, truth, scale=float(reward.std()))
    value = float(case.problem.discretise(kernel, grid).exact.value(t, x)) / bench.temperature
    case.sample_bound(f"t = {t:.3g}: E[r|y] <= v of the chain, over the temperature", found, value)


@CLAIM.check(MONTE_CARLO)
def mean_by_paths(case: Case) -> None:
    """Other problems: the same mean as the steps vanish, against the second route's posterior; below v."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if bench.affine:
        raise NotApplicable("affine problems are compared with their exact chain")
    bench.check_chain()
    t = bench.middle
    x = latent.draw(t, 1, case.rng)

    def reward(level: int) -> torch.Tensor:
        return total_reward(case.problem, bench.path_from(t, x, None, level)) / bench.temperature

    truth, size = float(latent.clean(t).mean(latent.rho, latent.encode(t, x))[0]), float(reward(1).std())
    found, bias = bench.extrapolated(reward, size)
    case.sample(f"t = {t:.3g}: E[r|y] / temperature as the steps vanish", found, truth, bias=bias, scale=size)
    value = float(case.answers.value(t, x)) / bench.temperature
    case.sample_bound(f"t = {t:.3g}: E[r|y] <= v, over the temperature", found, value + bias)


@CLAIM.check(MONTE_CARLO)
def mean_by_posterior_draws(case: Case) -> None:
    """Exact scores: E[r|y] over the library's draws of Y_T given Y_t = y, against the second route's; below v."""
    no_running_reward(case)
    bench, latent, process = Workbench.of(case), Workbench.of(case).latent, case.problem.process
    if not isinstance(process, ReverseProcess) or not process.has_exact_score:
        raise NotApplicable("the posterior is known for exact scores")
    t = bench.middle
    (a, h), x = latent.level(t), latent.draw(t, 1, case.rng)
    posterior, rewards = process.data_law.posterior(a, h), []
    for block in case.noise.blocks("posterior", bench.draws, process.event_shape):
        drawn = posterior.draw(x.expand(block.size, -1), block)[: block.count]
        rewards.append(case.problem.reward(drawn).double() / bench.temperature)
    reward = torch.cat(rewards)
    truth = float(latent.clean(t).mean(latent.rho, latent.encode(t, x))[0])
    found = Estimate.mean(reward)
    case.sample(f"t = {t:.3g}: E[r|y] / temperature by the posterior", found, truth, scale=float(reward.std()))
    value = float(case.answers.value(t, x)) / bench.temperature
    case.sample_bound(f"t = {t:.3g}: E[r|y] by the posterior <= v, over the temperature", found, value)


def _mean_reward(bench: Workbench, step: Step) -> Array:
    """E[r(Y_T) | x'] / temperature at the ends of a step by the second route: (n, m)."""
    latent = bench.latent
    n, m, d = step.ends.shape
    z = latent.encode(step.t_next, step.ends.reshape(n * m, d))
    return latent.clean(step.t_next).mean(latent.rho, z).reshape(n, m)
