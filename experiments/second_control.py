"""Sampling nu* by a second control: right from a point, wrong from a start that is kept.

1-D VP to a_T about 0.45, so that noise and output are correlated, and a concave reward.
dX = eta sqrt(1 - share) (w dt + dB) from X_0 ~ N(0, share eta^2), with the best w: the law of X_1 for every share, by
the library and by a formula; and 20 000 paths of the simulated drift from the point and from half of the variance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import sdecontrol as sc
from experiments.record import record
from sdecontrol.claims.routes.posterior import gaussian_kl
from sdecontrol.problems.second import initial_law_problem

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
PATHS, STEPS = 20_000, 50
POINTS = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)


def problem(temperature: float = 0.3) -> sc.Problem:
    process = sc.ReverseProcess(sc.VP(0.1, 3.1), sc.Gaussian([0.3], [[1.5]]))
    return sc.Problem(process, sc.Quadratic([1.2], [[0.4]]), temperature)


def moments(law: Any) -> tuple[np.ndarray, np.ndarray]:
    return law.mean.numpy(), law.covariance.numpy()


def by_formula(made: sc.Problem, share: float) -> tuple[float, float]:
    """Mean and variance of X_1 from the quadratic v(0, .) = c + gamma x - kappa x^2/2 and the prior's variance 1."""
    points = made.exact.value(0.0, POINTS).numpy() / made.temperature
    kappa, gamma = -(points[0] - 2 * points[1] + points[2]), (points[2] - points[0]) / 2
    left = 1 - share
    variance = 1 / (1 / left + kappa)
    return variance * gamma, variance + share * (variance / left) ** 2


def simulated(made: sc.Problem, share: float) -> dict[str, Any]:
    """Mean and variance of X_1 over simulated paths, with standard errors."""
    second = initial_law_problem(made, share)
    path = sc.simulate(second.process, second.exact.control, grid=sc.TimeGrid.uniform(STEPS), n=PATHS, keep="ends",
                       kernel=sc.EulerMaruyama(), noise=sc.Noise(1))  # fmt: skip
    x = path.terminal[:, 0]
    mean = sc.Estimate.mean(x)
    variance = sc.Estimate.mean((x - mean.value) ** 2)
    return {"mean": mean.to_dict(), "variance": variance.to_dict(), "sample": x[:2_000].tolist()}


def measure() -> dict[str, Any]:
    made = problem()
    star, prior = moments(made.exact.initial), moments(made.process.initial_law(0.0))
    moved = gaussian_kl(star, prior)
    rows, deviation = [], 0.0
    for share in SHARES:
        found = initial_law_problem(made, share).exact
        mean, variance = moments(found.untilted_terminal if share else found.terminal)
        expected = by_formula(made, share)
        deviation = max(deviation, abs(float(mean[0]) - expected[0]), abs(float(variance[0, 0]) - expected[1]))
        rows.append({"share": share, "mean": float(mean[0]), "variance": float(variance[0, 0]),
                     "kl": gaussian_kl((mean, variance), star) if share else 0.0})  # fmt: skip
    schedule = made.process.schedule
    return {
        "a_T": float(schedule.alpha(schedule.horizon)),
        "kl_initial": moved,
        "kl_untilted": gaussian_kl(prior, star),
        "star": {"mean": float(star[0][0]), "variance": float(star[1][0, 0])},
        "rows": rows,
        "half": next(row for row in rows if row["share"] == 0.5),
        "largest_deviation": deviation,
        "simulated": {name: simulated(made, share) for name, share in (("point", 0.0), ("half", 0.5))},
    }


def main() -> None:
    record("second_control", measure())


if __name__ == "__main__":
    main()
