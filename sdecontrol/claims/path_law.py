"""Prop. 3.6: the optimal path law is the tilt of the reference, at every time and at the end."""

from __future__ import annotations

import math

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.draws import extrapolated
from sdecontrol.claims.posterior import gaussian, gaussian_kl, tilted_mass
from sdecontrol.claims.quadrature import Array
from sdecontrol.claims.static import draws_exactly
from sdecontrol.claims.workbench import Workbench, no_running_reward
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import total_reward
from sdecontrol.laws import Law, Subspace
from sdecontrol.moments import moments
from sdecontrol.time import TimeGrid

RULE_ERROR = 1e-9  # of log densities by a rule over the start, the library's and the second route's

CLAIM = Claim(
    "prop-3.6",
    "The optimal path law is the tilt of the reference: at every time, and p_ft at the end",
    "Tang 2403.06279, Prop. 3.6, (3.20)-(3.26)",
    r"""dQ^*/dQ = C^{-1} e^{r(Y_T)/\alpha}; Q^*_t(dy) = C^{-1} e^{v(t,y)/\alpha} Q_t(dy), hence Q^*_T = p_ft;
dQ^*_y/dQ_y = e^{(r(Y_T) - v(0,y))/\alpha}; E_{p_noise} e^{v(0,\cdot)/\alpha} = E_{p_pre} e^{r/\alpha}.""",
)


@CLAIM.check(EXACT)
def laws_by_moment_equations(case: Case) -> None:
    """The moments of Y_t from (nu*, u*) against marginal(t), terminal and the tilt of p_pre; those from p_noise, untilted."""
    no_running_reward(case)
    bench, answers, latent = Workbench.of(case), case.answers, Workbench.of(case).latent
    bench.flow  # noqa: B018  raises NotApplicable
    laws = {f"Q*_t, t = {t:.3g}": (k, answers.marginal(t), t) for k, t in enumerate(bench.times[:-1])}
    laws["p_ft"] = (len(bench.times) - 1, answers.terminal, bench.horizon)
    for name, (k, law, t) in laws.items():
        own = latent.moments(t, law)
        apart = bench.read(lambda s, k=k, own=own: _distance(s.moments("optimum", k), own))
        case.zero(f"{name}: moments, in standard deviations", apart.value, apart.error)
    reference = bench.flow.fine.moments("reference")
    tilt = gaussian(*reference).tilt(latent.rho).law
    apart = bench.read(lambda s: _distance(s.moments("optimum"), (tilt.mean, tilt.covariance)))
    case.zero(
        "Q*_T against the tilt of the solved p_pre", apart.value, _amplified(apart.error, tilt.covariance, reference[1])
    )
    own = latent.moments(bench.horizon, answers.untilted_terminal)
    apart = bench.read(lambda s: _distance(s.moments("untilted"), own))
    bias = _distance(bench.flow.fine.moments("untilted"), bench.flow.fine.moments("optimum"))
    note = f"not p_ft: {bias:.2g} standard deviations away"
    case.zero("law of Y_T from p_noise under u*", apart.value, apart.error, note=note)


