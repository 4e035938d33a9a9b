"""The window of convex rewards in which v is finite from every start and the best initial law does not exist.

Data N(0, S), VP with beta = 1, r = k x^2/2 with k > 0, temperature 1, start N(0, 1). P is the variance of Y_T given
Y_0 and S_p that of Y_T (theory: P = S h/(a^2 S + h), S_p = P + (a S/(a^2 S + h))^2). Three regimes (derived):
k < 1/S_p: all fine; 1/S_p <= k < 1/P: v finite, E_{p_noise} e^v infinite; 1/P <= k: v infinite up to the generation
time at which the posterior's variance has come down to 1/k.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import sdecontrol as sc
from experiments.record import record

VARIANCE, HORIZON = 4.0, 1.0
WIDTHS = np.geomspace(0.5, 16.0, 31).tolist()  # of the initial laws N(0, w^2)
SWEEP = np.linspace(0.05, 1.6, 32).tolist()
STARTS = (-3.0, 0.0, 3.0)


def process(initial: Any = "standard") -> sc.ReverseProcess:
    return sc.ReverseProcess(sc.VP(1.0, 1.0, HORIZON), sc.Gaussian(0.0, VARIANCE), initial)


def spreads() -> dict[str, float]:
    """P and S_p, and the two edges of the window."""
    a2 = math.exp(-HORIZON)
    h = 1 - a2
    p = VARIANCE * h / (a2 * VARIANCE + h)
    output = p + a2 * VARIANCE**2 / (a2 * VARIANCE + h) ** 2
    return {"P": p, "S_p": output, "opens": 1 / output, "closes": 1 / p}


def refusal(curvature: float) -> dict[str, Any]:
    """What the library says of r = curvature x^2/2."""
    reward = sc.Quadratic([0.0], [[-curvature]])
    try:
        made = sc.Problem(process(), reward, 1.0)
    except sc.ValueBlowUp as error:  # it is a NoTilt as well: asked first
        return {"curvature": curvature, "regime": "value infinite", "time": error.time}
    except sc.NoTilt as error:
        return {"curvature": curvature, "regime": "no initial law", "eigenvalue": error.eigenvalue,
                "largest_curvature": error.largest_curvature}  # fmt: skip
    return {"curvature": curvature, "regime": "exists", "log_C": made.exact.log_normalizer}


def blow_up(curvature: float) -> float:
    """The generation time at which the posterior variance is 1/curvature: a^2 = (S - pi)/(S - pi + pi S)."""
    pi = 1 / curvature
    return HORIZON + math.log((VARIANCE - pi) / (VARIANCE - pi + pi * VARIANCE))


def value_from(y: float, curvature: float) -> float:
    """v(0, y): log C of the same model started at the point y, where nothing can be wrong with the initial law."""
    return sc.Problem(process(sc.Dirac([y])), sc.Quadratic([0.0], [[-curvature]]), 1.0).exact.log_normalizer


def objective(curvature: float) -> list[float]:
    """max_u J(u, N(0, w^2)) = E v(0, .) - KL(N(0, w^2) || N(0, 1)) for every width w; v = c + s y^2."""
    c = value_from(0.0, curvature)
    s = value_from(1.0, curvature) - c
    prior = sc.Gaussian(0.0, 1.0)
    return [c + s * w * w - sc.laws.kl(sc.Gaussian(0.0, w * w), prior) for w in WIDTHS]


def measure() -> dict[str, Any]:
    edges = spreads()
    inside = math.sqrt(edges["opens"] * edges["closes"])
    fine, wide = 0.8 * edges["opens"], 1.5 * edges["closes"]
    rows = [refusal(curvature) for curvature in SWEEP]
    times = [(row["time"], blow_up(row["curvature"])) for row in rows if row["regime"] == "value infinite"]
    log_c = sc.Problem(process(), sc.Quadratic([0.0], [[-fine]]), 1.0).exact.log_normalizer
    objectives = {"fine": objective(fine), "inside": objective(inside)}
    return {
        **edges,
        "fine": {"curvature": fine, "log_C": log_c, "best_objective": max(objectives["fine"])},
        "inside": {
            **refusal(inside),
            "values": {f"{y:g}": value_from(y, inside) for y in STARTS},
            "objective_at_widest": objectives["inside"][-1],
            "widest": WIDTHS[-1],
        },
        "beyond": {**refusal(wide), "formula": blow_up(wide)},
        "rows": rows,
        "largest_time_deviation": max(abs(a - b) for a, b in times),
        "widths": WIDTHS,
        "objectives": objectives,
    }


def main() -> None:
    record("convex_window", measure())


if __name__ == "__main__":
    main()
