"""Beyond KL: the best laws for four divergences at one temperature, and the temperatures below which there is none.

p_pre = N(0, 1), r = 1/(1 + e^{-2x}) between 0 and 1. max_p E_p r - temperature D_f(p || p_pre) has dp/dp_pre = w(r).
Forward KL and gamma-divergences lose their maximiser at gamma (E_pre (sup r - r)^{-1/gamma})^{-gamma} (derived).
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.integrate import quad
from scipy.stats import norm

import sdecontrol as sc
from experiments.record import record

TEMPERATURE, GAMMA = 0.3, 0.5
PEAK = 0.3  # where the reward of the existence check has its supremum
DIVERGENCES = {
    "KL": sc.laws.KL(),
    "forward KL": sc.laws.ForwardKL(),
    "gamma 0.5": sc.laws.GammaDivergence(GAMMA),
    "chi-square": sc.laws.ChiSquare(),
}
LEVELS = [k / 40 for k in range(41)]


def reward(x: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(2 * x[:, 0])


def mean(f: Any) -> float:
    """E f(X), X ~ N(0, 1)."""
    return sum(quad(lambda x: f(x) * norm.pdf(x), a, b, epsabs=1e-13)[0] for a, b in ((-12, -1), (-1, 1), (1, 12)))


def row(divergence: Any) -> dict[str, Any]:
    found = sc.laws.surrogate(sc.Gaussian(0.0, 1.0), reward, TEMPERATURE, divergence, 1.0)
    at = lambda x: torch.tensor([[x]], dtype=torch.float64)  # noqa: E731
    weight = lambda x: float(found.weight(at(x)))  # noqa: E731
    square = mean(lambda x: weight(x) ** 2)
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    return {
        "mass": mean(weight),
        "reward": mean(lambda x: weight(x) * float(reward(at(x)))),
        "value": found.value,
        "largest_weight": weight(12.0),
        "chi2": square - 1,
        "weights": divergence.weight(levels, found.multiplier, TEMPERATURE).tolist(),
    }


def smallest_temperature(gamma: float, centre: float) -> float:
    """Below it there is no maximiser, for r = 1 - |x - centre|^(1/2) / 4 near its supremum at `centre`, cut at 0."""
    gap = lambda x: min(abs(x - centre) ** 0.5 / 4, 1.0)  # noqa: E731
    inner = [centre - 16, -1, centre, centre + 16]
    total = sum(quad(lambda x: gap(x) ** (-1 / gamma) * norm.pdf(x), a, b, epsabs=1e-12, limit=200)[0]
                for a, b in zip(inner[:-1], inner[1:]))  # fmt: skip
    return gamma * total**-gamma


def refused_at(temperature: float, divergence: Any, peak: Any) -> float | None:
    """The smallest temperature that the library names when it refuses this one."""
    try:
        sc.laws.surrogate(sc.Gaussian(0.0, 1.0), peak, temperature, divergence, 1.0)
    except sc.NoTilt as error:
        return error.smallest_temperature
    return None


def measure() -> dict[str, Any]:
    rows = {name: row(divergence) for name, divergence in DIVERGENCES.items()}
    peak = lambda x: 1 - ((x[:, 0] - PEAK).abs().sqrt() / 4).clamp(max=1.0)  # noqa: E731
    wanted = smallest_temperature(1.0, PEAK)
    return {
        "temperature": TEMPERATURE,
        "levels": LEVELS,
        "rows": rows,
        "reward_before": mean(lambda x: float(reward(torch.tensor([[x]], dtype=torch.float64)))),
        "largest_mass_error": max(abs(r["mass"] - 1) for r in rows.values()),
        "forward_kl_smallest": wanted,
        "forward_kl_named": refused_at(0.9 * wanted, sc.laws.ForwardKL(), peak),
        "forward_kl_above": refused_at(1.1 * wanted, sc.laws.ForwardKL(), peak) is None,
    }


def main() -> None:
    record("f_divergence", measure())


if __name__ == "__main__":
    main()
