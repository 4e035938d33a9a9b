"""Prop. 3.6: the optimal path law is the tilt of the reference, at every time and at the end."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import DISCRETE, EPS, EXACT, Case, Claim, rounding
from sdecontrol.claims.routes.differences import ROUNDINGS, Slopes, divergence
from sdecontrol.claims.routes.draws import extrapolated
from sdecontrol.claims.routes.ode import Measured, check_smooth
from sdecontrol.claims.routes.posterior import gaussian, gaussian_kl, tilted_mass
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.schedule_chain import distance
from sdecontrol.claims.routes.static import log_density
from sdecontrol.claims.routes.workbench import Workbench, no_running_reward
from sdecontrol.laws.base import symmetric_root
from sdecontrol.moments import moments
from sdecontrol.processes import ReverseProcess
from sdecontrol.time import TimeGrid

POINTS = 2
SAFETY = 3.0  # times the difference of two solves: an estimate of an error
CHAIN_STEPS = (8, 16, 32, 64, 128)  # in a quick run all but the last; with fewer the error is no more than guessed
STOP = 0.02  # level, over the horizon, at which the chains of a reverse diffusion stop

CLAIM = Claim(
    "prop-3.6",
    "The optimal path law is the tilt of the reference: at every time, and p_ft at the end",
    "Tang 2403.06279, Prop. 3.6, (3.20)-(3.26)",
    r"""dQ^*/dQ = C^{-1} e^{r(Y_T)/\alpha}; Q^*_t(dy) = C^{-1} e^{v(t,y)/\alpha} Q_t(dy), hence Q^*_T = p_ft;
dQ^*_y/dQ_y = e^{(r(Y_T) - v(0,y))/\alpha}; E_{p_noise} e^{v(0,\cdot)/\alpha} = E_{p_pre} e^{r/\alpha}.""",
)


@CLAIM.check(EXACT)
def laws_by_moment_equations(case: Case) -> None:
    """Moments of Y_t from (nu*, u*) against marginal(t), terminal and the tilt of p_pre; from p_noise, untilted."""
    no_running_reward(case)
    bench, answers, latent = Workbench.of(case), case.answers, Workbench.of(case).latent
    solved = bench.flow.fine
    laws = {f"Q*_t, t = {t:.3g}": (k, answers.marginal(t), t) for k, t in enumerate(bench.times[:-1])}
    laws["p_ft"] = (len(bench.times) - 1, answers.terminal, bench.horizon)
    for name, (k, law, t) in laws.items():
        apart = _apart(bench, "optimum", latent.moments(t, law), k)
        case.zero(f"{name}: moments, in standard deviations", apart.value, apart.error)
    _, spread = solved.moments("reference")
    tilt = gaussian(*solved.moments("reference")).tilt(latent.rho).law
    apart = _apart(bench, "optimum", (tilt.mean, tilt.covariance))
    error = apart.error * max(
        1.0, float(np.linalg.cond(spread) * np.linalg.norm(tilt.covariance) / np.linalg.norm(spread))
    )
    case.zero("Q*_T against the tilt of the solved p_pre", apart.value, error)
    apart = _apart(bench, "untilted", latent.moments(bench.horizon, answers.untilted_terminal))
    bias = distance(solved.moments("untilted"), solved.moments("optimum"))
    note = f"not p_ft: {bias:.2g} standard deviations away"
    case.zero("law of Y_T from p_noise under u*", apart.value, apart.error, note=note)


@CLAIM.check(EXACT)
def normaliser(case: Case) -> None:
    """(3.26): log E_{p_pre} e^{r/temperature} by the second route, from p_pre pushed from p_noise, against log C."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if latent.data is not None:
        mass, error = latent.log_normalizer()
        error += rounding(1.0, mass, condition=100.0, operations=100 * latent.dim)
    else:
        mass, error = tilted_mass(gaussian(*bench.flow.fine.moments("reference")), latent.rho)
        error += bench.read(lambda s: s.moments("reference")[0]).error * latent.dim
    case.identity("log C = log E_{p_pre} e^{r/temperature}", case.answers.log_normalizer, mass, error)


@CLAIM.check(EXACT)
def marginal_densities(case: Case) -> None:
    """(3.21): log Q*_t = v/temperature + log Q_t - log C at points, Q_t by the second route; at T: p_ft, at 0: nu*."""
    no_running_reward(case)
    bench, answers, latent = Workbench.of(case), case.answers, Workbench.of(case).latent
    for t in bench.times[:: 2 if case.quick else 1]:
        x = latent.draw(t, 16, case.rng)
        law, value = bench.reference(t), answers.value(t, x).numpy() / bench.temperature
        z = latent.encode(t, x)
        log_q = law.log_density(z)
        left = log_density(answers.marginal(t), x)
        gap = float(np.abs(left - (value + log_q + latent.log_normal(t, x) - answers.log_normalizer)).max())
        size = max(float(np.abs(a).max()) for a in (left, value, log_q))
        error = rounding(size, condition=max(10.0, law.condition), operations=100 * latent.dim)
        error += bench.reference_error(t, z, log_q)
        case.zero(f"t = {t:.3g}: log Q*_t - (v/temperature + log Q_t - log C)", gap, error, scale=size)


