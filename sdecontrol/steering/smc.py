"""The loop of every particle sampler: independent populations on the reference chain, weighted in log space.

At step k one call of the model at x_k gives the promise v_k (a value over the temperature), the mean of the step and
the shift w_k of its noise by a proposal. Then the populations are resampled by their weights e^{base + phi_k}, the
particles move by x+ = mean + std (xi + w), and base -= w . xi + |w|^2 / 2. At the end phi_{K-1} is replaced by the
reward over the temperature, so that the product of all weights is e^{r/temperature} dQ/dQ^u of the path, whatever the
potential and the proposal, and its mean over a population estimates Z without bias (derived; systematic resampling
copies particle j as often as its weight says on average).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.controls import Control
from sdecontrol.errors import NotFinite, check
from sdecontrol.kernels import Kernel, Transition
from sdecontrol.laws import Law
from sdecontrol.noise import Block, Noise
from sdecontrol.path import _log_initial, half_square, inner
from sdecontrol.simulate import _diagnose, prepare
from sdecontrol.steering.potentials import Potential
from sdecontrol.steering.resampling import Choice, Rule
from sdecontrol.step import StepView, noise_shift
from sdecontrol.time import ResolvedGrid, TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

Value = Callable[[StepView], Tensor]  # value to go at (t, x), in units of the reward: (n,)


def value_to_go(problem: Problem, value: Any) -> Value:
    """None: dt rho(t, x) + r(x0_hat(x)), the posterior taken for a point; else the given v(t, x).

    value: an object with value(t, x) such as problem.exact, problem.discretise(...).exact or a grid solution, or a
    function (t, x) -> (n,).
    """
    if value is None:
        if problem.running_reward is None:
            return lambda step: problem.reward(step.x0_hat)
        return lambda step: problem.reward(step.x0_hat) + step.dt * problem.running_rate(step.t, step.x)
    function = getattr(value, "value", value)
    check(callable(function), f"a value of type {type(value).__name__}",
          "an object with value(t, x), or such a function")  # fmt: skip
    return lambda step: function(step.t, step.x)


@dataclass
class Cloud:
    """Populations of particles, population by population in the rows of every tensor.

    base: log of dQ/dQ^u and of what earlier resampling put in the place of phi; phi: log potential; collected:
    running reward so far; all (n,) in float64.
    """

    particles: int
    x: Tensor
    base: Tensor
    phi: Tensor
    memory: Tensor
    collected: Tensor

    @property
    def log_weights(self) -> Tensor:
        """base + phi by populations: (populations, particles)."""
        return (self.base + self.phi).reshape(-1, self.particles)

    def take(self, choice: Choice) -> Tensor:
        """Put the ancestors in the place of the particles, with the weight of the choice; returns their rows."""
        rows = (choice.ancestors + torch.arange(len(choice.level))[:, None] * self.particles).reshape(-1)
        self.x, self.phi, self.base = self.x[rows], self.phi[rows], self.base[rows]
        self.memory, self.collected = self.memory[rows], self.collected[rows]
        anew = choice.level.repeat_interleave(self.particles, 0)[:, 0] - self.phi
        self.base = torch.where(choice.resampled.repeat_interleave(self.particles, 0)[:, 0], anew, self.base)
        return rows


@dataclass(frozen=True)
class Scheme:
    """Particles, rule, potential, value and proposal of one sampler.

    every: the promise is read, and populations may be resampled, at steps 0, every, 2 every, ...
    """

    problem: Problem
    particles: int
    rule: Rule
    potential: Potential
    value: Value
    proposal: Control | None = None
    initial: Law | None = None
    every: int = 1

    def run(self, grid: TimeGrid, kernel: Kernel, populations: int, noise: Noise) -> Cloud:
        """All populations, `noise.block_size` of them at a time; a population's noise does not depend on the others."""
        process = self.problem.process
        resolved = grid.resolve(process)
        transitions = prepare(process, kernel, resolved, self.proposal)
        size = noise.block_size((self.particles, *process.event_shape))
        clouds = [
            Run(self, resolved, transitions, noise, index, min(size, populations - index * size)).cloud()
            for index in range(-(-populations // size))
        ]
        join = lambda name: torch.cat([getattr(c, name) for c in clouds])  # noqa: E731
        return Cloud(self.particles, *(join(name) for name in ("x", "base", "phi", "memory", "collected")))


@dataclass(frozen=True)
class Run:
    """One block of `count` populations: its noise is addressed as that of paths on events (particles, *event)."""

    scheme: Scheme
    grid: ResolvedGrid
    transitions: list[Transition]
    noise: Noise
    index: int
    count: int

    @property
    def _event(self) -> tuple[int, ...]:
        return (self.scheme.particles, *self.scheme.problem.process.event_shape)

    def _block(self, stream: str) -> Block:
        return self.noise.block(stream, self.index, self.index + 1, self._event)

    def cloud(self) -> Cloud:
        """The particles after the last step, phi being their total reward over the temperature."""
        cloud, u = self._start(), self._block("resample")
        for k, xi in enumerate(self._normals(cloud.x.dtype)):
            self._step(k, cloud, xi, u.uniform()[: self.count])
        self._end(cloud, u.uniform()[: self.count])
        return cloud

    def _start(self) -> Cloud:
        problem, n = self.scheme.problem, self.count * self.scheme.particles
        reference = problem.process.initial_law(float(self.grid.times[0]))
        law, block = self.scheme.initial or reference, self._block("initial")
        x = law.draw(replace(block, size=block.size * self.scheme.particles))[:n].to(problem.process.dtype)
        if self.scheme.rule.one_start:
            x = x[:: self.scheme.particles].repeat_interleave(self.scheme.particles, 0)
        zeros = torch.zeros(n, dtype=torch.float64)
        memory = torch.full_like(zeros, self.scheme.potential.start)
        return Cloud(self.scheme.particles, x, -_log_initial(law, reference, x), zeros, memory, zeros)

    def _normals(self, dtype: torch.dtype) -> Iterator[Tensor]:
        normals = self.noise.steps(self.index, self._event, self.grid.times)
        for _, xi in zip(self.transitions, normals, strict=False):
            yield xi[: self.count].flatten(0, 1).to(dtype)

    def _step(self, k: int, cloud: Cloud, xi: Tensor, u: Tensor) -> None:
        scheme, transition = self.scheme, self.transitions[k]
        process, proposal = scheme.problem.process, scheme.proposal
        proposal = None if transition.noiseless else proposal
        jacobian = proposal is not None and proposal.requires_jacobian
        step = StepView(process, transition, k, process.state(transition.t, cloud.x, jacobian=jacobian))
        state, mean, w = step.state, step.mean, None if proposal is None else noise_shift(step, proposal)
        if k % scheme.every == 0:
            self._promise(k, cloud, step)
        if scheme.problem.running_reward is not None:
            cloud.collected = cloud.collected + step.dt * scheme.problem.running_rate(step.t, step.x).double()
        choice = scheme.rule.choose(cloud.log_weights, u) if k % scheme.every == 0 else None
        if choice is not None:
            rows = cloud.take(choice)
            state, mean, w = state.take(rows), mean[rows], None if w is None else w[rows]
        cloud.x = transition.finish(process, state, mean, xi if w is None else xi + w).detach()
        if w is not None:
            cloud.base = cloud.base - inner(w, xi) - half_square(w)
        _diagnose(k, transition, cloud.x, w)

    def _promise(self, k: int, cloud: Cloud, step: StepView) -> None:
        v = self._checked(self.scheme.value(step), k, step.t, "the value (or the reward)")
        promise = (cloud.collected + v) / self.scheme.problem.temperature
        cloud.phi, cloud.memory = self.scheme.potential.accumulate(cloud.phi, cloud.memory, promise)
        self._alive(k, step.t, cloud)

    def _end(self, cloud: Cloud, u: Tensor) -> None:
        problem, k, t = self.scheme.problem, len(self.transitions), float(self.grid.times[-1])
        total = cloud.collected + self._checked(problem.reward(cloud.x), k, t, "the reward")
        cloud.phi = total / problem.temperature
        self._alive(k, t, cloud)
        choice = self.scheme.rule.settle(cloud.log_weights, u)
        if choice is not None:
            cloud.take(choice)

    def _checked(self, values: Tensor, k: int, t: float, producer: str) -> Tensor:
        n = self.count * self.scheme.particles
        if values.shape != (n,):
            check(False, f"shape {tuple(values.shape)} from {producer} at step {k} (t = {t:.6g})", f"({n},)")
        if torch.isnan(values).any() or torch.isposinf(values).any():
            raise NotFinite(producer, k, t, "NaN or +infinity", "Only -infinity, a weight of zero, is allowed.")
        return values.double()

    def _alive(self, k: int, t: float, cloud: Cloud) -> None:
        dead = torch.isneginf(cloud.log_weights.amax(1))
        if bool(dead.any()):
            first = int(dead.nonzero()[0]) + self.index * self.noise.block_size(self._event)
            raise NotFinite(
                "the potential", k, t, f"weights that are all zero in population {first}",
                "Take more particles, a reward that is not -infinity on so much of the space, or a proposal.",
            )  # fmt: skip


def log_mean_weight(cloud: Cloud) -> Tensor:
    """log of the mean weight of each population: (populations,)."""
    return cloud.log_weights.logsumexp(1) - math.log(cloud.particles)
