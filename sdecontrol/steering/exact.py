"""Draws of the exact tilt itself, where it is known: what every other law is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sdecontrol.errors import NotDefined, check
from sdecontrol.estimate import Estimate
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Law
from sdecontrol.noise import Noise
from sdecontrol.steering.base import Particles, Sampler
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


class ExactDraws(Sampler):
    """Independent draws of a law; see `exact_draws`."""

    def __init__(self, problem: Problem, law: Law, log_normalizer: float):
        super().__init__(problem)
        self.law, self.log_z = law, log_normalizer

    def _run(self, grid: TimeGrid, kernel: Kernel, n: int, noise: Noise) -> Particles:
        x = self.law.sample(n, noise, "tilt").to(self.problem.process.dtype)
        zeros = torch.zeros(n, dtype=torch.float64)
        return Particles(x, zeros, Estimate.exact(self.log_z), self.problem.reward(x).double(), n)


def exact_draws(problem: Problem, of: Problem | None = None) -> ExactDraws:
    """n independent draws of p_ft = e^{r/temperature} p_pre / C in continuous time: no chain, no bias, no model call.

    of: the problem whose tilt is meant, where it is another one than the problem that is scored: the same law with its
    exact score. Raises: NoClosedForm where the tilt is not closed; NotDefined with a running reward, whose part of the
    total is not seen at the end.
    """
    of = of or problem
    if problem.running_reward is not None:
        raise NotDefined("exact draws with a running reward: it is collected along paths, and these draws have none")
    check(of.process.event_shape == problem.process.event_shape, f"a tilt on {of.process.event_shape}",
          f"events {problem.process.event_shape}, those of the problem")  # fmt: skip
    return ExactDraws(problem, of.exact.terminal, of.exact.log_normalizer)
