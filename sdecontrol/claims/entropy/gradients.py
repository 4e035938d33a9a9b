"""Eqs. (3.29)-(3.30): the gradient of a log expectation by a weight on the noise, whatever the reward."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sdecontrol.claims.base import DISCRETE, EPS, EXACT, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.routes.differences import ROUNDINGS, STENCIL, Slopes
from sdecontrol.claims.routes.local import DEGREE_FIVE, Step, order_row, rms, steps_at
from sdecontrol.claims.routes.ode import check_smooth
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.workbench import Workbench, no_running_reward

POINTS = 4
RTOL = 1e-11  # of the moment equations

CLAIM = Claim(
    "eq-3.29",
    "Bismut-Elworthy-Li: the noise of a path, weighted by the first variation, differentiates any reward",
    "Tang 2403.06279, (3.29)-(3.30); the martingale, the chain's weight and the end's: derived",
    r"""\nabla_y E[F(Y_T) | Y_t = y] = E[F(Y_T) \int_t^T \psi(s) \sigma(s)^{-1} Z_s^\top dB_s | Y_t = y],
dZ_s = \nabla b(s, Y_s) Z_s ds, Z_t = I, \int_t^T \psi = 1; with F = e^{r/\alpha}: u^* = \sigma E[F W] / E[F].""",
)


class Joint(NamedTuple):
    """Y_T = shift + flow y + noise given Y_t = y, of covariance `covariance`; Cov(Y_T, W) for two choices of psi."""

    shift: Array
    flow: Array
    covariance: Array
    with_weight: tuple[Array, Array]

    @classmethod
    def of(cls, bench: Workbench, t: float, rtol: float) -> Joint:
        """By the moment equations: Z' = A Z, P' = A P + P A' + sigma^2 I, Cov(Y, W)' = A Cov(Y, W) + psi Z."""
        sde, d, end = bench.latent.sde, bench.latent.dim, bench.horizon

        def rates(s: float, y: Array) -> Array:
            (a, c), (z, p, *covs), m = sde.drift(s), y[d:].reshape(4, d, d), y[:d]
            psi = 1 / (end - t), (1 + 0.9 * math.cos(2 * math.pi * (s - t) / (end - t))) / (end - t)
            grown = a @ p + p @ a.T + sde.amplitude(s) ** 2 * np.eye(d)
            moved = [a @ cov + share * z for cov, share in zip(covs, psi)]
            return np.concatenate([a @ m + c, *(part.ravel() for part in (a @ z, grown, *moved))])

        zero = np.zeros(d * d)
        start = np.concatenate([np.zeros(d), np.eye(d).ravel(), zero, zero, zero])
        y = solve_ivp(rates, (t, end), start, method="DOP853", rtol=rtol, atol=1e-3 * rtol).y[:, -1]
        flow, covariance, one, other = y[d:].reshape(4, d, d)
        return cls(y[:d], flow, covariance, (one, other))

    def gradients(self, bench: Workbench, z: Array) -> list[Array]:
        """E[F W]/E[F] at latent points z (n, d), by Stein's identity E[F W] = Cov(W, Y_T) P^{-1} E[F (Y_T - m)]."""
        rho, mean = bench.latent.rho, self.shift + z @ self.flow.T
        precision = np.linalg.inv(self.covariance)
        tilted = np.linalg.solve(precision + rho.curvature, (mean @ precision + rho.linear).T).T
        return [(tilted - mean) @ precision @ covariance for covariance in self.with_weight]


