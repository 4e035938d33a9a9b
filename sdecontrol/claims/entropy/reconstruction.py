"""Proposition 3.2, (3.3)-(3.5): the distance to the data law, with a prior mismatch and a score error."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.special import ndtr

from sdecontrol.claims.base import DISCRETE, EPS, EXACT, MONTE_CARLO, Case, NotApplicable, rounding
from sdecontrol.claims.entropy.tilt_bounds import PROPOSITION
from sdecontrol.claims.routes.draws import extrapolated
from sdecontrol.claims.routes.ode import check_smooth
from sdecontrol.claims.routes.output import ODE_ERROR
from sdecontrol.claims.routes.perturbed import gaussian_kl
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.schedule_formulas import log_alpha_and_h, prior_variance
from sdecontrol.claims.routes.static import (
    DRAWS,
    check_static,
    core,
    draws,
    draws_exactly,
    log_density,
    plain_laws,
    ramp,
    static,
)
from sdecontrol.estimate import Estimate
from sdecontrol.exact.continuum.riccati import RiccatiExact
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Gaussian, Isotropic, Law
from sdecontrol.models import PerturbedScore
from sdecontrol.moments import moments
from sdecontrol.problems.base import Problem
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import Linear
from sdecontrol.time import TimeGrid

SCORE_ERROR = 0.3  # epsilon sqrt(int sigma^2) of the biased score
LARGEST_SAMPLE = 2**24  # numbers drawn at once
LEVELS = 5  # of noise at which a schedule is compared with its own numbers
BIAS_STEPS = (32, 64, 128, 256)
STOP = 0.02  # level, over the horizon, at which chains stop whose steps must all have noise
SLOPE = 1.0  # of the linear reward on top of it, in units of the temperature and the data's standard deviation


def gaussian_data(problem: Problem) -> tuple[ReverseProcess, Gaussian]:
    """The process and its data law on latent coordinates. NotApplicable unless Gaussian with the exact score."""
    process = problem.process
    if not isinstance(process, ReverseProcess) or not process.has_exact_score:
        raise NotApplicable("the reconstruction bound is checked around the exact score of a Gaussian")
    law = core(process.data_law)
    if not isinstance(law, Gaussian):
        raise NotApplicable(
            f"a score error keeps the output Gaussian for Gaussian data only, not for a {type(law).__name__}"
        )
    return process, law


def integral_of_g2(process: ReverseProcess, low: float = 0.0) -> float:
    """int_low^T g^2 ds by the midpoint rule, whose 20 000 panels fit between the levels of a tabulated schedule."""
    edges = torch.linspace(low, process.horizon, 20_001, dtype=torch.float64)
    return float(process.schedule.g2((edges[1:] + edges[:-1]) / 2).sum()) * (process.horizon - low) / 20_000


@PROPOSITION.check(EXACT)
def reconstruction(case: Case) -> None:
    """(3.3)-(3.4) with a constant score error epsilon, along the direction of the reward: everything stays Gaussian.

    p_pre is the library's, by its moment equations; from the noised law it is the data law moved, solved again.
    """
    check_static(case.problem)
    check_smooth(case.problem.process)
    process, law = gaussian_data(case.problem)
    direction = torch.as_tensor(ramp(case.problem).direction)
    data, schedule, temperature = law.along(direction / direction.norm()), process.schedule, case.problem.temperature
    epsilon = SCORE_ERROR / math.sqrt(integral_of_g2(process))
    reward = Linear([SLOPE * temperature / math.sqrt(float(data.covariance))])
    noised = data.noised(schedule.alpha(process.horizon), schedule.h(process.horizon))
    starts = {"the noised law": noised, "p_noise": Gaussian([0.0], [schedule.prior_std**2])}
    for start, prior in list(starts.items())[: 1 if case.quick else 2]:
        biased = ReverseProcess(schedule, PerturbedScore(data, bias=epsilon), initial=prior)
        reference = RiccatiExact(biased, reward, None, temperature).reference  # a linear reward: nothing to check first
        terminal = reference.tilt(reward, temperature)
        if prior is noised:
            shift = biased_shift(process, float(data.covariance), epsilon)
            error = 10 * ODE_ERROR * (1 + abs(float(data.mean)) + shift)
            case.identity("shift of p_pre by a biased score", float(reference.mean - data.mean), shift, error)
        mismatch = normal_tv(noised, prior)
        right, note = mismatch + SCORE_ERROR / 2, f"prior {mismatch:.3g} + score {SCORE_ERROR / 2:.3g}"
        case.bound(f"TV(p_pre, p_data) from {start}", normal_tv(reference, data), right, 10 * ODE_ERROR, note=note)
        both = gaussian_kl(*_moments(reference), *_moments(terminal)) + gaussian_kl(
            *_moments(terminal), *_moments(reference)
        )
        moved = math.sqrt(both) / 2
        case.bound(f"TV(p_ft, p_data) from {start}", normal_tv(terminal, data), right + moved, 10 * ODE_ERROR,
                   note=f"{note} + reward {moved:.3g}")  # fmt: skip


@PROPOSITION.check(EXACT)
def noise_schedule(case: Case) -> None:
    """alpha, h and the standard start, on which the prior's term rests, from the numbers the schedule was made with."""
    process = case.problem.process
    if not isinstance(process, ReverseProcess):
        raise NotApplicable("a general diffusion has no noise schedule")
    schedule, fractions = process.schedule, np.linspace(0.2, 1.0, LEVELS)
    log_alpha, h = log_alpha_and_h(schedule, fractions)
    levels = [float(fraction) * process.horizon for fraction in fractions]
    alphas, found = (np.array([f(s) for s in levels]) for f in (schedule.log_alpha, schedule.h))
    size, error = max(1.0, float(np.abs(log_alpha).max())), rounding(1.0, condition=10.0)
    gap = float(np.abs(alphas - log_alpha).max())
    case.zero("log alpha from the schedule's own numbers", gap, size * error, scale=size, note=f"{LEVELS} levels")
    case.zero("h from the schedule's own numbers, over h", float(np.abs(found / h - 1).max()), error)
    start = ReverseProcess(schedule, Isotropic(process.event_shape, 1.0)).initial_law()
    points = torch.stack([torch.zeros(process.event_shape), torch.ones(process.event_shape)]).double()
    at_zero, at_one = start.log_prob(points).tolist()
    variance, wanted = process.dim / (2 * (at_zero - at_one)), prior_variance(schedule)
    case.identity("variance of the standard start", variance, wanted, error * wanted * (1 + abs(at_zero) * wanted))


