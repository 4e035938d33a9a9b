"""Lemma 3.1: a finite C is not enough for a maximiser.

p_pre proportional to e^{-x} (1 + x)^{-m} on x >= 0 and r = temperature x give p_ft proportional to (1 + x)^{-m}: C is
finite for m > 1, but E_ft r only for m > 2. At m = 2 the tilt truncated to [0, n] has the objective
log C + log(n / (n + 1)) over the temperature (derived: the gap is KL(p_n || p_ft)), so the supremum log C is
approached and not attained. Both sides here are quadratures of the definitions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.integrate import quad

from experiments.record import record

CUTS = [1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000]
POWERS = {"not_attained": 2.0, "attained": 3.0}


def integral(f: Any, top: float) -> float:
    """int_0^top f, panel by panel between powers of two."""
    edges = [0.0, *(2.0**k for k in range(-2, 14) if 2.0**k < top), top]
    return sum(quad(f, a, b, epsabs=1e-14, epsrel=1e-13)[0] for a, b in zip(edges, edges[1:]))


def truncated(power: float, top: float, log_mass: float) -> dict[str, float]:
    """Reward, KL and objective (over the temperature) of p_ft restricted to [0, top]; log_mass of e^-x (1+x)^-power."""
    mass = integral(lambda x: (1 + x) ** -power, top)
    density = lambda x: (1 + x) ** -power / mass  # noqa: E731
    reward = integral(lambda x: x * density(x), top)
    log_ratio = lambda x: math.log(density(x)) - (-x - power * math.log1p(x) - log_mass)  # noqa: E731
    kl = integral(lambda x: density(x) * log_ratio(x), top)
    return {"cut": top, "reward": reward, "kl": kl, "objective": reward - kl}


def measure() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, power in POWERS.items():
        log_mass = math.log(quad(lambda x: math.exp(-x) * (1 + x) ** -power, 0, np.inf, epsrel=1e-13)[0])  # noqa: B023
        log_c = -math.log(power - 1) - log_mass  # int_0^inf (1 + x)^-power = 1/(power - 1)
        rows = [truncated(power, float(n), log_mass) for n in CUTS]
        closed = [log_c + math.log1p(-((1 + n) ** (1 - power))) for n in CUTS]
        gap = max(abs(row["objective"] - value) for row, value in zip(rows, closed))
        found[name] = {"power": power, "C": math.exp(log_c), "log_C": log_c, "rows": rows, "last": rows[-1],
                       "missing_at_last": log_c - rows[-1]["objective"], "largest_deviation": gap}  # fmt: skip
    found["attained"]["reward"] = 1.0  # int x 2 (1 + x)^-3
    return found


def main() -> None:
    record("lemma_integrability", measure())


if __name__ == "__main__":
    main()
