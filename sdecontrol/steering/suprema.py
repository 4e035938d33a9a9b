"""The largest value of a reward over what a chain can put out, which rejection sampling needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sdecontrol.errors import NotDefined
from sdecontrol.kernels import DDIM, Ancestral, Kernel, SecondOrder
from sdecontrol.laws import ClassPosterior, Subspace
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import FLAT, Quadratic, Reward, Step
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

def supremum(problem: Problem, kernel: Kernel, grid: TimeGrid) -> float:
    """sup r over the space, or over the subspace on which the chain ends; in units of the reward.

    Quadratic: c + g' K^+ g / 2 for K >= 0 with g in its range. Step: max(height, 0). ClassPosterior: that of its extra.
    Raises: NotDefined for a reward that is unbounded there, or of which nothing is known, or with a running reward.
    """
    reward = problem.reward
    if problem.running_reward is not None or not isinstance(reward, Reward):
        raise NotDefined("the largest total reward is not known here; pass bound=, a number that it never exceeds")
    law = _support(problem, kernel, grid)
    if law is not None:
        reward = reward.restrict(law.basis, law.offset)
    if isinstance(reward, Step):
        return max(reward.height, 0.0)
    if isinstance(reward, Quadratic):
        return _top(reward)
    if isinstance(reward, ClassPosterior) and reward.strength >= 0:  # log p(class | x) <= 0
        return 0.0 if reward.extra is None else _top(reward.extra)
    raise NotDefined(f"the largest {type(reward).__name__} is not known; pass bound=, a number that it never exceeds")


def _support(problem: Problem, kernel: Kernel, grid: TimeGrid) -> Subspace | None:
    """The subspace on which x_K lies: kernels that end in x0_hat put an exact score's last state on it."""
    process = problem.process
    if (
        not isinstance(process, ReverseProcess)
        or not process.has_exact_score
        or grid.resolve(process).noise_levels[-1] != 0
    ):
        return None
    law = process.data_law
    return law if isinstance(law, Subspace) and isinstance(kernel, Ancestral | DDIM | SecondOrder) else None


def _top(reward: Quadratic) -> float:
    values, vectors = torch.linalg.eigh(reward.curvature)
    slopes, scale = vectors.mT @ reward.linear, float(values.abs().max())
    flat = values.abs() <= FLAT * scale
    if bool((values[~flat] < 0).any()) or bool((slopes[flat].abs() > FLAT * reward.linear.abs().max()).any()):
        raise NotDefined(
            "the reward is unbounded above: any stopping rule on draws from the reference needs ess sup dp_ft/dp_pre = "
            "infinity of them on average (Wald), whatever the scheme. Use sc.steering.fk, or bound= for a reward that "
            "is known to be bounded on what the chain puts out."
        )
    top = reward.constant + float((slopes[~flat] ** 2 / values[~flat]).sum()) / 2
    return top + 8 * math.ulp(abs(top) + abs(reward.constant) + scale)
