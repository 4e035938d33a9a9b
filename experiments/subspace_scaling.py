"""Time and memory of one guided step on data of rank 16, from a hundred to a million dimensions: both linear.

Each dimension runs in a process of its own, on one thread: a step of u* and one of G_loss for 4 paths in float64, by
the least CPU seconds of several repeats, and the growth of the largest resident set from before the law was made.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

import sdecontrol as sc
from experiments.record import record
from sdecontrol import guidance
from sdecontrol.step import advance

DIMS = (100, 1_000, 10_000, 100_000, 1_000_000)
LATENT, PATHS, RUNS = 16, 4, 2


def one(dim: int) -> dict[str, Any]:
    """CPU seconds a step, megabytes, and the normal part of u, relative, at one dimension."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    basis = torch.linalg.qr(torch.randn(dim, LATENT, dtype=torch.float64, generator=generator)).Q
    law = sc.SubspaceGaussian(basis, torch.zeros(LATENT), 0.1 + torch.rand(LATENT, generator=generator))
    direction = torch.randn(dim, dtype=torch.float64, generator=generator)
    problem = sc.Problem(sc.ReverseProcess(sc.VP(), law), sc.GaussianLabel(direction / dim**0.5, 1.0, 0.3), 1.0)
    transition = sc.Ancestral().transition(problem.process, 0.5, 0.51)
    x = torch.randn(PATHS, dim, dtype=torch.float64, generator=generator)
    found: dict[str, Any] = {"dim": dim}
    for name, control in (("optimal", guidance.doob(problem)), ("g_loss", guidance.g_loss(problem))):
        _, shift = advance(problem.process, transition, 0, x, torch.zeros_like(x), control)
        assert shift is not None
        normal = shift - (shift @ basis) @ basis.mT
        found[f"{name}_normal"] = float(normal.norm() / shift.norm())
        found[f"{name}_seconds"] = least(lambda c=control: advance(problem.process, transition, 0, x, x, c))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | {"megabytes": (after - before) / 1024}


def least(step: Any, seconds: float = 1.0) -> float:
    """The least CPU time of a call over about a second of them, three at least."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return min(times)


def power(rows: list[dict[str, Any]], key: str, above: float) -> float:
    """Slope of log key in log dimension, over dimensions from `above` on."""
    large = [row for row in rows if row["dim"] >= above]
    return float(np.polyfit(np.log([r["dim"] for r in large]), np.log([r[key] for r in large]), 1)[0])


def linear(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    """key = fixed + slope dim by least squares of relative errors, and the largest relative error."""
    dims, values = np.array([r["dim"] for r in rows]), np.array([r[key] for r in rows])
    design = np.stack([np.ones(len(dims)), dims], 1) / values[:, None]
    fixed, slope = np.linalg.lstsq(design, np.ones(len(dims)), rcond=None)[0]
    worst = float(np.abs((fixed + slope * dims) / values - 1).max())
    return {"fixed": float(fixed), "slope": float(slope), "worst": worst}


def measure() -> dict[str, Any]:
    return fitted([merged([in_a_process(dim) for _ in range(RUNS)]) for dim in DIMS])


def in_a_process(dim: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.subspace_scaling", str(dim)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(found, flush=True)
    return found


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Times and memory: the least of the runs, for what else the machine does only adds; normal parts: the largest."""
    return {key: (max if key.endswith("normal") else min)(run[key] for run in runs) for key in runs[0]}


def fitted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows with their fits."""
    keys = ("optimal_seconds", "g_loss_seconds", "megabytes")
    fits = {key: linear(rows, key) for key in keys}
    powers = {key: power(rows, key, 1e5) for key in keys}
    largest = max(row[f"{name}_normal"] for row in rows for name in ("optimal", "g_loss"))
    return {"rows": rows, "fits": fits, "powers": powers, "largest_normal": largest, "paths": PATHS}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(one(int(sys.argv[1]))))
    else:
        record("subspace_scaling", measure())


if __name__ == "__main__":
    main()
