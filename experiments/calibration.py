"""Error bars and verdicts put to the test: the same true statements over 200 seeds.

Part one runs every claim's Monte Carlo rung on true statements and counts false alarms: a row at the 5 % level, a claim
at a family-wise 5 % level (Bonferroni over its rows), and everything at the level that is shipped. Rows that compare
with the chain's own truth have uniform p-values (Kolmogorov-Smirnov); rows with an allowance for discretisation and
one-sided bounds may only alarm less.

Part two asks of each estimate whose truth is known in closed form how often its 68, 95 and 99 % intervals hold it.

    python -m experiments.calibration      # about five minutes on two cores
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from rich.progress import track
from scipy.stats import binom, kstest, norm

import sdecontrol as sc
from experiments.record import record
from sdecontrol.claims.base import MONTE_CARLO, Z_CRITICAL, claims
from sdecontrol.problems.builtin import resolve
from sdecontrol.report.workers import as_worker

SEEDS, LEVEL, WORKERS = 200, 0.05, 2
PROBLEMS = ("gaussian-1d-vp", "gaussian-4d-ve", "mixture-2d-vp")
INTERVALS = (0.68, 0.95, 0.99)
PATHS = 2_000


# ------------------------------------------------------------------------------------------ verdicts of the claims


def rows_of_seed(name: str, seed: int) -> list[tuple[str, str, str, float]]:
    """(claim, quantity, kind, z) of each Monte Carlo row of a quick run."""
    problem, found = resolve(name).problem, []
    for claim in claims():
        for row in claim.run(problem, quick=True, seed=seed, rungs=[MONTE_CARLO]).rows:
            if row.z is not None and row.error > 0:
                found.append((claim.id, row.quantity, kind_of(row.note), row.z))
    return found


def kind_of(note: str) -> str:
    """Whether a row is an equality with the chain's truth, one with an allowance for the step, or a bound."""
    if note.startswith("slack"):
        return "bound"
    return "with allowance" if "of which discretisation" in note else "equality"


def p_values(kind: str, z: np.ndarray) -> np.ndarray:
    """Two-sided, one-sided for bounds."""
    return norm.sf(z) if kind == "bound" else 2 * norm.sf(np.abs(z))


def verdicts(name: str, seeds: list[list[tuple[str, str, str, float]]]) -> dict[str, Any]:
    table: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for rows in seeds:
        for claim, quantity, kind, z in rows:
            table[claim, quantity, kind].append(z)
    rows = []
    for (claim, quantity, kind), values in table.items():
        z, p = np.array(values), p_values(kind, np.array(values))
        ks = float(kstest(p, "uniform").pvalue) if kind == "equality" else None
        rows.append({"claim": claim, "quantity": quantity, "kind": kind, "seeds": len(z), "ks": ks,
                     "alarms": int((p < LEVEL).sum()), "largest": float(np.abs(z).max()),
                     "mean": float(z.mean()), "std": float(z.std()), "z": z.round(4).tolist()})  # fmt: skip
    return {"problem": name, "rows": rows, "claims": claim_alarms(seeds), "shipped": shipped_alarms(seeds)}


def claim_alarms(seeds: list[list[tuple[str, str, str, float]]]) -> dict[str, int]:
    """Seeds in which a claim alarms at a family-wise 5 %: its smallest p-value below 5 % over its rows."""
    alarms: dict[str, int] = defaultdict(int)
    for rows in seeds:
        smallest: dict[str, list[float]] = defaultdict(list)
        for claim, _, kind, z in rows:
            smallest[claim].append(float(p_values(kind, np.array(z))))
        for claim, p in smallest.items():
            alarms[claim] += min(p) < LEVEL / len(p)
    return dict(alarms)


def shipped_alarms(seeds: list[list[tuple[str, str, str, float]]]) -> int:
    """Seeds in which any row at all is violated at the level that is shipped."""
    return sum(any((z if kind == "bound" else abs(z)) > Z_CRITICAL for _, _, kind, z in rows) for rows in seeds)


# ------------------------------------------------------------------------------------------ intervals of the estimates


