"""Eqs. (3.31)-(3.32): nu* as the end of a second controlled process, and the start for which that fails."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.entropy.separation import value_at_start
from sdecontrol.claims.routes.local import HALVINGS, POINTS, order_row, rms, take_step
from sdecontrol.claims.routes.plain import Quadric
from sdecontrol.claims.routes.posterior import gaussian, gaussian_kl, rule
from sdecontrol.claims.routes.quadrature import Array, log_sum_exp, normal_nodes
from sdecontrol.claims.routes.workbench import Workbench, mild, no_running_reward
from sdecontrol.errors import BadInput
from sdecontrol.estimate import Estimate
from sdecontrol.kernels import EulerMaruyama
from sdecontrol.moments import moments
from sdecontrol.noise import Noise
from sdecontrol.problems.second import FollmerDrift, initial_law_problem
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

SHARE = 0.5  # of the prior's variance, in the start for which the claim fails
STEPS = 5
ODE_ERROR = 1e-10  # of the moment equations at relative tolerance 1e-12
LARGEST_ODE = 20  # dimensions
FIRST_STEP = 0.02  # of steps under the drift, the longest
RULE = 0.8  # spacing in standard deviations: the rule's error is e^{-2 pi^2 / 0.64}
NODES = 8  # Gauss-Hermite nodes a dimension of the drift without a closed form

CLAIM = Claim(
    "eq-3.32",
    "A second control problem, from a point, ends in the best initial law nu*",
    "Tang 2403.06279, (3.31)-(3.32); the condition on its start is derived",
    r"""\max_w E[v(0, X_1) - \frac{\alpha}{2} \int_0^1 |w_t|^2 dt], dX = \eta (w dt + dB), has X^*_1 \sim \nu^*
