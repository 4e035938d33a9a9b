"""Prop. 3.7: how far an imperfect control and initial law leave the output from the tilt."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.routes.atoms import relative_entropy
from sdecontrol.claims.routes.atoms_start import STARTS, starts_of
from sdecontrol.claims.routes.ends import tilted_distance, tilted_kl
from sdecontrol.claims.routes.generator import Place, growth, places, residual_row
from sdecontrol.claims.routes.ode import Feedback, Measured
from sdecontrol.claims.routes.pairs import THETA
from sdecontrol.claims.routes.posterior import gaussian, gaussian_kl
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.schedule_chain import COARSE, PlainChain, own_chain, vanishing
from sdecontrol.claims.routes.workbench import Workbench, mixture_of, no_running_reward
from sdecontrol.estimate import Estimate

if TYPE_CHECKING:
    from sdecontrol.exact.continuum.base import ContinuumExact
    from sdecontrol.problems.base import Problem

NAMES = {
    "weak": f"{THETA} u*, nu*",
    "weak, untilted": f"{THETA} u*, p_noise",
    "weak, shifted": f"{THETA} u*, shifted p_noise",
    "untilted": "u*, p_noise",
    "reference": "no control, p_noise",
    "affine 1": "affine u, Gaussian nu",
}

PARTS = (0.0, 0.5)  # of the reward, of which (u_hat, nu_hat) is the optimum

CLAIM = Claim(
    "prop-3.7",
    "An imperfect control and initial law: TV(p_ft, p_hat) <= eps/2",
    "Tang 2403.06279, Prop. 3.7, (3.33); constant and form: derived",
    r"""KL(p_ft \| \hat p) \le KL(Q^* \| \hat Q)
