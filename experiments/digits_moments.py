"""Digits: 50 000 simulated paths of the optimum against the exact tilt, in every first and second latent moment.

By the exact kernels of Q*, which is the reverse diffusion of p_ft from its own noised law (backwards in time it is
forward noising from p_ft; derived), and by Doob's control on second-order steps of the reference, which have an error.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import kstest, norm
from torch import Tensor

import sdecontrol as sc
from experiments.record import resumed
from sdecontrol.laws import Law
from sdecontrol.problems.digit_tasks import TASKS, task

PATHS, GRID = 50_000, sc.TimeGrid.log_snr(100, s_min=1e-3)
BY_CONTROL = ("3",)  # tasks of the slower run under Doob's control
CHANCE = 0.01  # of a run in which nothing is wrong to exceed a threshold


def moments(name: str) -> dict[str, Any]:
    problem = task(name).problem
    exact, tilt = problem.exact, problem.exact.terminal
    assert isinstance(tilt, sc.Subspace)
    optimum = sc.ReverseProcess(sc.VP(), tilt, initial="marginal")
    mixture = isinstance(tilt.latent, sc.GaussianMixture)
    runs: dict[str, tuple[Any, ...]] = {
        "exact kernels": (optimum, None, None, sc.ExactPosterior() if mixture else sc.ExactTransition()),
    }
    if name in BY_CONTROL:
        runs["doob"] = problem.process, exact.control, exact.initial, sc.SecondOrder()
    found = {}
    for run, (process, control, initial, kernel) in runs.items():
        path = sc.simulate(process, control, initial, n=PATHS, grid=GRID, kernel=kernel, noise=sc.Noise(5), keep="ends")
        found[run] = {"kernel": type(kernel).__name__, **compared(tilt.encode(path.terminal), tilt.latent)}
        print(name, run, found[run], flush=True)
    return {"paths": PATHS, "steps": len(GRID.resolve(optimum).times) - 1, **found}


def compared(y: Tensor, law: Law) -> dict[str, Any]:
    """Latent draws (n, d) against a Gaussian or a mixture: moments, shares of components, laws of the coordinates."""
    rows, columns = torch.triu_indices(law.dim, law.dim)
    centred = y - law.mean
    truth = torch.cat([torch.zeros(law.dim, dtype=torch.float64), law.covariance[rows, columns]])
    found = {"moments": z_scores(torch.cat([centred, centred[:, rows] * centred[:, columns]], 1), truth)}
    if isinstance(law, sc.GaussianMixture):
        found["shares"] = z_scores(law.log_responsibilities(y).exp(), law.weights)
    return found | {"kolmogorov_smirnov": smirnov(y, law)}


def z_scores(values: Tensor, truth: Tensor) -> dict[str, Any]:
    """Means of columns (n, m) against their truth (m,); the threshold is Bonferroni's."""
    estimate = sc.Estimate.mean(values)
    z = (estimate.value - truth.numpy()) / estimate.stderr
    return {"count": len(z), "threshold": float(norm.isf(CHANCE / 2 / len(z))), "largest": float(abs(z).max()),
            "rms": float((z**2).mean() ** 0.5), "mean": float(z.mean())}  # fmt: skip


def smirnov(y: Tensor, law: Law) -> dict[str, float]:
    """The least p-value over the coordinates, and that of seeing one so small among as many."""
    axes = torch.eye(law.dim, dtype=torch.float64)
    values = [float(kstest(column.numpy(), cdf(law.along(axis))).pvalue) for axis, column in zip(axes, y.T)]
    return {"least_p": min(values), "bonferroni_p": min(1.0, law.dim * min(values))}


def cdf(line: Law) -> Any:
    """Of a Gaussian or a mixture on the line."""
    if isinstance(line, sc.GaussianMixture):
        return lambda x: sum(float(w) * cdf(part)(x) for w, part in zip(line.weights, line.components))
    return lambda x: norm.cdf(x, float(line.mean), np.sqrt(float(line.covariance)))


if __name__ == "__main__":
    resumed("digits_moments", {name: partial(moments, name) for name in TASKS})
