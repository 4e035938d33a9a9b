"""Prop. 3.2 and (3.6) as the temperature falls: the bounds diverge, the distance does not.

Two atoms of equal mass with r = -1 and 1; and a Gaussian with a step reward on 30 % of its mass. (3.6) says
d_TV <= sqrt(M / temperature) for |r| <= M, which is empty once temperature <= M; with R = (max r - min r)/temperature
d_TV <= tanh(R/4) (derived).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

import sdecontrol as sc
from experiments.record import record

COLDEST, MASS = 0.05, 0.3
TEMPERATURES = np.geomspace(5.0, COLDEST, 33).tolist()


def row(law: sc.laws.Law, reward: Any, temperature: float, gain: float, height: float) -> dict[str, float]:
    """Distance, divergence and bounds; gain = E_ft r - E_pre r, |r| <= height = half the range of r."""
    tilt = law.tilt(reward, temperature)
    divergence = gain / temperature
    return {
        "temperature": temperature,
        "tv": float(sc.laws.tv(tilt, law)),
        "kl": sc.laws.kl(tilt, law),
        "root_half_divergence": math.sqrt(divergence / 2),
        "half_root_divergence": math.sqrt(divergence) / 2,
        "root_bound": math.sqrt(height / temperature),
        "tanh_bound": math.tanh(height / (2 * temperature)),
    }


def two_points(temperature: float) -> dict[str, float]:
    law, reward = sc.laws.DiscreteLaw([-1.0, 1.0]), sc.Linear([1.0])
    tilt = law.tilt(reward, temperature)
    return row(law, reward, temperature, float(tilt.mean - law.mean), 1.0)


def gaussian_step(temperature: float) -> dict[str, float]:
    """r = +-1 by the side of the quantile: a step of height 2 less 1, whose constant changes nothing."""
    law = sc.Gaussian([0.0], [[1.0]])
    reward = sc.Step([1.0], float(stats.norm.isf(MASS)), 2.0)
    favoured = MASS / (MASS + (1 - MASS) * math.exp(-2 / temperature))
    return row(law, reward, temperature, 2 * (favoured - MASS), 1.0)


def measure() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, at, mass in (("two_points", two_points, 0.5), ("gaussian_step", gaussian_step, MASS)):
        rows = [at(temperature) for temperature in TEMPERATURES]
        found[name] = {"rows": rows, "coldest": rows[-1], "at_M": at(1.0), "limit_tv": 1 - mass,
                       "limit_kl": -math.log(mass)}  # fmt: skip
    found["M"] = 1.0
    return found


def main() -> None:
    record("reward_collapse", measure())


if __name__ == "__main__":
    main()
