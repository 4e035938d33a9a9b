"""Prop. 3.6, one step at a time: every kernel against the exact conditional law of the next state, free and under u*.

For an exact score X_s' given X_s is a finite mixture, by Bayes' rule (derived): with r = alpha/alpha', q = h - r^2 h',
X_s' is seen through X_s = r X_s' + sqrt(q) Z. Under (nu*, u*) it is the same with the tilted data. A kernel of weak
order p has the mean and the covariance of that law up to dt^(p+1); u* is held over a step, which is of order 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, Case, NotApplicable, rounding
from sdecontrol.claims.entropy.path_law import CLAIM
from sdecontrol.claims.routes.latent import Latent
from sdecontrol.claims.routes.local import Step, Steps, order_row, rms, steps_at, take_step
from sdecontrol.claims.routes.plain import GaussianSum
from sdecontrol.claims.routes.posterior import Clean, noised
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.workbench import Workbench, no_running_reward
from sdecontrol.kernels import DDIM, Ancestral, EulerMaruyama, ExactTransition, Exponential, Kernel, SecondOrder
from sdecontrol.laws import Dirac
from sdecontrol.processes import ReverseProcess

CONSISTENT: dict[str, Kernel] = {
    "Euler": EulerMaruyama(),
    "exponential": Exponential(),
    "ancestral": Ancestral(),
    "ancestral, large": Ancestral(variance="large"),
    "DDIM(1)": DDIM(1.0),
    "second order": SecondOrder(),
}
MIXED = DDIM(0.5)  # it keeps the marginals of another equation
KEEPING: list[tuple[Kernel, float]] = [  # kernels that keep x0_hat over the step, and the eta of their mean
    (CONSISTENT["ancestral"], 1.0),
    (CONSISTENT["ancestral, large"], 1.0),
    (CONSISTENT["DDIM(1)"], 1.0),
    (MIXED, 0.5),
    (DDIM(0.0), 0.0),
]


def levels(latent: Latent, t: float, t_next: float) -> tuple[float, float, float, float]:
    """r, q, h, h', from alpha and h alone."""
    (a, h), (a_next, h_next) = latent.level(t), latent.level(t_next)
    r = a / a_next
    return r, h - r * r * h_next, h, h_next


def next_state(latent: Latent, law: GaussianSum, t: float, t_next: float) -> Clean:
    """The law of the next state given this one, when the data have the given law."""
    r, q, _, _ = levels(latent, t, t_next)
    return Clean.of(noised(law, *latent.level(t_next)), r, q)


def moments_of(clean: Clean, z: Array) -> tuple[Array, Array]:
    """Mean (n, d) and covariance (n, d, d) given each of n states."""
    omega, means = np.exp(clean.log_omega(z)), clean.means(z)
    mean = np.einsum("kn,knd->nd", omega, means)
    apart = means - mean
    return mean, np.einsum("kn,kij->nij", omega, clean.covariances) + np.einsum("kn,kni,knj->nij", omega, apart, apart)


def _step_moments(latent: Latent, step: Step) -> tuple[Array, Array]:
    """The same of a kernel's step."""
    ends = latent.encode(step.t_next, step.ends.numpy())
    mean = step.mean(ends)
    apart = ends - mean[:, None]
    return mean, np.einsum("nmi,nmj,m->nij", apart, apart, step.weights)


def _gap(first: tuple[Array, Array], second: tuple[Array, Array], deviation: float) -> float:
    """Of means and covariances, in standard deviations."""
    return math.hypot(*(rms(a - b) / deviation**power for power, (a, b) in enumerate(zip(first, second), 1)))


def _steps(case: Case) -> Steps:
    """Raises NotApplicable without an exact score."""
    bench = Workbench.of(case)
    bench.latent.known_data  # noqa: B018
    return steps_at(bench, bench.middle)


def _order_rows(case: Case, law: GaussianSum, title: str, controlled: bool) -> None:
    steps, latent = _steps(case), Workbench.of(case).latent
    z, deviation = latent.encode(steps.t, steps.x), steps.bench.narrowest(steps.t)
    truth = [moments_of(next_state(latent, law, steps.t, t_next), z) for t_next in steps.ends]
    size = max(1.0, float(np.abs(z).max()) / deviation)
    for name, kernel in CONSISTENT.items():
        found = steps.of(kernel, steps.control if controlled else None)
        errors = [_gap(_step_moments(latent, step), exact, deviation) for step, exact in zip(found, truth)]
        order_row(case, f"{name}: {title}", errors, (1 if controlled else kernel.order_weak) + 1, size)


@CLAIM.check(DISCRETE)
def steps_of_the_reference(case: Case) -> None:
    """Mean and covariance of one step of every kernel, against those of Y_t' given Y_t under Q."""
    no_running_reward(case)
    _order_rows(case, Workbench.of(case).latent.known_data, "moments of a step", controlled=False)


@CLAIM.check(DISCRETE)
def steps_of_the_optimum(case: Case) -> None:
    """The same under u*, against Y_t' given Y_t under Q*: the reverse process of the tilted data."""
    no_running_reward(case)
    latent = Workbench.of(case).latent
    _order_rows(case, latent.known_data.tilt(latent.rho).law, "moments of a step under u*", controlled=True)