@CLAIM.check(EXACT)
def fokker_planck(case: Case) -> None:
    """Started at nu*, the process under u* has the marginals Q*_t: they solve its Fokker-Planck equation,

    d/dt log q + div c + c . grad log q - sigma^2/2 (lap log q + |grad log q|^2) = 0, c = b + sigma u*.
    The error is what twice the step changes (16 times that of the step itself), plus the rounding of the differences.
    """
    no_running_reward(case)
    check_smooth(case.problem.process)
    bench, process, answers = Workbench.of(case), case.problem.process, case.answers

    def log_q(t: float, x: Tensor) -> Tensor:
        return answers.marginal(t).log_prob(x)

    residual, error = 0.0, 0.0
    for fraction in (0.5,) if case.quick else (0.2, 0.5, 0.8):
        t = fraction * process.horizon
        x = bench.points(t, POINTS, case.rng)
        sigma, dt, dx = process.amplitude(t), 1e-3 * (process.horizon - t), 1e-2 * bench.narrowest(t)

        def drift(y: Tensor, t: float = t, sigma: float = sigma) -> Tensor:
            return process.state(t, y).drift + sigma * answers.control(t, y)

        sides = []
        for factor in (1, 2):
            q = Slopes.of(log_q, t, x, factor * dt, factor * dx)
            spread = sigma**2 / 2 * (q.laplacian + q.gradient.square().sum(1))
            along = (drift(x) * q.gradient).sum(1)
            sides.append(torch.stack([q.in_time, divergence(drift, x, factor * dx), along, -spread]))
        fine, coarse = sides
        size, push = float(fine.abs().max()), float(drift(x).abs().sum(1).max())
        unit = ROUNDINGS * EPS * float(log_q(t, x).abs().max())
        noise = unit * (1 / dt + sigma**2 * x.shape[1] / dx**2 + push / dx) + ROUNDINGS * EPS * push / dx
        residual = max(residual, float(fine.sum(0).abs().max()) / size)
        error = max(error, (float((fine - coarse).sum(0).abs().max()) + noise) / size)
    case.zero("residual of the Fokker-Planck equation of Q*_t under u*, over its largest term", residual, error)


@CLAIM.check(DISCRETE)
def finer_chains(case: Case) -> None:
    """E[v(t, Y_t)/temperature - log ratio up to t] on ever finer chains, exactly, against log C as the steps vanish.

    A reverse diffusion stops at a level above 0: up to there the chain's error is a power series in the step. The error
    is how far the limit is from those of one grid less, either end left out, which are an order worse.
    """
    no_running_reward(case)
    process, answers = case.problem.process, case.answers
    Workbench.of(case).flow  # noqa: B018  raises NotApplicable
    values = []
    for steps in CHAIN_STEPS[:-1] if case.quick else CHAIN_STEPS:
        reverse = isinstance(process, ReverseProcess)
        grid = TimeGrid.log_snr(steps, s_min=STOP, close=False) if reverse else TimeGrid.uniform(steps)
        found = moments(process, process.default_kernel, grid, answers.initial, answers.control)
        mean, root = found.means[-1], math.sqrt(process.dim) * symmetric_root(found.covariances[-1])
        corners = torch.cat([mean + root, mean - root])  # a rule that is exact for quadratics
        value = answers.value(found.times[-1], corners).mean() / case.problem.temperature
        values.append(float(value) - found.kl)
    limit, error = extrapolated(values)
    title = "E[v/temperature - log ratio] as the steps vanish"
    case.identity(title, limit, answers.log_normalizer, error)


@CLAIM.check(DISCRETE)
def chain_of_its_own(case: Case) -> None:
    """A chain's own laws: terminal = tilt of its own p_pre, path KL = KL of the terminal laws, by numpy."""
    no_running_reward(case)
    bench, process = Workbench.of(case), case.problem.process
    times = bench.grid().resolve(process).times
    open_end = TimeGrid.explicit(times[:-1])  # without the closing step every law has a density
    exact = case.problem.discretise(process.default_kernel, open_end).exact
    reference, terminal = ((law.mean.numpy(), law.covariance.numpy()) for law in (exact.reference, exact.terminal))
    tilt = gaussian(*reference).tilt(bench.whole_reward)
    own = tilt.law.mean, tilt.law.covariance
    condition = max(tilt.law.condition, float(np.linalg.cond(reference[1])))
    error = rounding(1.0, tilt.log_mass, condition=condition, operations=1_000 + 100 * process.dim)
    case.identity("log Z of the chain", exact.log_normalizer, tilt.log_mass, error)
    case.zero("chain's p_ft - tilt, in standard deviations", distance(terminal, own), error)
    case.identity("chain's KL(P*||P) = KL(p_ft||p_pre)", exact.path_kl, gaussian_kl(own, reference), error)


def _apart(bench: Workbench, name: str, law: tuple[Array, Array], k: int = -1) -> Measured:
    """Distance of a pair's moments at the k-th time from those of a law; the error is that of the two solves."""
    fine, coarse = (solution.moments(name, k) for solution in (bench.flow.fine, bench.flow.coarse))
    return Measured(distance(fine, law), SAFETY * (distance(coarse, fine) + bench.flow.relative))