@PROPOSITION.check(DISCRETE)
def score_error(case: Case) -> None:
    """(3.4) for chains, whatever the data: a score off by epsilon moves a step's mean by c_f epsilon, so the path KL is

    epsilon^2/2 sum_k (c_f/std)^2, which tends to epsilon^2/2 int g^2 (derived); the chains stop short of the data.
    """
    process, kernel = case.problem.process, case.problem.process.default_kernel
    if not isinstance(process, ReverseProcess):
        raise NotApplicable("(3.4) is about the score of a reverse diffusion")
    check_smooth(process)
    sums = [_path_kl_of_bias(process, kernel, _open_grid(k)) for k in BIAS_STEPS]
    limit, error = extrapolated(sums)
    truth = integral_of_g2(process, STOP * process.horizon)
    case.identity("sum of (c_f/std)^2 as the steps vanish = int g^2", limit, truth, error)
    process, law = gaussian_data(case.problem)
    direction = torch.as_tensor(ramp(case.problem).direction)
    data, epsilon = law.along(direction / direction.norm()), SCORE_ERROR / math.sqrt(truth)
    prior = Gaussian([0.0], [process.schedule.prior_std**2])
    grid = _open_grid(BIAS_STEPS[0] // 2)
    ends = []
    for bias in (0.0, epsilon):
        biased = ReverseProcess(process.schedule, PerturbedScore(data, bias=bias), initial=prior)
        found = moments(biased, kernel, grid)
        ends.append(Gaussian(found.means[-1], found.covariances[-1]))
    right = epsilon * math.sqrt(_path_kl_of_bias(process, kernel, grid)) / 2
    error = rounding(1.0, operations=100 * grid.steps)
    case.bound(f"chain: TV of p_pre by a biased score, {grid.steps} steps", normal_tv(*ends), right, error)


def _open_grid(steps: int) -> TimeGrid:
    return TimeGrid.log_snr(steps, s_min=STOP, close=False)


def _path_kl_of_bias(process: ReverseProcess, kernel: Kernel, grid: TimeGrid) -> float:
    """sum_k (c_f/std)^2: twice the KL of the paths under a score that is off by one."""
    times = [float(t) for t in grid.resolve(process).times]
    numbers = [kernel.coefficients(process, t, t_next) for t, t_next in zip(times[:-1], times[1:])]
    if min(std for _, _, std in numbers) == 0:
        raise NotApplicable("a kernel without noise has no path KL")
    return sum((weight / std) ** 2 for _, weight, std in numbers)


def _moments(law: Law) -> tuple[Array, Array]:
    return law.mean.numpy(), law.covariance.numpy()


def biased_shift(process: ReverseProcess, variance: float, epsilon: float) -> float:
    """The mean of Y_T minus the data's, by m' = (-f - g^2/S) m + g^2 epsilon from 0, S = a^2 variance + h."""
    schedule, horizon = process.schedule, process.horizon

    def rate(t: float, m: Array) -> Array:
        s = max(horizon - t, 0.0)
        noisy = schedule.alpha(s) ** 2 * variance + schedule.h(s)
        return (-schedule.f(s) - schedule.g2(s) / noisy) * m + schedule.g2(s) * epsilon

    return float(solve_ivp(rate, (0.0, horizon), [0.0], method="DOP853", rtol=1e-12, atol=1e-13).y[0, -1])


def normal_tv(p: Law, q: Law) -> float:
    """Total variation of two Gaussians on the line, between the roots of their log ratio."""
    (m, v), (n, w) = ((float(law.mean), float(law.covariance)) for law in (p, q))
    bend, slope = 1 / w - 1 / v, m / v - n / w
    constant = n * n / w - m * m / v + math.log(w / v)
    roots = np.roots([bend, 2 * slope, constant] if abs(bend) > 1e-9 / w else [2 * slope, constant])
    edges = np.concatenate([[-math.inf], np.sort(roots.real[np.abs(roots.imag) < 1e-12]), [math.inf]])
    masses = np.diff(ndtr((edges - m) / math.sqrt(v))) - np.diff(ndtr((edges - n) / math.sqrt(w)))
    return float(np.abs(masses).sum()) / 2


@PROPOSITION.check(MONTE_CARLO)
def prior_term(case: Case) -> None:
    """(3.5), VP: d_TV(p_T, N(0, I)) against both derived bounds, e^{-B} = alpha(T)^2."""
    process = case.problem.process
    if not isinstance(process, ReverseProcess) or not process.has_exact_score:
        raise NotApplicable("p_T is known for an exact score only")
    a, h = process.schedule.alpha(process.horizon), process.schedule.h(process.horizon)
    if abs(h - (1 - a * a)) > 8 * EPS:
        raise NotApplicable("(3.5) is about variance-preserving noise, h = 1 - alpha^2")
    noised, d = process.noised(0.0), process.dim
    prior, n = Isotropic(process.event_shape, 1.0), min(DRAWS, LARGEST_SAMPLE // d)
    x = noised.sample(n, case.noise, "p_T").to(torch.float64)
    distance = Estimate.mean(np.clip(-np.expm1(prior.log_prob(x).numpy() - noised.log_prob(x).numpy()), 0, None))
    data = process.data_law
    clean = data.sample(n, case.noise, "p_data").to(torch.float64)
    squares = Estimate.mean(clean.square().flatten(1).sum(1))
    excess = a * a * squares.value - d * (a * a + math.log(h))
    right = Estimate(math.sqrt(excess) / 2, a * a * float(squares.stderr) / (4 * math.sqrt(excess)), squares.n)
    case.sample_bound("TV(p_T, N(0,I)), the noised form of (3.5)", distance, right)
    if data is not core(data):
        raise NotApplicable("KL(p_data, N(0, I)) is infinite for data on a subspace: the second form says nothing")
    kl = Estimate.mean(data.log_prob(clean).numpy() - prior.log_prob(clean).numpy())
    root = math.sqrt(max(float(kl.value), 1e-300) / 2)
    case.sample_bound("TV(p_T, N(0,I)), the form with KL(p_data, N(0,I))", distance,
                      Estimate(a * root, a * float(kl.stderr) / (4 * root), kl.n))  # fmt: skip


@PROPOSITION.check(MONTE_CARLO)
def distance_from_data(case: Case) -> None:
    """(3.3): d_TV(p_ft, p_data) <= d_TV(p_pre, p_data) + sqrt(D)/2 for the problem as it is, with its prior."""
    route, process = static(case.problem), case.problem.process
    if not isinstance(process, ReverseProcess) or not process.has_exact_score:
        raise NotApplicable("the data law is known for an exact score only")
    if process.initial == "marginal":
        raise NotApplicable("started from its noised law p_pre is p_data, so (3.3) is the bound on TV(p_ft, p_pre)")
    cheap = draws_exactly(case.answers.terminal)
    n = DRAWS if cheap else (300 if case.quick else 600)  # a density is then a quadrature a point
    distance = {}
    plain, tilted = plain_laws(case)
    for name, law, other in (("p_ft", case.answers.terminal, tilted), ("p_pre", case.answers.reference, plain)):
        x = draws(case, law, other, f"{name} for data", n)
        log_ratio = log_density(process.data_law, x) - log_density(law, x)
        distance[name] = Estimate.mean(np.clip(-np.expm1(log_ratio), 0, None))
    right = distance["p_pre"] + math.sqrt(route.divergence) / 2
    case.sample_bound("TV(p_ft, p_data) <= TV(p_pre, p_data) + sqrt(D)/2", distance["p_ft"], right)