= KL(\nu^* \| \hat\nu) + \frac12 E_{Q^*} \int |u^* - \hat u|^2 dt =: \bar\epsilon^2 / 2,
hence d_{TV}(p_ft, \hat p) \le \bar\epsilon / 2; an equality of the KLs at \hat u = 0, \hat\nu = p_noise.""",
)


@CLAIM.check(EXACT)
def by_moment_equations(case: Case) -> None:
    """Affine problems: the chain of inequalities for five pairs, all Gaussian; TV on the line by quadrature."""
    no_running_reward(case)
    bench = Workbench.of(case)
    star = bench.latent.moments(bench.horizon, case.answers.terminal)
    bench.flow  # noqa: B018  raises NotApplicable
    for name, title in _pairs(bench).items():
        half = _half_square_error(bench, name)
        end = _terminal_kl(bench, star, name)
        error = end.error + half.error
        if name == "reference":
            case.identity(f"{title}: KL(p_ft||p_hat) = eps^2/2", end.value, half.value, error)
            case.identity(f"{title}: KL(Q*||Q) = eps^2/2", case.answers.path_kl, half.value, half.error)
        else:
            case.bound(f"{title}: KL(p_ft||p_hat) <= eps^2/2", end.value, half.value, error)
        if bench.latent.dim == 1:
            distance = _total_variation(star, bench.flow.fine.moments(name))
            case.bound(f"{title}: TV(p_ft, p_hat) <= eps/2", distance, half_eps(half.value), math.sqrt(error))


@CLAIM.check(EXACT)
def tilts_of_mixtures(case: Case) -> None:
    """Mixtures in any dimension: (u_hat, nu_hat) the optimum for a part of the reward or none of it; its law is known.

    There log dQ*/dQ_hat depends on Y_T only, so the KLs are equal; A* log dQ*_t/dQ_hat_t = |u* - u_hat|^2 / 2 at points
    is the rate at which eps^2/2 grows. TV along the gradient of the reward at the mean, which bounds TV from below.
    """
    no_running_reward(case)
    latent, answers = mixture_of(case), case.answers
    mean = float(answers.path_kl + answers.log_normalizer)
    for share in PARTS:
        part = _optimum_for(case.problem, share) if share else None
        title = f"optimum for {share} r" if part else "no control, p_noise"

        def sides(place: Place, part: ContinuumExact | None = part, share: float = share) -> tuple[Array, Array, Array]:
            u = place.asked(answers.control)
            rate, error = growth(place).rate(u)
            if part is None:
                return rate, (u**2).sum(1) / 2, error
            rate_of_part, error_of_part = growth(place, share).rate(u)
            apart = u - place.asked(part.control)
            return rate - rate_of_part, (apart**2).sum(1) / 2, error + error_of_part

        residual_row(case, f"{title}: A* log dQ*_t/dQ_hat_t - |u* - u_hat|^2 / 2 at points", map(sides, places(case)))
        divergence, error = tilted_kl(latent, share)
        half = (1 - share) * mean - float(answers.log_normalizer) + (float(part.log_normalizer) if part else 0.0)
        case.identity(f"{title}: KL(p_ft||p_hat) = eps^2/2", divergence, half, error)
        distance, error = tilted_distance(latent, share)
        case.bound(f"{title}: TV(p_ft, p_hat) <= eps/2, along grad r", distance, half_eps(half), error)


@CLAIM.check(DISCRETE)
def chain(case: Case) -> None:
    """The chain's own optimum against pairs: KL(p_ft || p_hat) <= eps^2/2, equal without control from p_noise.

    eps^2/2 = KL(nu* || nu_hat) + the steps' KL, by regression on the end; it is least at the chain's best shift.
    """
    no_running_reward(case)
    exact, plain, _, error = own = own_chain(case)
    latent, optimum = Workbench.of(case).latent, own.optimum
    star = latent.moments(case.problem.process.horizon, exact.terminal)
    start, best = latent.moments(0.0, exact.initial), plain.asked(lambda t: latent.read(exact.control, t))
    kl = gaussian_kl(star, plain.moments[-1])
    case.identity("chain: no control, p_noise: KL(p_ft||p_hat) = eps^2/2", kl, exact.kl_initial + exact.energy, error)
    costs = [optimum.cost(k, one) for k, one in enumerate(best)]
    slope = sum(along - square for along, square in costs)
    case.zero("chain: slope of eps^2/2 at u = u*", slope, error, scale=sum(square for _, square in costs))
    pairs = {f"{THETA} u*, nu*": (start, THETA), "u*, p_noise": (plain.start, 1.0), "no control, nu*": (start, 0.0)}
    for title, (begin, strength) in pairs.items():
        weak = [(strength * gain, strength * offset) for gain, offset in best]
        half, end = optimum.half_square_error(begin, weak), plain.driven(begin, weak)
        case.bound(f"chain: {title}: KL(p_ft||p_hat) <= eps^2/2", gaussian_kl(star, end), half, error)
        if latent.dim == 1:
            apart = _total_variation(star, end)
            case.bound(f"chain: {title}: TV(p_ft, p_hat) <= eps/2", apart, half_eps(half), math.sqrt(error))


@CLAIM.check(DISCRETE)
def finer_chains(case: Case) -> None:
    """eps^2/2 of a part of u* from nu*, both the continuum's, on ever finer chains: (1 - theta)^2 of the energy."""
    no_running_reward(case)
    answers, latent = case.answers, Workbench.of(case).latent
    start = latent.moments(0.0, answers.initial)

    @cache
    def weak(t: float) -> Feedback:
        gain, offset = latent.read(answers.control, t)
        return THETA * gain, THETA * offset

    def half(chain: PlainChain) -> float:
        return chain.under(chain.law.tilt(latent.rho)).half_square_error(start, chain.asked(weak))

    found, error = vanishing(case, half, COARSE)
    energy = float(answers.path_kl - answers.kl_initial)
    case.identity(f"{THETA} u*, nu*: eps^2/2 as the steps vanish", found, (1 - THETA) ** 2 * energy, error)


@CLAIM.check(DISCRETE)
def atoms(case: Case) -> None:
    """Finitely many starts of an exact score, no control: eps^2/2 is a sum, and bounds what labels tell apart.

    The label is the component of the data that Y_T belongs to: its law is seen by p_ft and p_hat alike.
    """
    no_running_reward(case)
    latent, starts, answers = Workbench.of(case).latent, starts_of(case), case.answers
    if len(latent.known_data.clouds) == 1:
        raise NotApplicable("Gaussian data are settled by the chain")
    ratio = answers.initial.log_prob(starts.y) - case.problem.process.initial_law(0.0).log_prob(starts.y)
    star, uniform = ratio.softmax(0).numpy(), np.full(STARTS, 1 / STARTS)
    value = answers.value(0.0, starts.y).numpy() / case.problem.temperature
    initial, inside = relative_entropy(star, uniform), float(star @ (starts.mean_rho - value))
    plain = starts.labels
    pairs = {
        "no control, p_noise": (initial + inside, plain @ uniform),
        "no control, nu*": (inside, plain @ star),
    }
    whole = float(starts.weights @ starts.mean_rho) - starts.log_c
    title = f"{STARTS} starts: no control, p_noise: KL(p_ft||p_hat) = eps^2/2"
    size = float(answers.initial.log_prob(starts.y).abs().max())
    error = (starts.error + rounding(size)) * (1 + float(np.ptp(starts.mean_rho)))
    case.identity(title, initial + inside, whole, error)
    seen = starts.tilted_labels @ star
    for title, (half, other) in pairs.items():
        case.bound(f"{STARTS} starts: {title}: KL of the labels <= eps^2/2", relative_entropy(seen, other), half, error)
        apart = float(np.abs(seen - other).sum()) / 2
        case.bound(f"{STARTS} starts: {title}: TV of the labels <= eps/2", apart, half_eps(half), math.sqrt(error))


