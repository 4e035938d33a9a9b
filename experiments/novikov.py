"""Novikov's condition against the existence of the tilt: dY = -Y/2 dt + dB, Y_0 ~ N(0, 1), r = -k x^2/2.

That is VP with beta = 1 and data N(0, 1), where p_pre = N(0, 1) on every horizon, so that the tilt exists iff
k/temperature > -1. E exp(1/2 int |u*|^2) is finite only between two thresholds of k/temperature, from a Riccati
equation. On the convex side (k < 0) the threshold lies before that of the tilt for horizons above 2 pi / (3 sqrt 3)
only: at k = -temperature the gain of u* is 1, and the largest eigenvalue of e^{-|t-s|/2} on [0, T] is 1 where
omega tan(omega T / 2) = 1/2 with omega^2 = 3/4 (derived).
"""

from __future__ import annotations

import math
from typing import Any

import sdecontrol as sc
from experiments.record import record

HORIZONS = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0]
CRITICAL = 2 * math.pi / (3 * math.sqrt(3))
BEYOND = 1.5  # curvature of the problem past the threshold, in units of the threshold


def problem(curvature: float, horizon: float) -> sc.Problem:
    process = sc.ReverseProcess(sc.VP(1.0, 1.0, horizon), sc.Gaussian(0.0, 1.0))
    return sc.Problem(process, sc.Quadratic([0.0], [[curvature]]), 1.0, name="stationary")


def thresholds(horizon: float) -> dict[str, float]:
    """The curvatures k/temperature between which Novikov's condition holds."""
    return {
        "horizon": horizon,
        "concave": sc.novikov(problem(1.0, horizon)).threshold,
        "convex": -0.5 * sc.novikov(problem(-0.5, horizon)).threshold,
        "value": -1 / -math.expm1(-horizon),  # below, v(0, .) is infinite: 1/P_T
    }


def past_the_threshold(curvature: float, horizon: float) -> dict[str, Any]:
    """What still holds for a problem on which Novikov's condition fails."""
    made = problem(curvature, horizon)
    found = sc.novikov(made)
    claims = {claim.id: claim for claim in sc.claims()}
    reports = {id: claims[id].run(made, rungs=("exact", "discrete")) for id in ("prop-3.3", "prop-3.6")}
    return {
        "curvature": curvature,
        "horizon": horizon,
        "novikov_holds": found.novikov_holds,
        "tilt_exists": found.tilt_exists,
        "martingale": found.martingale,
        "martingale_defect": found.martingale_defect,
        "path_kl": made.exact.path_kl,
        "verdicts": {id: report.verdict for id, report in reports.items()},
        "rows": {id: len(report.rows) for id, report in reports.items()},
    }


def measure() -> dict[str, Any]:
    rows = [thresholds(horizon) for horizon in HORIZONS]
    one = next(row for row in rows if row["horizon"] == 1.0)
    three = next(row for row in rows if row["horizon"] == 3.0)
    return {
        "rows": rows,
        "tilt": -1.0,
        "critical_horizon": CRITICAL,
        "at_critical": thresholds(CRITICAL),
        "horizon_1": one,
        "horizon_3": three,
        "concave": past_the_threshold(BEYOND * one["concave"], 1.0),
        "convex": past_the_threshold((three["convex"] - 1) / 2, 3.0),
    }


def main() -> None:
    record("novikov", measure())


if __name__ == "__main__":
    main()