exactly when E[e^{v(0, X_1)/\alpha} | X_0] is constant: from a point, but not from a general fixed start.""",
)


class Steered(NamedTuple):
    """Brownian motion steered by e^q, in the coordinates of the problem: p_noise = N(centre, eta^2 I)."""

    q: Quadric
    centre: Array
    eta: float

    def end(self, share: float) -> tuple[Array, Array]:
        """Mean and covariance of X_1 from X_0 ~ N(centre, share eta^2 I), kept as it is (derived).

        X_1 given X_0 = x is N(x, (1 - share) eta^2 I) tilted by e^q, affine in x; its mean is averaged over the start.
        """
        eye, left = np.eye(len(self.centre)), (1 - share) * self.eta**2
        covariance = np.linalg.inv(eye / left + self.q.curvature)
        gain = covariance / left
        mean = covariance @ (self.centre / left + self.q.linear)
        return mean, covariance + share * self.eta**2 * gain @ gain.T

    def drift(self, t: float) -> tuple[Array, Array]:
        """(B, b) of Follmer's w*(t, x) = eta (I + eta^2 (1 - t) kappa)^{-1} (gamma - kappa x) = B x + b."""
        shrink = self.eta * np.linalg.inv(np.eye(len(self.centre)) + self.eta**2 * (1 - t) * self.q.curvature)
        return -shrink @ self.q.curvature, shrink @ self.q.linear

    def flow(self) -> tuple[Array, Array, float]:
        """Mean and covariance of X_1 from the point, and E int |w|^2 dt / 2, by the moment equations."""
        d = len(self.centre)

        def rates(t: float, y: Array) -> Array:
            (gain, offset), mean, spread = self.drift(t), y[:d], y[d:-1].reshape(d, d)
            w = gain @ mean + offset
            grown = self.eta * (gain @ spread + spread @ gain.T) + self.eta**2 * np.eye(d)
            return np.concatenate([self.eta * w, grown.ravel(), [(w @ w + np.sum((gain @ spread) * gain)) / 2]])

        start = np.concatenate([self.centre, np.zeros(d * d), [0.0]])
        y = solve_ivp(rates, (0, 1), start, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
        return y[:d], y[d:-1].reshape(d, d), float(y[-1])


@lru_cache(maxsize=4)
def _second(problem: Problem, share: float = 0.0) -> Problem:
    """Raises NotApplicable where p_noise is not N(m, eta^2 I)."""
    try:
        return initial_law_problem(problem, share)
    except BadInput as reason:
        raise NotApplicable(str(reason)) from reason


def _steered(bench: Workbench) -> Steered:
    """Raises NotApplicable where v(0, .) is not quadratic or p_noise is not N(m, eta^2 I)."""
    _second(bench.problem)
    mean, covariance = bench.latent.gaussian_start
    return Steered(value_at_start(bench), mean, float(np.sqrt(covariance[0, 0])))


@CLAIM.check(EXACT)
def law_at_the_end(case: Case) -> None:
    """The library's optimum from the point: log C, law of X_1 and cost, against nu* of the answers and its KL."""
    no_running_reward(case)
    bench = Workbench.of(case)
    steered, second, latent = _steered(bench), _second(case.problem).exact, bench.latent
    log_c, prior = float(case.answers.log_normalizer), latent.gaussian_start
    star = latent.moments(0.0, case.answers.initial)
    error = rounding(1.0, log_c, steered.q.constant, condition=10.0, operations=1_000 * latent.dim)
    case.identity("log E e^{v(0, X_1)/temperature}, against log C", second.log_normalizer, log_c, error)
    end = latent.moments(0.0, second.terminal)
    case.zero("KL(law of X_1 || nu*)", gaussian_kl(end, star), error)
    case.identity("cost, against KL(nu* || p_noise)", second.path_kl, gaussian_kl(star, prior), error)


@CLAIM.check(EXACT)
def constant_by_quadrature(case: Case) -> None:
    """In one and two dimensions, where v(0, .) has other forms: E e^{v(0, X_1)/temperature} without control is C."""
    no_running_reward(case)
    bench = Workbench.of(case)
    latent, second = bench.latent, _second(case.problem)
    if bench.affine or latent.dim > 2 or latent.codimension:
        raise NotApplicable("for mixtures in one and two dimensions")
    mean, covariance = latent.gaussian_start

    def log_mean(spacing: float) -> float:
        nodes, weights = rule(gaussian(mean, covariance), spacing)
        return float(np.log(weights @ np.exp(second.reward(torch.as_tensor(nodes)).numpy() / bench.temperature)))

    found, log_c = log_mean(0.25), float(case.answers.log_normalizer)
    error = abs(found - log_mean(0.3)) + rounding(1.0, log_c, condition=10.0)
    case.identity("log E e^{v(0, X_1)/temperature}, against log C", found, log_c, error)


@CLAIM.check(EXACT)
def moment_equations(case: Case) -> None:
    """Follmer's drift written out and integrated by the moment equations, against nu* and the library's drift."""
    no_running_reward(case)
    bench = Workbench.of(case)
    steered, latent = _steered(bench), bench.latent
    if latent.dim > LARGEST_ODE:
        raise NotApplicable(f"moment equations in more than {LARGEST_ODE} dimensions")
    star = latent.moments(0.0, case.answers.initial)
    mean, covariance, energy = steered.flow()
    error = ODE_ERROR * (1 + float(np.abs(steered.q.linear).max()) + latent.dim)
    case.zero("KL(X_1 of the moment equations || nu*)", gaussian_kl((mean, covariance), star), error)
    case.identity("energy, against KL(nu* || p_noise)", energy, gaussian_kl(star, latent.gaussian_start), error)
    control, worst, size = _second(case.problem).exact.control, 0.0, 1e-300
    z = steered.centre + 2 * steered.eta * case.rng.normal(size=(16, latent.dim))
    for t in (0.0, 0.3, 0.9):
        gain, offset = steered.drift(t)
        w = z @ gain.T + offset
        found = control(t, latent.lift(0.0, z)).numpy() @ latent.frame.basis
        worst, size = max(worst, float(np.abs(found - w).max())), max(size, float(np.abs(w).max()))
    case.zero("w* at points, relative", worst / size, rounding(1.0, condition=10.0, operations=1_000 * latent.dim))


@CLAIM.check(EXACT)
def start_for_which_it_fails(case: Case) -> None:
    """From N(m, eta^2 I / 2), kept as it is: the law of X_1 written out, and that it is not nu*."""
    no_running_reward(case)
    bench = Workbench.of(case)
    steered, latent = _steered(bench), bench.latent
    fixed, prior = _second(case.problem, SHARE).exact, latent.gaussian_start
    star, plain = latent.moments(0.0, case.answers.initial), steered.end(SHARE)
    error = rounding(1.0, condition=10.0, operations=1_000 * latent.dim)
    case.zero("KL(law of X_1 || formula), from a fixed Gaussian start",
              gaussian_kl(latent.moments(0.0, fixed.untilted_terminal), plain), error)  # fmt: skip
    missed, moved = gaussian_kl(plain, star), gaussian_kl(star, prior)
    if moved > 1e3 * error:
        note = f"KL(nu* || p_noise) = {moved:.3g}: the tilt of the start that is lost"
        case.bound("rounding, below KL(law of X_1 || nu*)", error, missed, note=note)


@CLAIM.check(DISCRETE)
def chain_of_a_few_steps(case: Case) -> None:
    """Euler is exact on Brownian motion: five steps with the chain's own optimal kernels end in nu* too."""
    no_running_reward(case)
    bench = Workbench.of(case)
    _steered(bench)
    latent, log_c = bench.latent, float(case.answers.log_normalizer)
    chain = _second(case.problem).discretise(EulerMaruyama(), TimeGrid.uniform(STEPS)).exact
    star = latent.moments(0.0, case.answers.initial)
    error = rounding(1.0, log_c, condition=10.0, operations=1_000 * STEPS * latent.dim)
    case.identity(f"log Z of {STEPS} steps, against log C", chain.log_normalizer, log_c, error)
    case.zero(f"KL(law after {STEPS} steps || nu*)", gaussian_kl(latent.moments(0.0, chain.terminal), star), error)
    kl = gaussian_kl(star, latent.gaussian_start)
    case.identity("KL of its paths, against KL(nu* || p_noise)", chain.path_kl, kl, error)


@CLAIM.check(DISCRETE)
def steps_under_the_drift(case: Case) -> None:
    """In one and two dimensions, where v(0, .) has other forms: an Euler step from x under w*, at the start and later.

    V(t, x) = log E e^{v(0, x + eta sqrt(1 - t) xi)/temperature}, by a rule over the second route's v: over a step
    E V(t', x') - dt |w*|^2 / 2 is V(t, x) up to dt^2, and V(0, m) at the start m is log C.
    """
    no_running_reward(case)
    bench, second = Workbench.of(case), _second(case.problem)
    latent = bench.latent
    if bench.affine or latent.dim > 2 or latent.codimension:
        raise NotApplicable("for mixtures in one and two dimensions")
    clean, control = latent.clean(0.0), FollmerDrift(second, NODES)
    xi, weights = normal_nodes(latent.dim, RULE)
    mean, covariance = latent.gaussian_start
    eta = float(np.sqrt(covariance[0, 0]))

    def log_mean(t: float, x: Array) -> Array:
        y = x[..., None, :] + eta * np.sqrt(1 - t) * xi
        growth = clean.log_growth(latent.rho, y.reshape(-1, latent.dim)).reshape(y.shape[:-1])
        return log_sum_exp(growth + np.log(weights), axis=-1)

    log_c, start = float(case.answers.log_normalizer), float(log_mean(0.0, mean))
    error = rounding(1.0, log_c, condition=100.0) + latent.log_normalizer()[1]
    case.identity("log E e^{v(0, X_1)/temperature} from the point, against log C", start, log_c, error)
    points = {0.0: mean[None], 0.5: mean + eta * case.rng.normal(size=(POINTS, latent.dim))}
    for t, x in points.items():
        state = torch.as_tensor(x)
        w, now, gaps = control(t, state), log_mean(t, x), []
        for count in HALVINGS:
            step = take_step(second.process, EulerMaruyama(), t, t + FIRST_STEP / count, state, np.eye(latent.dim), w)
            cost = step.dt / 2 * w.square().sum(1).numpy()
            gaps.append(rms(step.mean(log_mean(step.t_next, step.ends.numpy())) - cost - now))
        size = max(1.0, float(np.abs(now).max()))
        order_row(case, f"t = {t:g}: E V' - V - dt |w*|^2 / 2 over a step under w*", gaps, 2, size)


@CLAIM.check(MONTE_CARLO)
def simulated(case: Case) -> None:
    """Paths under Follmer's drift: the weights e^{v(0, X_1)/temperature} dQ/dQ^w have the mean C, X_1 its moments."""
    no_running_reward(case)
    bench, second = Workbench.of(case), _second(case.problem)
    affine = bench.affine
    control = second.exact.control if affine else FollmerDrift(second, NODES)
    n = case.paths if affine else case.paths // 10
    grid = TimeGrid.uniform(4 * STEPS if affine else STEPS)
    path = simulate(second.process, control, grid=grid, kernel=EulerMaruyama(), n=n, noise=Noise(case.seed),
                    keep="ends")  # fmt: skip
    log_weight = second.reward(path.terminal).double() / bench.temperature - path.log_ratio()
    weights = mild(torch.exp(log_weight - float(case.answers.log_normalizer)))
    error = rounding(1.0, condition=10.0, operations=1_000 * len(path.transitions))  # the weights may hardly vary
    case.sample("E e^{v(0, X_1)/temperature} dQ/dQ^w / C", Estimate.mean(weights), 1.0, bias=error)
    if affine:
        exact = moments(second.process, EulerMaruyama(), grid, control=control)
        kl, scale = Estimate.mean(path.weights.energy), max(exact.kl, float(path.weights.energy.std()))
        case.sample("cost of the simulated drift", kl, exact.kl, scale=scale, bias=error * exact.kl)
