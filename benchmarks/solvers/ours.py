"""This library through sc.simulate(keep="ends"): with a score that is only a function, and with the law known.

`FAMILY` competes on equal terms: its process holds the same closed score as everybody's, wrapped as sc.Score, so that
nothing but calls of that function is known. `CLOSED` uses what the library knows of the law: exact transitions.
Widths and grids of the Adams kernels were found once, by a search on the error alone (docs/accuracy.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import torch

import sdecontrol as sc
from benchmarks.solvers.case import Case, Contender, Impulses
from sdecontrol.kernels_flow import Flow, Switch, flow_grid
from sdecontrol.kernels_mixture import ExactPosterior
from sdecontrol.kernels_multistep import Adams

FAMILY, CLOSED = "sdecontrol", "sdecontrol, law known"


@dataclass(frozen=True)
class Tuned:
    """An Adams kernel with its grid: scales of the data, sqrt(tau) of the closing level or 0, and of the first step.

    With `noisy` the first step is Adams(1, eta=1), which forgets that N(0, I) is not the noised law.
    """

    order: int
    calls: int
    width: float
    narrow: float
    wide: float
    close: float = 0.0
    first: float | None = None
    noisy: bool = False

    def __str__(self) -> str:
        return f"Adams, order {self.order}" + (" after a noisy step" if self.noisy else "")

    def kernel(self) -> sc.kernels.Kernel:
        flow = Adams(self.order, 0.0, self.width, self.narrow, self.wide, tweedie=self.close > 0)
        return flow if not self.noisy else Switch(Adams(1, 1.0, self.width), flow, 0.999)

    def grid(self, process: sc.ReverseProcess) -> sc.TimeGrid:
        s_min = process.schedule.noise_level_at(-2 * np.log(self.close)) if self.close else 0.0
        return flow_grid(process, self.calls, self.narrow, self.wide, s_min, self.first)


TUNED = {
    "gaussian": (
        Tuned(4, 4, 0.364, 0.103, 19.17),
        Tuned(3, 4, 0.453, 0.153, 14.07),
        Tuned(2, 5, 0.311, 0.214, 6.38),
        Tuned(2, 9, 0.284, 0.104, 29.5, first=8.8, noisy=True),
        Tuned(3, 11, 0.957, 0.174, 16.93, first=22.6, noisy=True),
    ),
    "mixture": (
        Tuned(4, 6, 0.577, 0.143, 7.131, first=6.814),
        Tuned(4, 7, 0.575, 0.183, 6.964, first=8.214),
        Tuned(3, 7, 0.332, 0.14, 9.24),
        Tuned(4, 10, 0.568, 0.199, 10.138, first=14.019),
        Tuned(4, 12, 0.564, 0.187, 7.011, first=11.217),
        Tuned(4, 14, 0.576, 0.196, 8.121, first=14.935),
        Tuned(3, 16, 0.327, 0.229, 15.96),
    ),
    "digits-gaussian": (
        Tuned(4, 5, 0.248, 0.083, 11.23, close=0.0233),
        Tuned(3, 5, 0.233, 0.064, 8.55, close=0.0218),
        Tuned(3, 6, 0.3, 0.071, 7.54, close=0.0253),
        Tuned(3, 12, 0.442, 0.054, 17.82, close=0.0041, first=8.6, noisy=True),
        Tuned(3, 14, 0.488, 0.069, 10.79, close=0.0038, first=12.9, noisy=True),
    ),
    "digits-mixture": (
        Tuned(4, 6, 0.38, 0.1226, 8.4, close=0.0299, first=6.83),
        Tuned(4, 7, 0.403, 0.1351, 8.847, close=0.0057, first=10.16),
        Tuned(4, 8, 0.2025, 0.0819, 4.356, close=0.0263, first=5.72),
        Tuned(3, 8, 0.3, 0.07, 7.5, close=0.006),
        Tuned(3, 10, 0.3, 0.07, 7.5, close=0.006),
        Tuned(3, 8, 0.3, 0.07, 7.5, close=0.006, first=10.0, noisy=True),
        Tuned(3, 10, 0.3, 0.07, 7.5, close=0.006, first=10.0, noisy=True),
        Tuned(2, 10, 0.3, 0.07, 4.0, close=0.006, first=10.0, noisy=True),
        Tuned(3, 12, 0.3, 0.07, 7.5, close=0.006, first=20.0, noisy=True),
        Tuned(3, 14, 0.3, 0.07, 7.5, close=0.006, first=20.0, noisy=True),
    ),
}  # fmt: skip

# of the one-step kernels: widths of the grid (narrow, wide), width of the flow's variable, closing level
SHAPES = {"gaussian": (0.3, 10.0, 0.55, 1e-3), "mixture": (0.3, 10.0, 0.55, 1e-3),
          "digits-gaussian": (0.12, 10.0, 0.3, 3e-4), "digits-mixture": (0.12, 10.0, 0.3, 3e-4)}  # fmt: skip
FLOWS = {(2, 0.0): (6, 12), (4, 0.0): (3, 4, 5, 7, 10), (4, 1.0): (6, 8, 10)}


@dataclass(frozen=True)
class GivenNoise(sc.Noise):
    """Normals of the first steps from outside, (n, dim) each; zeros after them."""

    normals: list[torch.Tensor] = field(default_factory=list)

    def steps(self, index: int, event_shape: object, times: np.ndarray, start: int = 0) -> Iterator[torch.Tensor]:
        size = self.block_size(tuple(event_shape))  # type: ignore[arg-type]
        for draw in self.normals[start:]:
            part = draw[index * size : (index + 1) * size]
            yield torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])])
        yield from repeat(torch.zeros(1).expand(size, *event_shape))  # type: ignore[misc]


def black_box(case: Case) -> sc.ReverseProcess:
    """The case with its score as a function (x, s) -> score, and nothing else known of the law."""
    model = case.process.model
    score = sc.Score(lambda x, s: model.score(x, s)[0])
    return sc.ReverseProcess(case.process.schedule, score, event_shape=(case.dim,))


def contenders(case: Case) -> Iterator[Contender]:
    process, (narrow, wide, width, s_min) = black_box(case), SHAPES[case.name]
    for tuned in TUNED[case.name]:
        kernel, grid = tuned.kernel(), tuned.grid(process)
        yield _contender(case, process, FAMILY, kernel, grid, "flow grid", tuned.calls, str(tuned))
    for (order, eta), counts in FLOWS.items():
        for k in counts:
            grid = flow_grid(process, k + 1, narrow, wide, s_min)
            yield _contender(case, process, FAMILY, Flow(order, eta, width), grid, "flow grid", order * k + 1)
    uniform, late = sc.TimeGrid.uniform(60), sc.TimeGrid.log_snr(40, s_min)
    yield _contender(case, process, FAMILY, sc.EulerMaruyama(), uniform, "uniform", 60)
    yield _contender(case, process, FAMILY, sc.SecondOrder(), sc.TimeGrid.geometric(60, s_min), "geometric", 119)
    yield _contender(case, process, FAMILY, sc.DDIM(0.0), late, "log_snr", 40)
    exact = sc.ExactTransition() if case.affine else ExactPosterior()
    yield _contender(case, case.process, CLOSED, exact, sc.TimeGrid.uniform(1), "uniform", 0)


def _contender(
    case: Case, process: sc.ReverseProcess, family: str, kernel: sc.kernels.Kernel, grid: sc.TimeGrid, name: str,
    calls: int, label: str = "",
) -> Contender:  # fmt: skip
    first_only = isinstance(kernel, Switch | ExactPosterior)
    draws = 0 if getattr(kernel, "eta", 1.0) == 0.0 else 1 if first_only else grid.steps

    def run(
        n: int, noise: sc.Noise, initial: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> np.ndarray:
        path = sc.simulate(process, initial=initial, grid=grid, kernel=kernel, n=n, noise=noise, keep="ends",
                           dtype=dtype, workers=torch.get_num_threads())  # fmt: skip
        return path.terminal.numpy()

    def push(normals: np.ndarray) -> np.ndarray:
        start, *rest = torch.from_numpy(normals).split(case.dim, dim=1)
        return run(len(normals), GivenNoise(normals=rest), start)

    def probe(impulses: Impulses) -> np.ndarray:
        drawn = [torch.from_numpy(impulses.draw()) for _ in range(draws)]
        return run(impulses.rows, GivenNoise(normals=drawn), torch.from_numpy(impulses.start()), torch.float64)

    return Contender(family, label or repr(kernel), name, grid.steps, calls, lambda n, seed: run(n, sc.Noise(seed)),
                     probe=probe if case.affine else None, push=push, threads=True, draws=draws)  # fmt: skip
