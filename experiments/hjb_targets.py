"""`solve_hjb` under the path law: relative L2 errors of v and u*, seconds and observed orders, against what is wanted.

Mixtures in one, two and three dimensions, once with their exact score (`Smoothing`) and once through a score given as
a black box (`FiniteDifference`), and double wells, whose drift is no score. Errors are (mean |u - u*|^2 / mean |u*|^2)
to the power 1/2 over states of simulated paths, without control and under the exact one, at twelve times; the solver
never sees the exact answers. Seconds are those of the processor on one thread: box, solve, and one reading.
Rows already recorded are kept: an interrupted run goes on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdecontrol as sc
from experiments.hjb_grid import SCHEDULE, plane, space
from experiments.record import resumed
from sdecontrol.value import FiniteDifference, Smoothing, axes_for
from sdecontrol.value.hjb_scheme import Scheme

PATHS, TIMES = 1_000, 12


@dataclass(frozen=True)
class Row:
    """A problem, the nodes an axis, the scheme; the wanted errors of v and u and seconds; how much wider the box is."""

    kind: str
    points: tuple[int, ...]
    scheme: Scheme
    wanted: tuple[float, float, float]
    stretch: float = 1.0

    @property
    def dim(self) -> int:
        return len(self.points)

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.dim}-D"


ROWS = [
    Row("exact score", (128,), Smoothing(), (1e-8, 1e-8, 2)),
    Row("exact score", (128,) * 2, Smoothing(), (1e-8, 1e-8, 10)),
    Row("exact score", (80,) * 3, Smoothing(), (1e-5, 1e-4, 30)),
    Row("black-box score", (512,), FiniteDifference(tolerance=1e-9), (1e-8, 1e-7, 5), 1.5),
    Row("black-box score", (96,) * 2, FiniteDifference(), (1e-5, 1e-4, 30)),
    Row("black-box score", (40,) * 3, FiniteDifference(tolerance=1e-6), (1e-3, 1e-2, 120)),
    Row("double well", (256,), FiniteDifference(), (1e-8, 1e-7, 5), 1.2),
    Row("double well", (128,) * 2, FiniteDifference(), (1e-5, 1e-4, 30), 1.1),
    Row("double well", (88, 44, 44), FiniteDifference(tolerance=3e-6), (1e-3, 1e-2, 120)),
]


def line() -> sc.Problem:
    law = sc.GaussianMixture([0.6, 0.4], [[-0.8], [0.9]], [0.25, 0.35])
    return sc.Problem(sc.ReverseProcess(SCHEDULE, law, "marginal"), sc.Quadratic([0.8], [[0.3]]), 0.8)


def hidden(problem: sc.Problem) -> sc.Problem:
    """The same with its score as a function that the library knows nothing of."""
    process = problem.process
    assert isinstance(process, sc.ReverseProcess)
    law, schedule = process.data_law, process.schedule

    def score(x: Tensor, s: float) -> Tensor:
        return law.noised(schedule.alpha(s), schedule.h(s)).score(x)

    return sc.Problem(
        sc.ReverseProcess(schedule, sc.Score(score), initial=process.initial_law(0.0)), problem.reward,
        problem.temperature,
    )  # fmt: skip


def pair(row: Row) -> tuple[sc.Problem, sc.Problem]:
    """The problem with its exact answers, and what the solver sees."""
    if row.kind == "double well":
        problem = sc.problems.double_well(row.dim, 1)
        return problem, problem
    problem = {1: line, 2: plane, 3: space}[row.dim]()
    return problem, problem if row.kind == "exact score" else hidden(problem)


def errors(problem: sc.Problem, solution: sc.value.HJBSolution) -> tuple[float, float]:
    """Relative L2 errors of v and u."""
    gap, size = np.zeros(2), np.zeros(2)
    for control, initial in ((None, None), (problem.exact.control, problem.exact.initial)):
        path = sc.simulate(problem.process, control, initial, n=PATHS, noise=sc.Noise(5))
        assert path.states is not None
        for k in np.linspace(0, len(path.times) - 2, TIMES).astype(int):
            t, x = float(path.times[k]), path.states[k].double()
            for i, name in enumerate(("value", "control")):
                found, exact = (getattr(answers, name)(t, x) for answers in (solution, problem.exact))
                gap[i] += float((found - exact).square().sum())
                size[i] += float(exact.square().sum())
    v, u = np.sqrt(gap / size)
    return float(v), float(u)


def measured(row: Row) -> dict[str, Any]:
    problem, seen = pair(row)
    start = time.process_time()
    axes = [x.mean() + row.stretch * (x - x.mean()) for x in axes_for(seen, list(row.points), row.scheme)]
    solution = sc.solve_hjb(seen, axes, row.scheme)
    solution.control(0.5, torch.zeros(1, row.dim, dtype=torch.float64))
    seconds = time.process_time() - start
    v, u = errors(problem, solution)
    met = v <= row.wanted[0] and u <= row.wanted[1] and seconds <= row.wanted[2]
    return {
        "scheme": type(row.scheme).__name__, "points": list(row.points), "value": v, "control": u,
        "cpu_seconds": seconds, "wanted": list(row.wanted), "met": met,
        "order": solution.order if row.dim < 3 and isinstance(row.scheme, FiniteDifference) else None,
    }  # fmt: skip


def main() -> None:
    resumed("hjb_targets", {row.name: partial(measured, row) for row in ROWS})


if __name__ == "__main__":
    main()