@CLAIM.check(EXACT)
def normaliser(case: Case) -> None:
    """(3.26): log E_{p_pre} e^{r/temperature} by the second route, from p_pre pushed from p_noise, against log C."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if latent.data is not None:
        mass, error = tilted_mass(latent.reference(bench.horizon), latent.rho)
        error += rounding(1.0, mass, condition=100.0, operations=100 * latent.dim)
    else:
        law = gaussian(*bench.flow.fine.moments("reference"))
        mass, error = tilted_mass(law, latent.rho)
        error += bench.read(lambda s: s.moments("reference")[0]).error * latent.dim
    case.identity("log C = log E_{p_pre} e^{r/temperature}", case.answers.log_normalizer, mass, error)


@CLAIM.check(EXACT)
def marginal_densities(case: Case) -> None:
    """(3.21): log Q*_t = v/temperature + log Q_t - log C at points, Q_t by the second route; at T: p_ft, at 0: nu*."""
    no_running_reward(case)
    bench, answers, latent = Workbench.of(case), case.answers, Workbench.of(case).latent
    for t in bench.times[:: 2 if case.quick else 1]:
        x = latent.draw(t, 16, case.rng)
        law = latent.reference(t)
        z = latent.encode(t, x)
        log_q = law.log_density(z)
        value = answers.value(t, x).numpy() / bench.temperature
        right = value + log_q + _log_normal(bench, t, x) - answers.log_normalizer
        left = _log_density(answers.marginal(t), x)
        size = max(float(np.abs(a).max()) for a in (left, value, log_q))
        error = rounding(size, condition=law.condition if law.dim > 1 else 10.0, operations=100 * latent.dim)
        if not latent.matched and len(latent.known_data.clouds) > 1:
            error += RULE_ERROR
        case.zero(
            f"t = {t:.3g}: log Q*_t - (v/temperature + log Q_t - log C)",
            float(np.abs(left - right).max()),
            error,
            scale=size,
        )


@CLAIM.check(DISCRETE)
def certificate_of_finer_chains(case: Case) -> None:
    """Mean of r/temperature - log dQ^{u*,nu*}/dQ on ever finer chains, exactly, against log C as the steps vanish."""
    no_running_reward(case)
    bench, process, answers = Workbench.of(case), case.problem.process, case.answers
    bench.flow  # noqa: B018  raises NotApplicable
    kernel, values = process.default_kernel, []
    for steps in [16, 32, 64] if case.quick else [16, 32, 64, 128]:
        found = moments(process, kernel, bench.clock(steps), answers.initial, answers.control)
        mean, covariance = latent_moments(bench, found.means[-1], found.covariances[-1])
        values.append(bench.latent.rho_mean(mean, covariance) - found.kl)
    value, error = extrapolated(values)
    case.identity("E[r/temperature - log ratio] as the steps vanish", value, answers.log_normalizer, error)


@CLAIM.check(DISCRETE)
def chain_of_its_own(case: Case) -> None:
    """The chain's own laws: terminal = tilt of its own p_pre, path KL = KL of the terminal laws, by numpy."""
    no_running_reward(case)
    bench, process = Workbench.of(case), case.problem.process
    rho = bench.whole_reward
    grid = TimeGrid.explicit(
        bench.grid().resolve(process).times[:-1]
    )  # without the closing step every law has a density
    exact = case.problem.discretise(process.default_kernel, grid).exact
    reference, terminal = (
        gaussian(law.mean.numpy(), law.covariance.numpy()) for law in (exact.reference, exact.terminal)
    )
    tilt = reference.tilt(rho)
    error = rounding(
        1.0, tilt.log_mass, condition=max(tilt.law.condition, reference.condition), operations=10 * process.dim
    )
    case.identity("log Z of the chain", exact.log_normalizer, tilt.log_mass, error)
    own = (tilt.law.mean, tilt.law.covariance)
    case.zero(
        "chain's p_ft - tilt, in standard deviations", _distance((terminal.mean, terminal.covariance), own), error
    )
    case.identity(
        "chain's KL(P*||P) = KL(p_ft||p_pre)",
        exact.path_kl,
        gaussian_kl(own, (reference.mean, reference.covariance)),
        error,
    )


@CLAIM.check(MONTE_CARLO)
def simulated_chain(case: Case) -> None:
    """Affine problems: simulated terminal moments against the chain's exact ones; mean certificate of its best shift."""
    no_running_reward(case)
    bench, process = Workbench.of(case), case.problem.process
    grid, kernel = bench.grid(), process.default_kernel
    control, initial = bench.pair("optimum")
    exact = moments(process, kernel, grid, initial, control)
    path = bench.path("optimum")
    direction = _direction(case, exact.means[-1])
    along = path.terminal.double() @ direction
    mean, variance = float(direction @ exact.means[-1]), float(direction @ exact.covariances[-1] @ direction)
    case.sample("mean of Y_T along grad r", bench.mean(along - mean), 0.0, scale=math.sqrt(variance))
    case.sample("variance of Y_T along grad r", bench.mean((along - mean) ** 2), variance)
    reward = bench.whole_reward_mean(exact.means[-1].numpy(), exact.covariances[-1].numpy())
    residual = total_reward(case.problem, path) / bench.temperature - path.log_ratio() - case.answers.log_normalizer
    truth = reward - exact.kl - float(case.answers.log_normalizer)
    case.sample(
        "certificate: mean of r/temperature - log ratio - log C",
        bench.mean(residual),
        truth,
        scale=float(along.std() / math.sqrt(variance)),
    )


@CLAIM.check(MONTE_CARLO)
def certificate(case: Case) -> None:
    """(3.20), pathwise: R = r/temperature - log ratio - log C tends to zero on every path, as do its mean and its square.

    Nested grids with the same noise, extrapolated to vanishing steps.
    """
    no_running_reward(case)
    bench = Workbench.of(case)
    bench.check_grids()
    residuals = [_residual(bench, fine) for fine in (False, True)]
    weights = [torch.exp(bench.log_start(bench.path("optimum", fine))) for fine in (False, True)]
    without = weights[1] * (
        total_reward(case.problem, bench.path("optimum", True)) / bench.temperature - case.answers.log_normalizer
    )
    size = math.sqrt(float(without.square().mean()))
    mean, bias = bench.extrapolate(*(w * r for w, r in zip(weights, residuals)))
    case.sample("mean of R as the steps vanish", mean, 0.0, bias=bias, scale=size)
    square, bias = bench.extrapolate(*(w * r.square() for w, r in zip(weights, residuals)))
    rms = [math.sqrt(float((w * r.square()).mean())) for w, r in zip(weights, residuals)]
    note = f"rms {rms[0]:.3g}, {rms[1]:.3g} with half the steps, {size:.3g} without control"
    case.sample("mean square of R as the steps vanish", square, 0.0, bias=bias, scale=size**2, note=note)


