"""Particle samplers against the chain's exact tilt: E Z_hat = Z, bias and error by the number of particles, and what
best-of-N and SVDD sample instead; the filling scheme for an unbounded density ratio.

N(0.5, 1), VP, r = x - 0.15 x^2 at temperature 0.3, six ancestral steps: Z, the tilt and its moments are closed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

import sdecontrol as sc
from experiments.record import record
from sdecontrol import steering

KERNEL, GRID = sc.Ancestral(), sc.TimeGrid.log_snr(6, s_min=2e-2)
PROBLEM = sc.Problem(sc.ReverseProcess(sc.VP(), sc.Gaussian([0.5], [[1.0]])), sc.Quadratic([1.0], [[0.3]]), 0.3)
CHAIN = PROBLEM.discretise(KERNEL, GRID).exact
THRESHOLDS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
REPEATS, PARTICLES = 500, 32
SIZES, POPULATIONS = (8, 16, 32, 64), {"fk": 16_000, "twisted": 24_000}
CANDIDATES, DRAWS = (2, 4, 8, 16, 32, 64), 10_000
MAKERS: dict[str, Callable[..., Any]] = {"fk": steering.fk, "twisted": steering.twisted}


def run(sampler: Any, n: int, seed: int) -> Any:
    return sampler.run(PROBLEM, grid=GRID, kernel=KERNEL, n=n, noise=sc.Noise(seed))


def unbiased() -> list[dict[str, Any]]:
    """z of the mean of Z_hat / Z - 1 over 500 populations, one draw of Z_hat each, for every threshold."""
    rows = []
    for name, make in MAKERS.items():
        for i, threshold in enumerate(THRESHOLDS):
            particles = run(make(PROBLEM, PARTICLES, threshold=threshold), REPEATS * PARTICLES, seed=100 + i)
            weights = (particles.log_weights - CHAIN.log_normalizer).exp().reshape(REPEATS, -1).mean(1)
            found = sc.Estimate.mean(weights)
            rows.append({"sampler": name, "threshold": threshold, "ratio": found.value, "stderr": found.stderr,
                         "z": float(found.z(1.0)), "repeats": REPEATS})  # fmt: skip
    return rows


def fitted(sizes: Any, values: Any, errors: Any) -> dict[str, float]:
    """Slope of log values in log sizes with its standard error, weighted by the errors."""
    x, y, w = np.log(sizes), np.log(values), (np.array(values) / np.array(errors)) ** 2
    spread = float(w @ (x - np.average(x, weights=w)) ** 2)
    return {"slope": float(w @ ((x - np.average(x, weights=w)) * y)) / spread, "stderr": spread**-0.5}


def by_size(name: str) -> dict[str, Any]:
    """Bias and root mean square error of the weighted mean of a population, by its size."""
    truth, populations, rows = float(CHAIN.terminal.mean), POPULATIONS[name], []
    for size in SIZES:
        particles = run(MAKERS[name](PROBLEM, size), populations * size, seed=size)
        gap = particles.means(particles.x)[:, 0] - truth
        mean, square = sc.Estimate.mean(gap), sc.Estimate.mean(gap**2)
        rows.append({"size": size, "bias": mean.value, "bias_stderr": mean.stderr, "rmse": square.value**0.5,
                     "rmse_stderr": square.stderr / 2 / square.value**0.5})  # fmt: skip
        print(name, rows[-1], flush=True)
    column = lambda key: [abs(row[key]) for row in rows]  # noqa: E731
    return {"rows": rows, "bias": fitted(SIZES, column("bias"), column("bias_stderr")),
            "rmse": fitted(SIZES, column("rmse"), column("rmse_stderr"))}  # fmt: skip


def biased() -> dict[str, Any]:
    """Mean and deviation of what best-of-N and SVDD put out, beside the tilt's."""
    samplers = {
        "best of N": lambda n: steering.best_of(PROBLEM, n),
        "SVDD, argmax": lambda n: steering.svdd(PROBLEM, n),
        "SVDD, soft": lambda n: steering.svdd(PROBLEM, n, temperature=PROBLEM.temperature),
    }
    rows = {}
    for name, make in samplers.items():
        rows[name] = []
        for n in CANDIDATES:
            x = run(make(n), DRAWS, seed=n).x[:, 0].double()
            found = sc.Estimate.mean(x)
            rows[name].append({"candidates": n, "mean": found.value, "stderr": found.stderr, "std": float(x.std())})
        print(name, rows[name][-1], flush=True)
    return {"rows": rows, "draws": DRAWS, "tilt": law(CHAIN.terminal), "reference": law(CHAIN.reference)}


