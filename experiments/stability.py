"""Prop. 3.7: TV(p_ft, p_hat) against eps/2 for u_hat = theta u*, from nu* and from p_noise, VP and VE.

eps^2 = 2 KL(nu* || nu_hat) + E* int |u* - u_hat|^2 with expectations under the optimum (derived). Laws by the moment
equations in continuous time; at theta = 0 from p_noise KL(p_ft || p_hat) = eps^2/2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import sdecontrol as sc
from experiments.affine import controlled, half_square, terminal
from experiments.record import record

THETAS = np.linspace(-1.0, 2.0, 13).tolist()
SCHEDULES = {"VP": sc.VP(0.1, 5.0), "VE": sc.VE(0.1, 3.0)}
SLACK = 1e-9


def problem(schedule: Any) -> sc.Problem:
    return sc.Problem(sc.ReverseProcess(schedule, sc.Gaussian(0.5, 0.6)), sc.Quadratic([1.0], [[0.8]]), 0.5)


def row(made: sc.Problem, theta: float, start: str, energy: float) -> dict[str, float]:
    exact = made.exact
    initial = exact.initial if start == "nu_star" else made.process.initial_law()
    output = terminal(controlled(made, theta * exact.control, initial))
    half_eps_square = sc.laws.kl(exact.initial, initial) + (1 - theta) ** 2 * energy
    return {
        "theta": theta,
        "tv": float(sc.laws.tv(exact.terminal, output)),
        "half_eps": math.sqrt(half_eps_square / 2),
        "kl": sc.laws.kl(exact.terminal, output),
        "half_eps_square": half_eps_square,
    }


def measure() -> dict[str, Any]:
    found: dict[str, Any] = {}
    violations, worst = 0, 0.0
    for name, schedule in SCHEDULES.items():
        made = problem(schedule)
        energy = half_square(controlled(made, made.exact.control, made.exact.initial), made.exact.control, 64)
        found[name] = {start: [row(made, theta, start, energy) for theta in THETAS] for start in ("nu_star", "p_noise")}
        found[name]["energy"], found[name]["energy_deviation"] = energy, abs(energy - made.exact.energy)
        reference = next(r for r in found[name]["p_noise"] if r["theta"] == 0)
        found[name]["reference_deviation"] = abs(reference["kl"] - reference["half_eps_square"])
        found[name]["kept_start"] = next(r for r in found[name]["p_noise"] if r["theta"] == 1)
        rows = [r for start in ("nu_star", "p_noise") for r in found[name][start]]
        violations += sum(bool(r["tv"] > r["half_eps"] + SLACK or r["kl"] > r["half_eps_square"] + SLACK) for r in rows)
        worst = max(worst, *(r["tv"] / r["half_eps"] for r in rows if r["half_eps"] > 1e-6))
    return {**found, "pairs": 4 * len(THETAS), "violations": violations, "largest_ratio": worst}


def main() -> None:
    record("stability", measure())


if __name__ == "__main__":
    main()
