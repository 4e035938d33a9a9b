"""Prop. 3.7: how far an imperfect control and initial law leave the output from the tilt."""

from __future__ import annotations

import math

import numpy as np
import torch

from sdecontrol.claims.base import EXACT, MONTE_CARLO, Case, Claim, NotApplicable
from sdecontrol.claims.ode import Measured
from sdecontrol.claims.pairs import THETA
from sdecontrol.claims.posterior import gaussian, gaussian_kl
from sdecontrol.claims.quadrature import Array
from sdecontrol.claims.workbench import Workbench, no_running_reward
from sdecontrol.estimate import Estimate

NAMES = {
    "weak": f"{THETA} u*, nu*",
    "weak, untilted": f"{THETA} u*, p_noise",
    "weak, shifted": f"{THETA} u*, shifted p_noise",
    "untilted": "u*, p_noise",
    "reference": "no control, p_noise",
    "affine 1": "affine u, Gaussian nu",
}

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
        case.sample_bound(f"{title}: TV(p_ft, p_hat) <= eps/2", found, half_eps(_half_square_error(bench, name).value))


@CLAIM.check(MONTE_CARLO)
def mixtures(case: Case) -> None:
    """Mixtures: eps by exact draws of Q*; KL at u_hat = 0; mass above the median reward under the weakened u*."""
    no_running_reward(case)
    bench, latent = Workbench.of(case), Workbench.of(case).latent
    if len(latent.known_data.clouds) == 1:
        raise NotApplicable("Gaussian data are settled by the moment equations")
    draws, (initial, energy, bias) = bench.optimal_draws, bench.optimal_costs
    half = Estimate.mean(draws.weights * (energy + initial))
    case.sample("no control, p_noise: KL(p_ft||p_pre) = eps^2/2", half, case.answers.path_kl, bias=bias)
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