@CLAIM.check(MONTE_CARLO)
def terminal_reward(case: Case) -> None:
    """Non-affine problems: mean reward of Y_T from (nu*, u*) as the steps vanish, against that of p_ft by the second route."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if bench.affine:
        raise NotApplicable("affine problems are compared with their exact chain")
    bench.check_grids()
    truth = latent.reference(bench.horizon).tilt(latent.rho).mean_q
    rewards = []
    for fine in (False, True):
        path = bench.path("optimum", fine)
        rewards.append(torch.exp(bench.log_start(path)) * total_reward(case.problem, path) / bench.temperature)
    estimate, bias = bench.extrapolate(*rewards)
    size = max(float(rewards[1].std()), abs(truth - latent.reference(bench.horizon).mean_of(latent.rho)))
    case.sample("E r(Y_T) / temperature as the steps vanish", estimate, truth, bias=bias, scale=size)
    case.sample("E r / temperature over draws of p_ft", _mean_of_draws(case), truth, scale=size)


def _mean_of_draws(case: Case) -> Estimate:
    """Mean reward of draws of the answers' p_ft."""
    bench = Workbench.of(case)
    law = case.answers.terminal
    if not draws_exactly(law):
        raise NotApplicable("p_ft is drawn by importance resampling here")
    x = law.sample(case.paths, case.noise, "terminal")
    return Estimate.mean(case.problem.reward(x).double() / bench.temperature)


def _direction(case: Case, centre: torch.Tensor) -> torch.Tensor:
    """grad r at a point, of unit length (the first axis where it vanishes)."""
    slope = Workbench.of(case).whole_reward
    pull = torch.as_tensor(slope.linear - slope.curvature @ centre.numpy())
    size = float(pull.norm())
    return pull / size if size > 0 else torch.eye(len(pull), dtype=torch.float64)[0]


def _residual(bench: Workbench, fine: bool) -> torch.Tensor:
    path = bench.path("optimum", fine)
    log_ratio = path.log_ratio() + bench.log_start(path)
    return total_reward(bench.problem, path) / bench.temperature - log_ratio - bench.answers.log_normalizer


def latent_moments(bench: Workbench, mean: torch.Tensor, covariance: torch.Tensor) -> tuple[Array, Array]:
    """Moments at the horizon in latent coordinates."""
    basis = bench.latent.frame.basis
    return bench.latent.encode(bench.horizon, mean.numpy()), basis.T @ covariance.numpy() @ basis


def _distance(own: tuple[Array, Array], other: tuple[Array, Array]) -> float:
    """Largest difference of means and covariances, in units of the second law's standard deviations."""
    deviation = np.sqrt(np.diag(other[1]))
    gap = np.abs((own[0] - other[0]) / deviation).max()
    return max(float(gap), float(np.abs((own[1] - other[1]) / np.outer(deviation, deviation)).max()))


def _amplified(error: float, covariance: Array, reference: Array) -> float:
    """The error of the solved p_pre as its tilt shows it."""
    return error * max(
        1.0, float(np.linalg.cond(reference)) * float(np.linalg.norm(covariance) / np.linalg.norm(reference))
    )


def _log_density(law: Law, x: torch.Tensor) -> Array:
    """log density; on a subspace, of the latent coordinates."""
    values = law.latent.log_prob(law.encode(x)) if isinstance(law, Subspace) else law.log_prob(x)
    return values.numpy()


def _log_normal(bench: Workbench, t: float, x: torch.Tensor) -> Array:
    """log density of the coordinates off the subspace, which no tilt changes: N(0, h) there (N(0, prior) at t = 0)."""
    latent = bench.latent
    if latent.codimension == 0 or t == bench.horizon:
        return np.zeros(len(x))
    start = bench.process.initial_law(0.0)
    basis, centre = latent.frame.basis, latent.level(0.0)[0] * latent.frame.offset
    normal = np.eye(bench.process.dim) - basis @ basis.T
    variance = float(np.trace(normal @ start.covariance.numpy())) / latent.codimension
    shift = normal @ (start.mean.numpy() - centre)
    s, end = bench.process.noise_level(t), bench.process.horizon
    schedule = bench.process.schedule  # type: ignore[attr-defined]
    if t > 0:  # normal coordinates of the reverse process: Y_s given Y_T with data at the offset
        ratio, q = schedule.ratio(end, s), schedule.transition_variance(end, s)
        h, total = latent.level(t)[1], latent.level(0.0)[1]
        gain = ratio * h / total
        variance, shift = q * h / total + gain**2 * variance, gain * shift
    y = (x.numpy() - latent.level(t)[0] * latent.frame.offset) @ normal - shift
    return -((y**2).sum(1) / variance + latent.codimension * math.log(2 * math.pi * variance)) / 2
