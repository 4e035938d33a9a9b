"""Soft value-based decoding: at each step draw candidates and keep the one that promises most."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from sdecontrol.errors import check
from sdecontrol.kernels import Kernel
from sdecontrol.noise import Noise
from sdecontrol.steering.base import Particles, Sampler, check_count
from sdecontrol.steering.fk import check_value
from sdecontrol.steering.potentials import Difference
from sdecontrol.steering.resampling import One
from sdecontrol.steering.smc import Scheme, value_to_go
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


class SVDD(Sampler):
    """Each sample alone, with its own candidates; see `svdd`."""

    def __init__(self, problem: Problem, scheme: Scheme):
        super().__init__(problem)
        self.scheme = scheme

    def _run(self, grid: TimeGrid, kernel: Kernel, n: int, noise: Noise) -> Particles:
        cloud = self.scheme.run(grid, kernel, n, noise)
        kept = slice(None, None, self.scheme.particles)  # after the last choice a sample's candidates are one
        rewards = cloud.phi[kept] * self.problem.temperature
        return Particles(cloud.x[kept], torch.zeros_like(rewards), None, rewards, n)


def svdd(problem: Problem, candidates: int, *, temperature: float = 0.0, value: Any = None, every: int = 1) -> SVDD:
    """From x_k draw candidates of x_{k+1} by the reference kernel; keep one by softmax(value(t, x)/temperature).

    temperature 0 is the largest value (argmax), `problem.temperature` the soft rule; value as in `fk`, the default
    being the reward at x0_hat. candidates: at least 2. The start is p_noise, untilted. No weights and no log Z.
    Cost: `candidates` model calls a step and sample. Biased, unless the value is exact, candidates -> infinity at
    problem.temperature and the start is forgotten; the argmax overshoots the tilt's reward as candidates grow.
    Raises: BadInput; NotDefined without x0_hat and value; in a run NotFinite naming the step.
    Source: SVDD (2408.08252); the bias: derived.
    """
    check_value(problem, value)
    check(0 <= temperature < math.inf, f"temperature = {temperature}", "0 for the argmax, or a positive number")
    sharpness = math.inf if temperature == 0 else problem.temperature / temperature
    return SVDD(problem, Scheme(
        problem, check_count("candidates", candidates, 2), One(sharpness), Difference(), value_to_go(problem, value),
        every=check_count("every", every, 1),
    ))  # fmt: skip
