"""The library's own kernels on its own grids, through sc.simulate(keep="ends")."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

import sdecontrol as sc
from benchmarks.solvers.case import Case, Contender, spectrum
from sdecontrol.kernels_flow import Flow, flow_grid

FAMILY = "sdecontrol"

# widths of the data for the grid (narrow, wide), the width of the flow's variable, and the closing level
SHAPES = {"gaussian": (0.3, 10.0, 0.55, 1e-3), "mixture": (0.3, 10.0, 0.55, 1e-3),
          "digits-gaussian": (0.12, 10.0, 0.3, 3e-4), "digits-mixture": (0.12, 10.0, 0.3, 3e-4)}  # fmt: skip
FLOWS = {(2, 0.0): (6, 8, 12), (4, 0.0): (2, 3, 4, 5, 6, 8, 10), (4, 0.5): (3, 8), (4, 1.0): (4, 6, 8, 10)}


def contenders(case: Case) -> Iterator[Contender]:
    """Kernels by grids by steps; the widths of the flow are those of the data."""
    narrow, wide, width, s_min = SHAPES[case.name]
    for (order, eta), counts in FLOWS.items():
        for k in counts:
            grid = flow_grid(case.process, k + 1, narrow, wide, s_min)
            yield _contender(case, Flow(order, eta, width), grid, "flow grid", order * k + 1)
    for steps in (20, 60):
        yield _contender(case, sc.EulerMaruyama(), sc.TimeGrid.uniform(steps), "uniform", steps)
        yield _contender(case, sc.SecondOrder(), sc.TimeGrid.geometric(steps, s_min), "geometric", 2 * steps - 1)
    for kernel in (sc.Exponential(), sc.Ancestral(), sc.DDIM(0.0)):
        yield _contender(case, kernel, sc.TimeGrid.log_snr(40, s_min), "log_snr", 40)
    if case.affine:
        yield _contender(case, sc.ExactTransition(), sc.TimeGrid.uniform(1), "uniform", 1)


def _contender(case: Case, kernel: sc.kernels.Kernel, grid: sc.TimeGrid, name: str, calls: int) -> Contender:
    def run(n: int, seed: int, initial: torch.Tensor | None = None) -> np.ndarray:
        path = sc.simulate(case.process, initial=initial, grid=grid, kernel=kernel, n=n, noise=sc.Noise(seed),
                           keep="ends", dtype=torch.float32)  # fmt: skip
        return path.terminal.numpy()

    def push(start: np.ndarray) -> np.ndarray:
        return run(len(start), 0, torch.from_numpy(start))

    def law() -> tuple[np.ndarray, np.ndarray]:
        m = sc.moments(case.process, kernel, grid)
        vectors = spectrum(case.law)[1]
        variances = np.einsum("ij,ik,kj->j", vectors, m.covariances[-1].numpy(), vectors)
        return m.means[-1].numpy(), np.sqrt(np.clip(variances, 0, None))

    deterministic = getattr(kernel, "eta", 1.0) == 0.0
    return Contender(FAMILY, repr(kernel), name, grid.steps, calls, run, law=law if case.affine else None,
                     push=push if deterministic else None)  # fmt: skip
