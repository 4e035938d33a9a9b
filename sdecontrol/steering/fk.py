"""Feynman-Kac steering: particles of the reference chain, or of a proposal, resampled by what they promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdecontrol.controls import Control, as_control
from sdecontrol.errors import NotDefined, check
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Law
from sdecontrol.noise import Noise
from sdecontrol.processes import ReverseProcess
from sdecontrol.steering.base import Particles, Sampler, check_count, log_mean
from sdecontrol.steering.potentials import Potential, potential_of
from sdecontrol.steering.resampling import Systematic
from sdecontrol.steering.smc import Scheme, log_mean_weight, value_to_go
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


class FeynmanKac(Sampler):
    """Weighted populations of particles; see `fk`."""

    def __init__(self, problem: Problem, scheme: Scheme):
        super().__init__(problem)
        self.scheme = scheme

    def _run(self, grid: TimeGrid, kernel: Kernel, n: int, noise: Noise) -> Particles:
        particles = self.scheme.particles
        cloud = self.scheme.run(grid, kernel, -(-n // particles), noise)
        log_z = log_mean_weight(cloud)
        return Particles(
            cloud.x, cloud.log_weights.reshape(-1), log_mean(log_z, "log of the mean weight over populations"),
            cloud.phi * self.problem.temperature, len(log_z),
        )  # fmt: skip


def check_value(problem: Problem, value: Any) -> None:
    """Raises NotDefined where the default value r(x0_hat) does not exist."""
    if value is None and not isinstance(problem.process, ReverseProcess):
        raise NotDefined(
            f"a {type(problem.process).__name__} has no x0_hat to read the reward at; pass value=problem.exact, a grid "
            "solution or a function (t, x) -> (n,)"
        )


def check_made_for(problem: Problem, proposal: Control | None) -> None:
    """Raises BadInput for a proposal of another problem."""
    made_for = None if proposal is None else proposal.problem
    check(made_for in (None, problem), f"a proposal made for {made_for!r}", f"one made for {problem!r}")


def fk(
    problem: Problem, particles: int, *, potential: str | Potential = "difference", value: Any = None,
    proposal: Any = None, initial: Law | None = None, threshold: float = 0.5, every: int = 1,
) -> FeynmanKac:  # fmt: skip
    """Weight a population by e^{phi_k}, phi_k a potential of the promises v_j = value(t_j, x_j)/temperature, j <= k.

    A population is resampled where its effective size is below threshold * particles (0: never, plain importance
    sampling; 1: always), and its weights go on accumulating where it is not. The last weight puts the reward over the
    temperature in the place of phi, so E mean(e^{log_weight} f(x_K)) = Z E_tilt f exactly for every f, potential,
    value, proposal, threshold and grid, the tilt being that of the chain, its initial law included.
    particles: of a population, at least 2. potential: "difference", "max" or "sum", or a Potential. value: the default
    is the reward at x0_hat; else an object with value(t, x) or a function. With the exact value, a proposal that is the
    optimal kernel and initial = nu*, all weights are Z. proposal: a control. initial: the law the particles start from.
    every: steps between two readings. Cost: one model call a step and particle. Means within a population are biased
    by O(1/particles); log Z is biased low by half its variance.
    Raises: BadInput, UnknownName, NotDefined without x0_hat and value; in a run NotFinite where all weights are zero.
    Source: Feynman-Kac steering (2501.06848); the accumulated weights: derived.
    """
    control = as_control(proposal)
    check_value(problem, value)
    check_made_for(problem, control)
    check(0 <= threshold <= 1, f"threshold = {threshold}", "a share of the particles in [0, 1]")
    check(initial is None or isinstance(initial, Law), f"initial of type {type(initial).__name__}", "a law")
    return FeynmanKac(problem, Scheme(
        problem, check_count("particles", particles, 2), Systematic(float(threshold)), potential_of(potential),
        value_to_go(problem, value), control, initial, check_count("every", every, 1),
    ))  # fmt: skip