@CLAIM.check(MONTE_CARLO)
def total_variation(case: Case) -> None:
    """Affine problems: TV(p_ft, p_hat) = E_{p_ft} (1 - p_hat/p_ft)_+ by draws of p_ft, both Gaussian."""
    no_running_reward(case)
    bench = Workbench.of(case)
    bench.flow  # noqa: B018  raises NotApplicable
    law = gaussian(*bench.latent.moments(bench.horizon, case.answers.terminal))
    x = law.draw(case.paths, case.rng)
    own = law.log_density(x)
    for name, title in _pairs(bench).items():
        other = gaussian(*bench.flow.fine.moments(name)).log_density(x)
        found = Estimate.mean(np.clip(-np.expm1(np.minimum(other - own, 0.0)), 0.0, 1.0))
        half = _half_square_error(bench, name)
        case.sample_bound(f"{title}: TV(p_ft, p_hat) <= eps/2", found, half_eps(half.value + half.error))


@CLAIM.check(MONTE_CARLO)
def mixtures(case: Case) -> None:
    """Mixtures: eps by exact draws of Q*; KL at u_hat = 0; mass above the median reward under the weakened u*."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), mixture_of(case)
    draws, (initial, energy, bias) = bench.optimal_draws, bench.optimal_costs
    half = Estimate.mean(draws.weights * (energy + initial))
    case.sample("no control, p_noise: KL(p_ft||p_pre) = eps^2/2", half, case.answers.path_kl, bias=bias,
                note=f"z is of what exceeds {bias:.2g}, the error of the rule in time")  # fmt: skip
    bench.check_grids()
    weak = Estimate.mean(draws.weights * energy) * (1 - THETA) ** 2
    slack = half_eps(weak.value)
    bound = Estimate(slack, weak.stderr / (4 * slack), weak.n, "exact draws")
    reward = latent.rho(draws.clean)
    median = float(np.median(reward))
    above = Estimate.mean(draws.weights * (reward > median))

    def events(level: int) -> torch.Tensor:
        path = bench.path("weak", level)
        return bench.start_weights(path) * (case.problem.reward(path.terminal).double() / bench.temperature > median)

    mass, bias = bench.extrapolated(events, 1.0)
    found = Estimate(abs(mass.value - above.value) - bias, math.hypot(mass.stderr, above.stderr), mass.n)
    title = f"{THETA} u*, nu*: difference of the mass of an event <= eps/2"
    case.sample_bound(title, found, bound, note=f"the left side less {bias:.2g} for the steps")


@lru_cache(maxsize=2)
def _optimum_for(problem: Problem, share: float) -> ContinuumExact:
    """The library's answers for a part of the reward, which is the whole of it at a higher temperature."""
    return type(problem)(problem.process, problem.reward, problem.temperature / share).exact


def _pairs(bench: Workbench) -> dict[str, str]:
    """The pairs (u_hat, nu_hat) among those that were solved for."""
    return {name: title for name, title in NAMES.items() if name in bench.flow.members}


def _half_square_error(bench: Workbench, name: str) -> Measured:
    """KL(nu*||nu_hat) + E* int |u* - u_hat|^2 / 2 of a pair."""
    member = bench.flow.members[name]
    initial = gaussian_kl(bench.latent.moments(0.0, bench.answers.initial), (member.mean, member.covariance))
    return bench.read(lambda s: initial + s.from_best(name))


def _terminal_kl(bench: Workbench, star: tuple[Array, Array], name: str) -> Measured:
    """KL(p_ft || p_hat)."""
    return bench.read(lambda s: gaussian_kl(star, s.moments(name)))


def half_eps(half_square: float) -> float:
    """eps/2 from eps^2/2."""
    return math.sqrt(max(half_square, 0.0) / 2)


def _total_variation(first: tuple[Array, Array], second: tuple[Array, Array]) -> float:
    """On the line, by the trapezoidal rule on 20 000 points (an error of their spacing squared)."""
    means, stds = [m[0] for m, _ in (first, second)], [math.sqrt(c[0, 0]) for _, c in (first, second)]
    x = np.linspace(min(means) - 9 * max(stds), max(means) + 9 * max(stds), 20_001)
    p, q = (np.exp(-(((x - m) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi)) for m, s in zip(means, stds))
    return float(np.trapezoid(np.abs(p - q), x)) / 2
