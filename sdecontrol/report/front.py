"""The exact front: the largest reward at every price in nats, which no law beats.

At the price KL = KL(p_T || p_pre) the largest mean reward is that of the tilt at some temperature T: E_T r with
KL = E_T r / T - log C(T). A sweep of T draws the curve (Lagrange; Gibbs' variational principle).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NotDefined, NoTilt, ValueBlowUp
from sdecontrol.evaluate import total_reward
from sdecontrol.girsanov import effective_sample_size
from sdecontrol.kernels import Kernel
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid

FACTORS = 2.0 ** np.arange(5, -5.5, -0.5)  # temperatures, in units of the problem's, falling
DRAWS = 20_000
FEWEST = 400  # effective draws below which a point is left out
CLOSED, FROM_TILT, WEIGHED = "closed form", "draws of the tilt", "weights of draws of p_pre"


@dataclass(frozen=True)
class Point:
    """E_T r and KL(p_T || p_pre) at one temperature, standard errors 0 where closed."""

    temperature: float
    kl: float
    reward: float
    kl_stderr: float = 0.0
    reward_stderr: float = 0.0
    route: str = CLOSED

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def front(problem: Problem, grid: TimeGrid, kernel: Kernel, seed: int, reference: Tensor | None = None) -> list[Point]:
    """Points by falling temperature, as far as there is a tilt. `reference`: rewards of paths without control, if any.

    Each is closed where the family is; else, at the problem's own temperature, from draws of the tilt where they exist;
    else weighed draws of p_pre, or paths of the chain where that cannot be drawn from, while enough of them count.
    A network's paths are dear: none are drawn for it, and without a `reference` it has no points.
    """
    if reference is None and not problem.process.elementwise:
        return []
    rewards = cache(lambda: _reference_rewards(problem, grid, kernel, seed, reference))
    points = []
    for temperature in (float(t) for t in FACTORS * problem.temperature):
        try:
            point: Point | None = _closed(problem, temperature)
        except (NoTilt, ValueBlowUp):
            break
        except (NoClosedForm, NotDefined):
            own = temperature == problem.temperature
            point = (_from_tilt(problem, seed) if own else None) or _weighed(rewards(), temperature)
        if point is not None:
            points.append(point)
    return points


def _closed(problem: Problem, temperature: float) -> Point:
    p = problem
    exact = Problem(p.process, p.reward, temperature, p.running_reward, exact=p.find_exact).exact
    kl, log_c = float(exact.path_kl), float(exact.log_normalizer)
    return Point(temperature, kl, temperature * (kl + log_c))


def _from_tilt(problem: Problem, seed: int) -> Point | None:
    """log C is closed and the tilt can be drawn from, but E r is not closed."""
    t = problem.temperature
    try:
        log_c = problem.exact.log_normalizer
        r = problem.reward(problem.exact.terminal.sample(DRAWS, Noise(seed), "front")).double()
    except (NoClosedForm, NotDefined):
        return None
    mean, stderr = float(r.mean()), float(r.std()) / len(r) ** 0.5
    return Point(t, mean / t - log_c, mean, stderr / t, stderr, FROM_TILT)


def _reference_rewards(problem: Problem, grid: TimeGrid, kernel: Kernel, seed: int, reference: Tensor | None) -> Tensor:
    """Rewards of draws of p_pre: exact ones, else those at hand, else of paths of the chain."""
    if problem.running_reward is None:
        try:
            return problem.reward(problem.exact.reference.sample(DRAWS, Noise(seed), "front")).double()
        except (NoClosedForm, NotDefined):
            pass
    if reference is not None and not problem.process.elementwise:
        return reference
    observe = None
    if problem.running_reward is not None:
        observe = lambda k, t, x: problem.running_rate(t, x)  # noqa: E731
    path = simulate(problem.process, grid=grid, kernel=kernel, n=DRAWS, noise=Noise(seed), keep="ends", observe=observe)
    return total_reward(problem, path)


def _weighed(rewards: Tensor, temperature: float) -> Point | None:
    log_w = rewards / temperature
    return weighed(log_w, rewards, temperature) if effective_sample_size(log_w) >= FEWEST else None


def weighed(log_w: Tensor, rewards: Tensor, temperature: float) -> Point:
    """The tilt by weighed paths: E_T r = E w r / Z, KL = E_T r / T - log Z; errors by the delta method.

    log_w (n,): r / T - log ratio of each path, the log ratio 0 for paths of the reference.
    """
    n, log_z = len(log_w), float(log_w.logsumexp(0) - np.log(len(log_w)))
    w = torch.exp(log_w - log_z)
    mean = float((w * rewards).mean())
    kl = mean / temperature - log_z
    kl_influence = w * (rewards / temperature - mean / temperature - 1) + 1
    return Point(
        temperature, kl, mean, float(kl_influence.std()) / n**0.5, float((w * (rewards - mean)).std()) / n**0.5, WEIGHED
    )
