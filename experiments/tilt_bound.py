"""Prop. 3.2: the constant of d_TV(p_ft, p_pre) <= sqrt(D/2), the best one, and two forms that fail.

Random discrete laws: 2 to 8 atoms, masses from a Dirichlet law of random concentration, rewards standard normal times
a log-uniform scale. D = (E_ft r - E_pre r) / temperature. The first laws are computed by the library as well.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

import sdecontrol as sc
from experiments.record import record

LAWS, CHECKED, SEED = 200_000, 500, 0
ATOMS = range(2, 9)

Columns = dict[str, np.ndarray]


def random_laws(rng: np.random.Generator, n: int, atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Masses and rewards over the temperature, (n, atoms) each."""
    shape = np.exp(rng.uniform(math.log(0.1), math.log(10.0), (n, 1)))
    mass = rng.gamma(np.broadcast_to(shape, (n, atoms))) + 1e-12
    reward = rng.standard_normal((n, atoms)) * np.exp(rng.uniform(math.log(1e-2), math.log(10.0), (n, 1)))
    return mass / mass.sum(1, keepdims=True), reward


def columns(p: np.ndarray, rho: np.ndarray) -> Columns:
    """Distance, divergences and the quantities of the bounds, (n,) each."""
    top = rho.max(1)
    growth = np.exp(rho - top[:, None])
    c = (p * growth).sum(1)
    weight = growth / c[:, None]
    q = p * weight
    mean = (p * rho).sum(1)
    tilted = (p * weight * rho).sum(1)
    log_c = np.log(c) + top
    unnormalised = tilted * np.exp(log_c)  # E[(r/temperature) e^{r/temperature}]
    return {
        "tv": np.abs(q - p).sum(1) / 2,
        "kl": tilted - log_c,
        "reverse_kl": log_c - mean,
        "divergence": tilted - mean,
        "dropped": unnormalised,
        "dropped_jensen": unnormalised - np.exp(log_c) * log_c,
        "range": rho.max(1) - rho.min(1),
        "largest": np.abs(rho).max(1),
    }


def library_columns(p: np.ndarray, rho: np.ndarray) -> tuple[float, float, float]:
    """The same distance and divergences by the library."""
    points = torch.as_tensor(rho)
    law = sc.laws.DiscreteLaw(points, torch.as_tensor(p))
    tilt = law.tilt(sc.Linear([1.0]), 1.0)
    return float(sc.laws.tv(tilt, law)), sc.laws.kl(tilt, law), sc.laws.kl(law, tilt)


def violations(tv: np.ndarray, square: np.ndarray) -> dict[str, int]:
    """How often tv <= sqrt(square / 2) is false; `negative` of them because there is no root, `smaller` with one."""
    violated, negative = tv**2 > square / 2 * (1 + 1e-9) + 1e-15, square < 0
    return {
        "violated": int(violated.sum()),
        "negative": int((violated & negative).sum()),
        "smaller": int((violated & ~negative).sum()),
    }


def measure(laws: int = LAWS, checked: int = CHECKED) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    groups = [random_laws(rng, laws // len(ATOMS) + 1, k) for k in ATOMS]
    parts = [columns(p, rho) for p, rho in groups]
    c = {key: np.concatenate([part[key] for part in parts])[:laws] for key in parts[0]}
    known = c["divergence"] > 1e-10  # below, D is rounding
    root = np.sqrt(c["divergence"][known])
    ratio = c["tv"][known] / root
    p, rho = groups[-1]
    found = np.array([library_columns(p[i], rho[i]) for i in range(checked)])
    own = np.stack([parts[-1][key][:checked] for key in ("tv", "kl", "reverse_kl")], 1)
    size, larger_kl = c["tv"] > 1e-12, np.maximum(c["kl"], c["reverse_kl"])
    return {
        "laws": laws,
        "compared": int(known.sum()),
        "sup_over_root_half": float(ratio.max() * math.sqrt(2)),
        "sup_over_half_root": float(ratio.max() * 2),
        "violations_root_half": violations(c["tv"], c["divergence"])["violated"],
        "violations_half_root": violations(c["tv"], c["divergence"] / 2)["violated"],
        "identity_deviation": float(np.abs((c["kl"] + c["reverse_kl"] - c["divergence"]) / (1 + c["largest"])).max()),
        "dropped_normaliser": violations(c["tv"], c["dropped"]),
        "dropped_normaliser_jensen": violations(c["tv"], c["dropped_jensen"]),
        "range": {
            "violations_root": int((c["tv"] > np.sqrt(c["largest"])).sum()),
            "violations_tanh": int((c["tv"] > np.tanh(c["range"] / 4) * (1 + 1e-12)).sum()),
            "violations_kl": int((larger_kl > c["range"] ** 2 / 8 * (1 + 1e-9) + 1e-14).sum()),
            "sup_over_tanh": float((c["tv"][size] / np.tanh(c["range"][size] / 4)).max()),
        },
        "library": {"laws": checked, "largest_deviation": float(np.abs(found - own).max())},
        "scatter": {  # a sample of the laws for the figure
            "divergence": [float(f"{v:.4g}") for v in c["divergence"][known][:: laws // 1500]],
            "tv": [float(f"{v:.4g}") for v in c["tv"][known][:: laws // 1500]],
        },
    }  # fmt: skip


def main() -> None:
    record("tilt_bound", measure())


if __name__ == "__main__":
    main()
