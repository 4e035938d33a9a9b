"""The gradient of the value: grad v = temperature grad h / h, a self-normalised ratio with the delta method."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.estimate import Estimate
from sdecontrol.kernels import Kernel
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.time import TimeGrid
from sdecontrol.value.estimate import extrapolated, spread, warn_of
from sdecontrol.value.feynman_kac import checked_rows
from sdecontrol.value.gradient_rules import Bismut
from sdecontrol.value.gradient_terms import GradientMethod
from sdecontrol.value.integrand import Task

_ROUNDING = 1e-14  # relative to the largest coordinate


def value_gradient(
    problem: Problem,
    t: float | Tensor,
    x: Tensor,
    method: GradientMethod | None = None,
    n: int = 2**13,
    noise: Noise | None = None,
    *,
    along: Tensor | None = None,
    grid: TimeGrid | None = None,
    kernel: Kernel | None = None,
) -> Estimate:
    """grad v(t, x) at rows (t, x): an Estimate of shape (rows, d), errors coordinate by coordinate.

    u* = amplitude(t) grad v / temperature is the best control there. method: `Bismut()` by default. along (k, d): the
    derivatives along these vectors instead, (rows, k), each with its own error. Chains as in `feynman_kac`,
    extrapolated to steps of length zero; stderr holds the sampling and the step error.
    Raises: BadInput for shapes, and for t = T where the reward itself has to be differentiated; what a method raises.
    Warns: UnreliableWeights when the weights' tail makes the error bars meaningless.
    Source: Tang 2403.06279, (3.27)-(3.30); the weights of chains: derived, see each method.
    """
    times, x = checked_rows(problem, t, x)
    check(len(problem.process.event_shape) == 1, f"events {problem.process.event_shape}", "vectors (d,)")
    check(bool((times < problem.process.horizon).all()), "t = T", "t < T, before the data", "There, v = r.")
    check(isinstance(n, int) and n >= 64, f"n = {n!r}", "at least 64 samples a row")
    method, noise = method or Bismut(), noise or Noise(0)
    check(isinstance(method, GradientMethod), f"a method of type {type(method).__name__}",
          "Pathwise(), Bismut(), LikelihoodRatio() or Swap()")  # fmt: skip
    turn = _directions(along, problem.process.dim)
    values, errors, tails, effective, carried = [], [], [], [], []
    for time, row in zip(times.tolist(), x):
        found = method.gradient(Task(problem, time, row[None], grid, kernel), n, noise, turn)
        gradient, left, influence = extrapolated(found.levels, found.influence, found.order)
        rounding = _ROUNDING * float(gradient.abs().max())
        error, carriers = spread(influence)
        values.append(gradient)
        errors.append(torch.hypot(error, left + rounding))
        carried.append(float(torch.where(error > rounding, carriers, math.inf).min()))
        tails.append(found.pareto_k)
        effective.append(found.ess)
    advice = "Raise the temperature, start closer to the end, or take problem.exact or a grid."
    warn_of(torch.tensor(tails), torch.tensor(effective), torch.tensor(carried), advice, found.wanted)
    scale = problem.temperature
    route = f"{method!r}, self-normalised"
    return Estimate((scale * torch.stack(values)).numpy(), (scale * torch.stack(errors)).numpy(), n, route)


def _directions(along: Tensor | None, d: int) -> Tensor | None:
    """The vectors of `along` as columns (d, k)."""
    if along is None:
        return None
    vectors = torch.as_tensor(along, dtype=torch.float64)
    check(vectors.ndim == 2 and vectors.shape[1] == d, f"directions of shape {tuple(vectors.shape)}", f"(k, {d})")
    return vectors.mT
