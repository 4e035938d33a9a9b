"""Time and memory of one guided step on data of rank 16, from a hundred to a million dimensions: both linear.

Each dimension runs once, in a process of its own, on one thread: a step of u* and one of G_loss for 4 paths in float64,
by the median of the CPU seconds of repeats with their quartiles, and the growth of the largest resident set from before
the law was made. Lines a + bD by least squares of relative errors, with all that they leave.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import sdecontrol as sc
from experiments.record import record
from sdecontrol import guidance
from sdecontrol.step import advance

DIMS = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
LATENT, PATHS, SECONDS = 16, 4, 2.0


QUANTILES = {"seconds": 0.5, "quarter": 0.25, "three_quarters": 0.75}


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
        times = repeated(lambda c=control: advance(problem.process, transition, 0, x, x, c))
        found |= {f"{name}_{key}": float(np.quantile(times, q)) for key, q in QUANTILES.items()}
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | {"megabytes": (after - before) / 1024}


def repeated(step: Callable[[], Any]) -> list[float]:
    """CPU seconds of every call, over SECONDS of them, after a first one that does not count."""
    step()
    times: list[float] = []
    while len(times) < 5 or sum(times) < SECONDS:
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return times


def power(rows: list[dict[str, Any]], key: str, above: float) -> float:
    """Slope of log key in log dimension, over dimensions from `above` on."""
    large = [row for row in rows if row["dim"] >= above]
    return float(np.polyfit(np.log([r["dim"] for r in large]), np.log([r[key] for r in large]), 1)[0])


def linear(rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """key = fixed + slope dim by least squares of relative errors, and the relative errors left."""
    dims, values = np.array([r["dim"] for r in rows]), np.array([r[key] for r in rows])
    design = np.stack([np.ones(len(dims)), dims], 1) / values[:, None]
    fixed, slope = np.linalg.lstsq(design, np.ones(len(dims)), rcond=None)[0]
    left = (fixed + slope * dims) / values - 1
    return {"fixed": float(fixed), "slope": float(slope), "left": left.tolist(), "worst": float(np.abs(left).max())}


def measure() -> dict[str, Any]:
    return fitted([in_a_process(dim) for dim in DIMS])


def in_a_process(dim: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.subspace_scaling", str(dim)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(found, flush=True)
    return found


def fitted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows with their fits."""
    keys = ("optimal_seconds", "g_loss_seconds", "megabytes")
    fits = {key: linear(rows, key) for key in keys}
    powers = {f"{key}, from {above:g}": power(rows, key, above) for key in keys for above in (1e3, 1e5)}
    largest = max(row[f"{name}_normal"] for row in rows for name in ("optimal", "g_loss"))
    return {"rows": rows, "fits": fits, "powers": powers, "largest_normal": largest, "paths": PATHS}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(one(int(sys.argv[1]))))
    else:
        record("subspace_scaling", measure())


if __name__ == "__main__":
    main()