def law(gaussian: Any) -> dict[str, float]:
    return {"mean": float(gaussian.mean), "std": float(gaussian.covariance) ** 0.5}


# ------------------------------------------------------------------ an unbounded ratio: N(0, 1), r = x, temperature 1


def filled(level: float) -> float:
    """E min(rho, level) for rho = e^{x - 1/2}: what has been accepted once the level is reached."""
    edge = math.log(level) + 0.5 if level > 0 else -math.inf
    return float(stats.norm.cdf(edge - 1) + level * stats.norm.sf(edge))


def filling(rounds: int = 4_096, paths: int = 20_000, watched: int = 64) -> dict[str, Any]:
    """The filling scheme draw by draw: level and survival in closed form, and its stopping times simulated.

    A draw of round k + 1 is accepted with probability [min(rho, L_k + s_k) - min(rho, L_k)] / s_k, s_k the survival and
    L_{k+1} = L_k + s_k, so that E min(N, k) = L_k; rho is unbounded, so L_k goes to infinity and E N with it (derived).
    """
    levels, survivals = [0.0], [1.0]
    for _ in range(rounds):
        levels.append(levels[-1] + survivals[-1])
        survivals.append(1 - filled(levels[-1]))
    rng = np.random.default_rng(0)
    alive, stops, accepted = np.ones(paths, bool), np.full(paths, watched), []
    for k in range(watched):
        x = rng.standard_normal(paths)
        ratio = np.exp(x - 0.5)
        chance = (np.minimum(ratio, levels[k + 1]) - np.minimum(ratio, levels[k])) / survivals[k]
        taken = alive & (rng.random(paths) < chance)
        stops[taken], alive = k + 1, alive & ~taken
        accepted.append(x[taken])
    cost, drawn = sc.Estimate.mean(stops.astype(float)), np.concatenate(accepted)
    clipped = lambda x: np.vectorize(_clipped_cdf)(x, levels[watched])  # noqa: E731
    shown = [2**k for k in range(int(math.log2(rounds)) + 1)]
    return {
        "rows": [{"rounds": k, "level": levels[k], "survival": survivals[k]} for k in shown],
        "watched": watched, "cost": cost.value, "cost_stderr": cost.stderr, "cost_theory": levels[watched],
        "ks_pvalue": float(stats.kstest(drawn, clipped).pvalue),
    }  # fmt: skip


def _clipped_cdf(x: float, level: float) -> float:
    """Distribution function of min(rho, level) p / E min(rho, level)."""
    edge = math.log(level) + 0.5
    inner = stats.norm.cdf(min(x, edge) - 1)
    outer = level * (stats.norm.cdf(x) - stats.norm.cdf(edge)) if x > edge else 0.0
    return float((inner + outer) / filled(level))


def measure() -> dict[str, Any]:
    unbiased_rows = unbiased()
    return {
        "unbiased": unbiased_rows,
        "largest_z": max(abs(row["z"]) for row in unbiased_rows),
        "sizes": {name: by_size(name) for name in MAKERS},
        "biased": biased(),
        "filling": filling(),
    }


def main() -> None:
    record("smc_bias", measure())


if __name__ == "__main__":
    main()