def estimates_of_seed(seed: int) -> dict[str, tuple[sc.Estimate, float]]:
    """Estimates of n paths with their exact values, all of the chain that was simulated."""
    problem = resolve("gaussian-1d-vp").problem
    grid, kernel, noise = sc.TimeGrid.log_snr(60, s_min=1e-3), sc.Ancestral(), sc.Noise(10_000 + seed)
    control = sc.AffineControl([[-0.2]], [0.3])
    chain = problem.discretise(kernel, grid).exact
    run = sc.moments(problem.process, kernel, grid, chain.initial, control)
    mean, second = run.means[-1], run.covariances[-1] + torch.outer(run.means[-1], run.means[-1])
    reward = problem.reward
    expected = float(reward.constant + reward.linear @ mean - (reward.curvature * second).sum() / 2)
    objective = expected - problem.temperature * run.kl
    found = sc.evaluate(problem, control, chain.initial, grid=grid, kernel=kernel, n=PATHS, noise=noise)
    gap = chain.optimum - objective
    generator = np.random.default_rng([seed, 1])
    a, b = generator.exponential(size=(2, PATHS))
    return {
        "evaluate: reward": (found.reward, expected),
        "evaluate: path KL": (found.kl, run.kl),
        "evaluate: objective": (found.objective, objective),
        "evaluate: gap": (found.gap, gap),
        "evaluate: excess": (found.excess, chain.objective - objective),
        "evaluate: certificate mean": (found.certificate_mean, -gap / problem.temperature),
        "Estimate.mean, exponential": (sc.Estimate.mean(a), 1.0),
        "Estimate.difference, exponential": (sc.Estimate.difference(a, b), 0.0),
        "Estimate.log_mean_exp, normal / 2": (sc.Estimate.log_mean_exp(generator.normal(size=PATHS) / 2), 1 / 8),
    }


def coverage(seeds: list[dict[str, tuple[sc.Estimate, float]]]) -> list[dict[str, Any]]:
    rows = []
    for name in seeds[0]:
        z = np.array([float(seed[name][0].z(seed[name][1])) for seed in seeds])
        inside = {str(level): int((np.abs(z) <= norm.ppf(0.5 + level / 2)).sum()) for level in INTERVALS}
        ks = float(kstest(z, "norm").pvalue)
        rows.append({"estimate": name, "seeds": len(z), "inside": inside, "ks": ks,
                     "mean": float(z.mean()), "std": float(z.std()), "z": z.round(4).tolist()})  # fmt: skip
    return rows


# ------------------------------------------------------------------------------------------ both


def summary(found: list[dict[str, Any]], covered: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    rows = [row for problem in found for row in problem["rows"]]
    equalities = [row["ks"] for row in rows if row["ks"] is not None]
    outside = []
    for row in covered:
        for level, inside in row["inside"].items():
            p = float(level)
            outside.append(abs(inside - seeds * p) / math.sqrt(seeds * p * (1 - p)))
    return {
        "seeds": seeds,
        "rows": len(rows),
        "most_row_alarms": max(row["alarms"] for row in rows),
        "row_alarm_rate": sum(row["alarms"] for row in rows) / sum(row["seeds"] for row in rows),
        "rows_beyond_18": sum(row["alarms"] > 18 for row in rows),
        "rows_beyond_18_by_chance": float(len(rows) * binom.sf(18, seeds, LEVEL)),
        "most_claim_alarms": max(max(problem["claims"].values()) for problem in found),
        "shipped_alarms": sum(problem["shipped"] for problem in found),
        "smallest_ks": min(equalities),
        "equalities": len(equalities),
        "smallest_ks_of_estimates": min(row["ks"] for row in covered),
        "largest_coverage_error": max(outside),
    }


def measure(
    seeds: int = SEEDS, problems: tuple[str, ...] = PROBLEMS, workers: int = WORKERS
) -> Iterator[dict[str, Any]]:
    """The table so far, after each problem."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=as_worker) as pool:
        runs = pool.map(estimates_of_seed, range(seeds))
        covered = coverage(list(track(runs, "estimates", seeds)))
        found: list[dict[str, Any]] = []
        for name in problems:
            runs = pool.map(rows_of_seed, [name] * seeds, range(seeds), chunksize=5)
            found.append(verdicts(name, list(track(runs, name, seeds))))
            yield {"summary": summary(found, covered, seeds), "estimates": covered, "problems": found}


def main() -> None:
    for table in measure():
        record("calibration", table)
    print(table["summary"])


if __name__ == "__main__":
    main()
