"""The discrete rung: at which order in the step each kernel's chain approaches the continuum, without sampling.

A Gaussian in one and in four dimensions, started from p_noise, uniform steps on [0, 0.9 T]. Without control: mean and
covariance of the last state. Under u* from nu*, held over each step: the path KL, whose limit is KL(Q*_t || Q_t), for
dQ*/dQ on [0, t] is a function of Y_t (derived). Orders by extrapolation of the local slopes.
"""

from __future__ import annotations

from typing import Any

import torch

import sdecontrol as sc
from experiments.record import record
from sdecontrol.orders import Order, observed_order

STEPS = [64, 128, 256, 512, 1024]
FRACTION = 0.9  # of the horizon: a closing step to the data is noiseless and has an error of its own
KERNELS = {
    "EulerMaruyama": sc.EulerMaruyama(),
    "Exponential": sc.Exponential(),
    "Ancestral small": sc.Ancestral(),
    "Ancestral large": sc.Ancestral("large"),
    "DDIM 1": sc.DDIM(1.0),
    "SecondOrder": sc.SecondOrder(),
    "ExactTransition": sc.ExactTransition(),
}
NOTHING = 1e-12  # errors below are rounding: the kernel has none


def problems() -> dict[str, Any]:
    one = sc.Gaussian([0.5], [[0.6]])
    root = torch.tensor([[0.9, 0, 0, 0], [0.3, 0.7, 0, 0], [-0.2, 0.2, 0.6, 0], [0.1, -0.3, 0.2, 1.0]])
    four = sc.Gaussian([0.5, -0.5, 0.2, 1.0], root.double() @ root.double().mT)
    bend = torch.diag(torch.tensor([0.5, -0.1, 0.2, 0.3], dtype=torch.float64))
    return {
        "1-D VP": sc.Problem(sc.ReverseProcess(sc.VP(0.1, 5.0), one), sc.Quadratic([1.0], [[0.8]]), 0.5),
        "4-D VP": sc.Problem(sc.ReverseProcess(sc.VP(0.1, 5.0), four),
                             sc.Quadratic([1.0, 0.0, -0.5, 0.5], bend), 0.8),
        "1-D VE": sc.Problem(sc.ReverseProcess(sc.VE(0.5, 3.0), one), sc.Quadratic([1.0], [[0.8]]), 0.5),
    }  # fmt: skip


def errors(problem: Any, kernel: Any, steps: int) -> dict[str, float]:
    """Deviations of the chain from the continuum: mean along grad r(0), trace of the covariance, path KL."""
    process, exact = problem.process, problem.exact
    g = problem.reward.gradient(torch.zeros(1, process.dim, dtype=torch.float64))[0]
    end = FRACTION * process.horizon
    grid = sc.TimeGrid.explicit([end * k / steps for k in range(steps + 1)])
    once = sc.moments(process, sc.ExactTransition(), sc.TimeGrid.explicit([0.0, end]))
    reference, best = sc.Gaussian(once.means[-1], once.covariances[-1]), exact.marginal(end)
    free = sc.moments(process, kernel, grid)
    run = sc.moments(process, kernel, grid, exact.initial, exact.control)
    return {
        "mean": float(g @ (free.means[-1] - reference.mean)),
        "covariance": float((free.covariances[-1] - reference.covariance).trace()),
        "path KL": run.kl - sc.laws.kl(best, reference),
    }


def settled_order(column: list[float]) -> Order:
    """The order from where the error no longer changes sign."""
    turns = [k for k in range(1, len(column)) if column[k] * column[k - 1] < 0]
    start = turns[-1] if turns else 0
    return observed_order(column[start:], STEPS[start:])


def table(problem: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kernel in KERNELS.items():
        rows = [errors(problem, kernel, steps) for steps in STEPS]
        found[name] = {}
        for quantity in rows[0]:
            column = [row[quantity] for row in rows]
            order = None if max(map(abs, column)) < NOTHING else settled_order(column)
            found[name][quantity] = {
                "order": None if order is None else order.limit,
                "uncertainty": None if order is None else order.uncertainty,
                "errors": column,
            }
    return found


def expected(kernel: str, quantity: str) -> int | None:
    """The declared order without control; 1 under a control that is held over each step; None: no error at all."""
    if quantity in ("mean", "covariance"):
        order = KERNELS[kernel].order_weak
        return None if order > 2 else order
    return 1


def measure() -> dict[str, Any]:
    tables = {name: table(problem) for name, problem in problems().items()}
    off = [
        (abs(cell["order"] - wanted), f"{name}, {kernel}, {quantity}")
        for name, rows in tables.items()
        for kernel, cells in rows.items()
        for quantity, cell in cells.items()
        if (wanted := expected(kernel, quantity)) is not None and cell["order"] is not None
    ]
    worst = max(off)
    every = [cell for rows in tables.values() for cells in rows.values() for cell in cells.values()]
    exact = [cell for cell in every if cell["order"] is None]
    largest = max(abs(error) for cell in exact for error in cell["errors"])
    return {
        "steps": STEPS,
        "tables": tables,
        "cells": len(off),
        "worst_deviation": worst[0],
        "worst_cell": worst[1],
        "exact_cells": len(exact),
        "largest_error_of_exact_cells": largest,
    }


def main() -> None:
    record("orders", measure())


if __name__ == "__main__":
    main()