@CLAIM.check(EXACT)
def stein(case: Case) -> None:
    """Affine dynamics: Cov(Y_T, W) = Z_T for any psi, and u* = sigma E[F W]/E[F] from it; two choices of psi."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    gap, error, found_gap, found_error = 0.0, 0.0, 0.0, 0.0
    for t in (0.0,) if case.quick else (0.0, bench.middle):
        fine, coarse = (Joint.of(bench, t, rtol) for rtol in (RTOL, 100 * RTOL))
        size = float(np.abs(fine.flow).max())
        gap = max(gap, *(float(np.abs(c - fine.flow).max()) / size for c in fine.with_weight))
        changed = max(float(np.abs(a - b).max()) / size for a, b in zip(fine.with_weight, coarse.with_weight))
        error = max(error, changed + float(np.abs(fine.flow - coarse.flow).max()) / size + 1e3 * EPS)
        x = latent.draw(t, POINTS, case.rng, widen=1.5)
        z, sigma = latent.encode(t, x), bench.process.amplitude(t)
        u = case.answers.control(t, x).numpy() @ latent.frame.basis / sigma
        scale = max(float(np.abs(u).max()), 1e-300)
        for q, rough in zip(fine.gradients(bench, z), coarse.gradients(bench, z)):
            found_gap = max(found_gap, float(np.abs(u - q).max()) / scale)
            found_error = max(found_error, float(np.abs(q - rough).max()) / scale)
    condition = float(np.linalg.cond(fine.covariance))
    case.zero("Cov(Y_T, W) - Z_T for two choices of psi, relative", gap, error)
    error = found_error + rounding(1.0, condition=condition, operations=1_000 * latent.dim)
    case.zero("u* - amplitude E[F W]/E[F], relative", found_gap, error)


@CLAIM.check(EXACT)
def weight_of_the_end(case: Case) -> None:
    """Exact scores: E[W | Y_T = x] = grad_y log p(x | y) = (a/h) (x - E[Y_T | y]): u* by the tilt of the posterior."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    worst, error = 0.0, 0.0
    for t in (0.0, bench.middle):
        (a, h), x = latent.level(t), latent.draw(t, POINTS, case.rng, widen=1.5)
        z, clean, sigma = latent.encode(t, x), latent.clean(t), bench.process.amplitude(t)
        u = case.answers.control(t, x).numpy() @ latent.frame.basis
        posteriors = [clean.given(point[None], np.zeros(1)) for point in z]
        moved = np.stack([law.tilt(latent.rho).law.mean - law.mean for law in posteriors])
        found, scale = sigma * a / h * moved, max(float(np.abs(u).max()), 1e-300)
        size = sigma * a / h * max(float(np.abs(law.mean).max()) for law in posteriors)
        worst = max(worst, float(np.abs(u - found).max()) / scale)
        error = max(error, rounding(size, condition=bench.condition, operations=1_000 * latent.dim) / scale)
    case.zero("u* - amplitude E[F E[W|Y_T]]/E[F], relative", worst, error)


@CLAIM.check(EXACT)
def martingale(case: Case) -> None:
    """Z_s' grad h(s, Y_s) is a martingale under Q, which gives (3.29): with q = u*/amplitude, along a direction e,

    q_t + (b + amplitude u*) . grad q + amplitude^2 lap q / 2 + (grad b)' q = 0, relative to its largest term.
    """
    no_running_reward(case)
    check_smooth(case.problem.process)
    bench, process, rng = Workbench.of(case), case.problem.process, case.rng
    residual, error = 0.0, 0.0
    for fraction in (0.4,) if case.quick else (0.1, 0.6):
        t = fraction * process.horizon
        x, e = bench.points(t, POINTS, rng), torch.as_tensor(rng.normal(size=process.dim))
        e = torch.as_tensor(bench.latent.frame.basis @ (bench.latent.frame.basis.T @ e.numpy()))
        e = e / e.norm()
        dt, dx = 1e-3 * (process.horizon - t), 1e-2 * bench.narrowest(t)
        terms = []
        for factor in (1, 2):
            terms.append(_terms(case, t, x, e, factor * dt, factor * dx))
        fine, coarse = terms
        sigma, size = process.amplitude(t), max(float(fine.abs().max()), 1e-300)
        state, u = process.state(t, x), case.answers.control(t, x)
        unit = ROUNDINGS * EPS * float(state.field.abs().max())  # q is a difference of scores
        pull = float((state.drift + sigma * u).abs().sum(1).max()) + float(state.drift.abs().max())
        noise = unit * (1 / dt + sigma**2 * x.shape[1] / dx**2 + pull / dx)
        residual = max(residual, float(fine.sum(0).abs().max()) / size)
        error = max(error, (float((fine - coarse).sum(0).abs().max()) + noise) / size)
    case.zero("residual of the martingale Z' grad h, over its largest term", residual, error)


def _per_amplitude(case: Case, t: float, x: Tensor) -> Tensor:
    return case.answers.control(t, x) / case.problem.process.amplitude(t)


def _terms(case: Case, t: float, x: Tensor, e: Tensor, dt: float, dx: float) -> Tensor:
    """The four terms of the equation of q . e: (4, n)."""
    q = Slopes.of(lambda s, y: _per_amplitude(case, s, y) @ e, t, x, dt, dx)
    process = case.problem.process
    sigma, control = process.amplitude(t), case.answers.control(t, x)
    push = process.state(t, x).drift + sigma * control
    bent = sum(first / dx * process.state(t, x + k * dx * e).drift for k, first, _ in STENCIL)
    turned = (_per_amplitude(case, t, x) * bent).sum(1)
    return torch.stack([q.in_time, (push * q.gradient).sum(1), sigma**2 / 2 * q.laplacian, turned])


