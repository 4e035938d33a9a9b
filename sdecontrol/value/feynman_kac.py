"""The value function by Monte Carlo: v(t, x) = temperature log E[exp((r(Y_T) + int rho)/temperature) | Y_t = x]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.kernels import Kernel
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.time import TimeGrid
from sdecontrol.value.estimate import LogMean, ValueEstimate, exact_log_mean, warn_of
from sdecontrol.value.integrand import Task, checked
from sdecontrol.value.methods import Method
from sdecontrol.value.portfolio import Portfolio

_BY_PATHS, _BY_LAW = 2**13, 2**16  # evaluations a row when not told


def feynman_kac(
    problem: Problem,
    t: float | Tensor,
    x: Tensor,
    n: int | None = None,
    method: Method | None = None,
    noise: Noise | None = None,
    *,
    grid: TimeGrid | None = None,
    kernel: Kernel | None = None,
) -> ValueEstimate:
    """v and log h at rows (t, x), with standard errors, effective sample sizes and Pareto tail indices.

    h(t, x) = E[exp((r(Y_T) + int_t^T rho ds)/temperature) | Y_t = x], v = temperature log h, all in the log domain.
    Shapes: t a generation time, or one a row; x (rows, *event); results (rows,). n: evaluations a row (the fine path,
    its two coarser ones included, counts once). method: one of sdecontrol.value; None is `Portfolio()`.
    grid, kernel: of the chain where the law of Y_T given Y_t is not known; grid is the coarsest of three nested ones
    (default: every fourth time of the process's own), and Richardson's extrapolation removes the step bias.
    Accuracy: unbiased up to O(1/n) of the logarithm; `stderr` holds the sampling and the step error.
    Raises: BadInput for shapes and times; NotFinite for a reward that is not finite; what a method raises.
    Warns: UnreliableWeights when the weights' tail makes the error bar meaningless.
    Source: Tang 2403.06279, (3.24), with the running reward of (3.10); the estimators: see each method.
    """
    times, x = checked_rows(problem, t, x)
    check(n is None or (isinstance(n, int) and n >= 64), f"n = {n!r}", "at least 64 evaluations a row")
    method, noise = method or Portfolio(), noise or Noise(0)
    check(isinstance(method, Method), f"a method of type {type(method).__name__}", "one of sdecontrol.value's methods",
          "Pass an instance, such as sc.value.Laplace().")  # fmt: skip
    parts, order = [], []
    for time in sorted(set(times.tolist())):
        rows = (times == time).nonzero()[:, 0].tolist()
        parts.append(_at(Task(problem, time, x[rows], grid, kernel), n, method, noise))
        order += rows
    found = LogMean.join(parts, order)
    advice = "Take Portfolio(), Laplace(), Adapted() or ImportanceSampling(control)."
    warn_of(found.pareto_k, found.ess, found.carriers, advice)
    return found.value(problem.temperature)


def _at(task: Task, n: int | None, method: Method, noise: Noise) -> LogMean:
    if task.t == task.problem.process.horizon:
        return exact_log_mean(checked(task.problem, task.problem.reward(task.x)))
    default = _BY_LAW if task.integrand.levels == 1 else _BY_PATHS
    return method.run(task, n or default, noise)


def checked_rows(problem: Problem, t: Any, x: Any) -> tuple[Tensor, Tensor]:
    """Times (rows,) and states (rows, *event), both checked."""
    process, x = problem.process, torch.as_tensor(x)
    x = x.detach().to(torch.float64)
    check(
        x.ndim == 1 + len(process.event_shape) and tuple(x.shape[1:]) == process.event_shape and len(x) > 0,
        f"states of shape {tuple(x.shape)}", f"(rows, {', '.join(map(str, process.event_shape))})",
        "One state is x[None].",
    )  # fmt: skip
    check(bool(torch.isfinite(x).all()), "states with NaN or infinite entries", "finite numbers")
    times = torch.as_tensor(t, dtype=torch.float64)
    check(times.ndim == 0 or times.shape == (len(x),), f"times of shape {tuple(times.shape)}", f"one, or ({len(x)},)")
    inside = bool(((times >= 0) & (times <= process.horizon)).all())
    check(inside, f"t = {times.tolist()}", f"generation times in [0, {process.horizon:g}]", "t = 0 is noise.")
    return times.expand(len(x)), x
