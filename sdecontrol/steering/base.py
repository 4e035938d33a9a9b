"""What every sampler is and gives: a `Sampler` that remembers its problem, and the `Particles` of a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.estimate import Estimate
from sdecontrol.girsanov import effective, effective_sample_size
from sdecontrol.kernels import Kernel
from sdecontrol.noise import Noise
from sdecontrol.steering.resampling import comb
from sdecontrol.steering.scores import SamplerEvaluation, evaluate_particles
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Discretised, Problem


@dataclass(frozen=True)
class Particles:
    """n weighted samples in independent populations, one population after the other in the rows.

    x (n, *event); log_weights (n,) in float64; rewards (n,) total rewards; log_normalizer: log Z, None where the
    sampler has none. For particle samplers the weights are absolute: over runs, the mean of e^{log_weight} f(x) over a
    population is Z E_tilt f for every f, so that softmax(log_weights) over all n rows weighs the populations too.
    Within a population they are what its particles are drawn with, whose bias is O(1/particles).
    """

    x: Tensor
    log_weights: Tensor
    log_normalizer: Estimate | None
    rewards: Tensor
    populations: int

    @property
    def size(self) -> int:
        """Particles in a population."""
        return len(self.x) // self.populations

    @cached_property
    def weights(self) -> Tensor:
        """Weights within each population, summing to 1: (populations, size)."""
        return self.log_weights.reshape(self.populations, -1).softmax(1)

    @property
    def ess(self) -> Tensor:
        """Effective size of the last weights in each population: (populations,). It does not see shared ancestors."""
        return effective(self.log_weights.reshape(self.populations, -1), 1)

    def means(self, values: Tensor) -> Tensor:
        """Weighted mean in each population: (n, ...) -> (populations, ...)."""
        parts = values.unflatten(0, (self.populations, -1))
        w = self.weights.to(values).reshape(self.weights.shape + (1,) * (parts.ndim - 2))
        return torch.where(w > 0, w * parts, 0.0).sum(1)  # a reward of -infinity has no weight and no part

    def expect(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """E f under the law that the sampler draws from: the mean over populations of their weighted means."""
        return mean_of(self.means(function(self.x).double()), "mean over populations")

    def evaluation(self, chain: Discretised, optimum: Estimate | None) -> SamplerEvaluation:
        """What `sc.evaluate` and `sc.compare` report about this run of a sampler."""
        return evaluate_particles(self, chain, optimum)

    def pick(self, noise: Noise) -> Tensor:
        """One particle of each population, drawn with its weights: independent draws, (populations, *event)."""
        u = torch.cat([b.uniform()[: b.count] for b in noise.blocks("pick", self.populations, (1,))])
        rows = comb(self.weights, u, 1)[:, 0] + torch.arange(self.populations) * self.size
        return self.x[rows]


def mean_of(samples: Tensor, route: str) -> Estimate:
    """The mean with its standard error, which is NaN for one sample."""
    if len(samples) > 1:
        return Estimate.mean(samples, route)
    value = Estimate.exact(samples[0]).value
    return Estimate(value, value * math.nan, 1, f"{route}; one population has no standard error")


def log_mean(log_samples: Tensor, route: str) -> Estimate:
    """log of the mean of e^{log_samples}, biased low by half its variance; its error is NaN for one sample.

    The route says how many samples count, (sum Z)^2 / sum Z^2: where few do, the error bar is too short.
    """
    if len(log_samples) > 1:
        count = effective_sample_size(log_samples)
        route = f"{route}, biased low by half its variance; {count:.3g} of {len(log_samples)} populations count"
        return Estimate.log_mean_exp(log_samples, route)
    return Estimate(float(log_samples[0]), math.nan, 1, f"{route}; one population has no standard error")


class Sampler(ABC):
    """A way to draw from the tilt of one problem; `evaluate` and `run` refuse another."""

    def __init__(self, problem: Problem):
        self.problem = problem

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self.problem!r}>"

    def run(
        self, problem: Problem, *, grid: TimeGrid | None = None, kernel: Kernel | None = None, n: int = 1_000,
        noise: Noise | None = None,
    ) -> Particles:  # fmt: skip
        """n samples of the chain that `kernel` makes on `grid` (defaults: the process's).

        Particle samplers round n up to whole populations. The same noise for a sample (or population) whatever n is.
        Raises: BadInput for another problem or n; NotFinite naming step and time; InfiniteKL when a proposal meets a
        noiseless step before the last.
        """
        check(problem is self.problem, f"{problem!r}", f"{self.problem!r}, for which the sampler was made",
              "Make the sampler again from this problem.")  # fmt: skip
        check(isinstance(n, int) and n >= 1, f"n = {n!r}", "a positive number of samples")
        process = problem.process
        noise = noise or process.default_noise
        check(process.groups == 1, f"{process.groups} conditions", "one: particles of different conditions do not mix",
              "Make a problem for each condition, and a sampler for each problem.")  # fmt: skip
        check(isinstance(noise, Noise), f"noise of type {type(noise).__name__}", "sc.Noise(seed)")
        with torch.no_grad():
            return self._run(grid or process.default_grid, kernel or process.default_kernel, n, noise)

    @abstractmethod
    def _run(self, grid: TimeGrid, kernel: Kernel, n: int, noise: Noise) -> Particles:
        """The run itself, its arguments checked and without a graph."""


def check_count(name: str, value: Any, least: int) -> int:
    """An integer of at least `least`. Raises BadInput."""
    check(isinstance(value, int) and value >= least, f"{name} = {value!r}", f"an integer of at least {least}")
    return int(value)