@CLAIM.check(DISCRETE)
def weight_of_the_chain(case: Case) -> None:
    """Affine chains x+ = M x + m + N xi: W = sum_k a_k J_{k+1}' N_k^{-T} xi_k, sum a_k = 1, gives grad v of the chain.

    Exactly, whatever the steps; the value of the same chain is differenced (it is a quadratic).
    """
    no_running_reward(case)
    bench, latent, process = Workbench.of(case), Workbench.of(case).latent, case.problem.process
    if not bench.affine:
        raise NotApplicable("the chain's value is known for affine problems")
    t, kernel, basis = bench.middle, process.default_kernel, latent.frame.basis
    grid, x = bench.grid(1, t), latent.draw(t, 1, case.rng)
    chain = case.problem.discretise(kernel, grid).exact
    times = grid.resolve(process).times.tolist()
    steps = [kernel.affine_step(process, a, b) for a, b in zip(times[:-1], times[1:])]
    parts = [(step.matrix.numpy(), step.offset.numpy(), step.noise.numpy()) for step in steps]
    raw = np.array([float(bool(step.noise.any())) * (1 + k % 3) for k, step in enumerate(steps)])  # an uneven psi
    mean, spread = x[0].numpy(), np.zeros((process.dim, process.dim))
    jacobian, cross = np.eye(process.dim), np.zeros((process.dim, process.dim))
    for (matrix, offset, noise), share in zip(parts, raw / raw.sum()):
        mean, spread = matrix @ mean + offset, matrix @ spread @ matrix.T + noise @ noise.T
        jacobian, cross = matrix @ jacobian, matrix @ cross
        if share > 0:
            cross = cross + share * noise @ np.linalg.solve(noise, jacobian)
    inner, m = basis.T @ spread @ basis, latent.encode(bench.horizon, mean[None])[0]
    precision = np.linalg.inv(inner)
    tilted = np.linalg.solve(precision + latent.rho.curvature, precision @ m + latent.rho.linear)
    found = (basis.T @ cross @ basis).T @ precision @ (tilted - m)
    step = latent.spread(t)
    ends = torch.cat([x + sign * step * torch.as_tensor(basis.T) for sign in (1, -1)])
    plus, minus = chain.value(t, ends).numpy().reshape(2, -1) / bench.temperature
    truth = (plus - minus) / (2 * step)
    size = float(np.abs(truth).max())
    error = rounding(size, float(np.abs(plus).max()) / step, condition=float(np.linalg.cond(inner)), operations=10_000)
    gap = float(np.abs(found - truth).max())
    case.zero(f"t = {t:.3g}: E[F W]/E[F] - grad v/temperature of the chain", gap, error, scale=size)


@CLAIM.check(DISCRETE)
def noise_of_a_step(case: Case) -> None:
    """J' E[xi e^{v'/temperature}]/(std E e^{v'/temperature}) over one step is u*/amplitude up to dt^2.

    J, the derivative of the step's mean, is the first variation; without it the order is one (eq-3.27). Above four
    dimensions the rule over the noise itself is of order one.
    """
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    steps = steps_at(bench, bench.middle)
    q = steps.control.numpy() @ steps.basis / bench.process.amplitude(steps.t)
    errors = []
    for step, change in steps.free:
        weights = np.exp(change)
        kick = step.mean(weights[..., None] * step.nodes) / step.mean(weights)[:, None]
        errors.append(rms(_pulled_back(bench, steps.t, steps.x, step, kick) - q) / rms(q))
    title = "J' E[z e^(v'/temperature)]/(std E e^(v'/temperature)) - u*/amplitude"
    order_row(case, title, errors, 2 if latent.dim <= DEGREE_FIVE else 1, 1.0)


def _pulled_back(bench: Workbench, t: float, x: Tensor, step: Step, kick: Array) -> Array:
    """J' kick / std in latent coordinates, J by differences of the step's mean: (n, d)."""
    process, basis = bench.process, torch.as_tensor(bench.latent.frame.basis)
    transition, dx, found = process.default_kernel.transition(process, t, step.t_next), 1e-2 * bench.narrowest(t), []
    for e in basis.mT:
        parts = [first / dx * transition.mean(process.state(t, x + k * dx * e)) for k, first, _ in STENCIL]
        found.append((kick * (torch.stack(parts).sum(0) @ basis).numpy()).sum(1))
    return np.stack(found, 1) / transition.std
