"""What keeping the initial law p_noise costs, against the correlation rho of noise and output.

Start from the noised data law ("marginal"), data N(0, 1): rho = corr(Y_0, Y_T) = a/sqrt(a^2 + h). The best objective
falls short of temperature log C by temperature KL(p_noise || nu*), and u* from p_noise ends in another law than p_ft.
Both are of order rho^2 and the same for VP and VE at the same rho (derived).

Then a mixture started from N(0, 1) instead of its noised law: the prior mismatch TV(p_pre, p_data) and
TV(p_ft, tilted data) beside TV(p_ft, law of Y_T from p_noise under u*), the cost of forgetting nu*.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

import sdecontrol as sc
from experiments.record import record

CORRELATIONS = np.geomspace(0.02, 0.6, 12).tolist()
REWARDS = {"linear": sc.Linear([1.0]), "quadratic": sc.Quadratic([1.0], [[0.8]])}
MIXTURE = sc.GaussianMixture([0.35, 0.65], [[-2.0], [1.0]], [[[1.0]], [[1.0]]])
MIXTURE_REWARD, MIXTURE_TEMPERATURE = sc.Quadratic([1.0], [[0.2]]), 1.5


def vp(rho: float) -> sc.VP:
    """alpha(T)^2 = rho^2, for h = 1 - alpha^2 and unit data."""
    beta = -2 * math.log(rho)
    return sc.VP(beta, beta)


def ve(rho: float) -> sc.VE:
    """h(T) = 1/rho^2 - 1; h = sigma_max^2 - sigma_min^2."""
    return sc.VE(0.01, math.sqrt(1 / rho**2 - 1 + 1e-4))


def cost(schedule: Any, reward: sc.Quadratic, rho: float) -> dict[str, float]:
    process = sc.ReverseProcess(schedule, sc.Gaussian(0.0, 1.0), "marginal")
    exact = sc.Problem(process, reward, 1.0).exact
    a, h = schedule.alpha(schedule.horizon), schedule.h(schedule.horizon)
    return {
        "rho": a / math.sqrt(a * a + h),
        "asked": rho,
        "cost": exact.optimum - exact.objective_untilted,
        "kl": sc.laws.kl(process.initial_law(), exact.initial),
        "tv": float(sc.laws.tv(exact.untilted_terminal, exact.terminal)),
        "optimum": exact.optimum,
    }


def untilted_law(problem: sc.Problem, points: torch.Tensor) -> torch.Tensor:
    """Density of Y_T from p_noise under u*: int p_noise(dy) pi(x | y) e^{(r(x) - v(0, y))/temperature}, 1-D.

    pi(x | y) is proportional to p_data(x) N(y; a x, h). A trapezoidal rule over y.
    """
    process = problem.process
    assert isinstance(process, sc.ReverseProcess)
    schedule = process.schedule
    a, h = schedule.alpha(schedule.horizon), schedule.h(schedule.horizon)
    y = torch.linspace(-9, 9, 1201, dtype=torch.float64)[:, None]
    value = problem.exact.value(0.0, y) / problem.temperature
    log_start = process.initial_law().log_prob(y) - process.noised(0.0).log_prob(y) - value
    x = points[:, None]
    log_kernel = -((y.mT - a * x) ** 2) / (2 * h) - 0.5 * math.log(2 * math.pi * h)
    log_p = process.data_law.log_prob(x) + problem.reward(x) / problem.temperature
    return torch.trapezoid((log_p[:, None] + log_kernel + log_start).exp(), y[:, 0], dim=1)


def mismatch() -> dict[str, float]:
    process = sc.ReverseProcess(sc.VP(0.1, 8.0), MIXTURE)
    problem = sc.Problem(process, MIXTURE_REWARD, MIXTURE_TEMPERATURE)
    exact, data = problem.exact, MIXTURE
    x = torch.linspace(-9, 9, 3601, dtype=torch.float64)
    kept, tilted = untilted_law(problem, x), exact.terminal.log_prob(x[:, None]).exp()
    a, h = process.schedule.alpha(1.0), process.schedule.h(1.0)
    variance = float(data.covariance)
    return {
        "a_T": a,
        "rho": a * math.sqrt(variance / (a * a * variance + h)),
        "tv_pre_data": float(sc.laws.tv(exact.reference, data)),
        "tv_ft_tilted_data": float(sc.laws.tv(exact.terminal, data.tilt(MIXTURE_REWARD, MIXTURE_TEMPERATURE))),
        "tv_untilted": float(torch.trapezoid((kept - tilted).abs(), x)) / 2,
        "mass_of_untilted": float(torch.trapezoid(kept, x)),
        "tv_prior": float(sc.laws.tv(process.noised(0.0), process.initial_law())),
    }


def measure() -> dict[str, Any]:
    found: dict[str, Any] = {"mixture": mismatch()}
    for name, reward in REWARDS.items():
        curves = {which: [cost(make(rho), reward, rho) for rho in CORRELATIONS]
                  for which, make in (("VP", vp), ("VE", ve))}  # fmt: skip
        rows = curves["VP"]
        slope = lambda key: math.log(rows[1][key] / rows[0][key]) / math.log(rows[1]["rho"] / rows[0]["rho"])  # noqa: E731, B023
        pairs = list(zip(curves["VP"], curves["VE"]))
        found[name] = {
            **curves,
            "slope_cost": slope("cost"),
            "slope_tv": slope("tv"),
            "vp_ve_deviation": max(abs(p[key] / q[key] - 1) for p, q in pairs for key in ("cost", "tv")),
            "kl_deviation": max(abs(row["cost"] / row["kl"] - 1) for row in rows),
            "largest": rows[-1],
        }
    return found


def main() -> None:
    record("untilted_start", measure())


if __name__ == "__main__":
    main()