@CLAIM.check(DISCRETE)
def posterior_mean_kept(case: Case) -> None:
    """Kernels that keep x0_hat: mean alpha' m + sqrt(h' - var) (y - alpha m)/sqrt(h), var = eta^2 h' q/h, m = E[X_0|y].

    And the closing step: E[X_0|y] itself, without noise.
    """
    no_running_reward(case)
    steps, latent = _steps(case), Workbench.of(case).latent
    z, t, t_next, horizon = latent.encode(steps.t, steps.x), steps.t, steps.ends[0], steps.bench.horizon
    (a, _), (a_next, _) = latent.level(t), latent.level(t_next)
    _, q, h, h_next = levels(latent, t, t_next)
    clean = moments_of(latent.clean(t), z)[0]
    process, size = case.problem.process, float(np.abs(z).max() + np.abs(clean).max())
    error = rounding(1.0, size / math.sqrt(q), operations=100 * latent.dim, condition=h / q)
    worst, last, noise = 0.0, 0.0, 0.0
    for kernel, eta in KEEPING:
        variance = eta**2 * h_next * q / h
        mean = a_next * clean + math.sqrt(h_next - variance) * (z - a * clean) / math.sqrt(h)
        found, _ = _step_moments(latent, take_step(process, kernel, t, t_next, steps.x, steps.basis))
        worst = max(worst, float(np.abs(found - mean).max()) / math.sqrt(q))
        end, spread = _step_moments(latent, take_step(process, kernel, t, horizon, steps.x, steps.basis))
        last, noise = max(last, float(np.abs(end - clean).max()) / size), max(noise, float(np.abs(spread).max()))
    case.zero("kernels that keep x0_hat: mean of a step, in its standard deviations", worst, error)
    error = rounding(1.0, condition=max(1.0, h / a), operations=1000 * latent.dim)
    case.zero("their closing step - E[X_0|y], relative", last, error)
    case.zero("variance of their closing step", noise, rounding(size) ** 2, scale=size)


@CLAIM.check(DISCRETE)
def data_in_a_point(case: Case) -> None:
    """Data in a point: X_s' given X_s is N((r h'/h) y + (alpha' q/h) x_0, h' q/h), the small variance; large is q."""
    no_running_reward(case)
    process, latent = case.problem.process, Workbench.of(case).latent
    if not isinstance(process, ReverseProcess):
        raise NotApplicable("kernels that know the data need a reverse process")
    point, x = 0.7, torch.tensor([[-0.4], [1.1]], dtype=torch.float64)
    known = ReverseProcess(process.schedule, Dirac([point]))
    t, t_next = process.horizon * 0.4, process.horizon * 0.6
    r, q, h, h_next = levels(latent, t, t_next)
    mean = r * h_next / h * x.numpy() + latent.level(t_next)[0] * q / h * point
    small = h_next * q / h
    for name, variance in {"ancestral": small, "DDIM(1)": small, "ancestral, large": q}.items():
        step = take_step(known, CONSISTENT[name], t, t_next, x, np.eye(1))
        ends = step.ends.numpy()
        centre = step.mean(ends)
        spread = step.mean((ends - centre[:, None]) ** 2)
        worst = float(max(np.abs(centre - mean).max(), np.abs(spread - variance).max()))
        case.zero(f"{name}, data in a point: mean and variance of a step", worst, rounding(1.0, h, condition=h / q))


@CLAIM.check(DISCRETE)
def gaussian_steps(case: Case) -> None:
    """Gaussian data: the exact transition's moments; the matrices of a step are the step; DDIM(1/2) keeps marginals."""
    no_running_reward(case)
    steps, latent = _steps(case), Workbench.of(case).latent
    law, process = latent.known_data, case.problem.process
    if len(law.clouds) > 1:
        raise NotApplicable("steps are matrices for Gaussian data only")
    t, t_next, basis = steps.t, steps.ends[0], steps.basis
    z, deviation = latent.encode(t, steps.x), steps.bench.narrowest(t)
    r, q, h, _ = levels(latent, t, t_next)
    size = float(np.abs(z).max()) / deviation
    error = rounding(1.0, size, condition=h / q, operations=100 * latent.dim)
    found = take_step(process, ExactTransition(), t, t_next, steps.x, basis)
    gap = _gap(_step_moments(latent, found), moments_of(next_state(latent, law, t, t_next), z), deviation)
    case.zero("exact transition: moments of a step", gap, error)
    apart = 0.0
    for kernel in (*CONSISTENT.values(), MIXED, ExactTransition()):
        step = take_step(process, kernel, t, t_next, steps.x, basis)
        said = kernel.affine_step(process, t, t_next)
        noise = torch.as_tensor(step.nodes @ basis.T) @ said.noise.mT
        apart = max(apart, float((step.ends - (steps.x @ said.matrix.mT + said.offset)[:, None] - noise).abs().max()))
    case.zero("matrices of a step - the step, over all kernels", apart / deviation, error)
    errors = [_marginal_gap(steps, law, MIXED, t_next) for t_next in steps.ends]
    order_row(case, "DDIM(0.5): marginal after a step", errors, 2, size)


def _marginal_gap(steps: Steps, law: GaussianSum, kernel: Kernel, t_next: float) -> float:
    """A step of the noised data law, against the data law noised to the next level."""
    latent, t, basis = steps.bench.latent, steps.t, steps.basis
    said = kernel.affine_step(steps.bench.process, t, t_next)
    matrix, noise = basis.T @ said.matrix.numpy() @ basis, basis.T @ said.noise.numpy() @ basis
    now, then = latent.noised(law, t), latent.noised(law, t_next)
    centre = latent.lift(t, now.mean[None])[0] @ said.matrix.mT + said.offset
    moved = latent.encode(t_next, centre.numpy()[None]), (matrix @ now.covariance @ matrix.T + noise @ noise.T)[None]
    return _gap(moved, (then.mean[None], then.covariance[None]), steps.bench.narrowest(t))
