"""Choice among whole samples: the best of n, and rejection, which is exact."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, check
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import total_reward
from sdecontrol.kernels import Kernel
from sdecontrol.noise import Noise
from sdecontrol.simulate import simulate
from sdecontrol.steering.base import Particles, Sampler, check_count, mean_of
from sdecontrol.steering.suprema import supremum
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

PILOT = 4096  # proposals of the first round, which also judge the cost where log Z is not closed
TOGETHER = 2**22  # numbers held by one round of whole samples


def seeded(noise: Noise, stage: int) -> Noise:
    """The noise of one round of samples; the first round has the given one."""
    if stage == 0:
        return noise
    digest = hashlib.blake2b(f"round {noise.seed} {stage}".encode(), digest_size=8).digest()
    return replace(noise, seed=int.from_bytes(digest, "little"))


def draw(problem: Problem, grid: TimeGrid, kernel: Kernel, n: int, noise: Noise) -> tuple[Tensor, Tensor]:
    """n samples of the reference chain with their total rewards: (n, *event), (n,) in float64."""
    running = problem.running_reward
    observe = None if running is None else lambda k, t, x: problem.running_rate(t, x)
    path = simulate(problem.process, grid=grid, kernel=kernel, n=n, noise=noise, keep="ends", observe=observe)
    return path.terminal, total_reward(problem, path)


class BestOf(Sampler):
    """The best of `candidates` independent samples; see `best_of`."""

    def __init__(self, problem: Problem, candidates: int):
        super().__init__(problem)
        self.candidates = candidates

    @property
    def kl_bound(self) -> float:
        """log n - (n - 1)/n >= KL(best of n || reference): equal where no two rewards tie (derived: n F^{n-1})."""
        return math.log(self.candidates) - (self.candidates - 1) / self.candidates

    def _run(self, grid: TimeGrid, kernel: Kernel, n: int, noise: Noise) -> Particles:
        step = max(1, TOGETHER // (self.candidates * self.problem.process.dim))
        chosen: list[tuple[Tensor, Tensor]] = []
        rewards: list[Tensor] = []
        for stage, start in enumerate(range(0, n, step)):
            count = min(step, n - start)
            x, r = draw(self.problem, grid, kernel, count * self.candidates, seeded(noise, stage))
            best = r.reshape(count, -1).argmax(1) + torch.arange(count) * self.candidates
            chosen.append((x[best], r[best]))
            rewards.append(r)
        route = "log of the mean weight of all candidates, biased low by half its variance"
        log_z = Estimate.log_mean_exp(torch.cat(rewards) / self.problem.temperature, route)
        x, r = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        return Particles(x, torch.zeros(n, dtype=torch.float64), log_z, r, n)


def best_of(problem: Problem, n: int) -> BestOf:
    """Of n independent samples of the reference the one with the largest total reward.

    Its density relative to the reference is n F(r)^{n-1}, F the distribution function of the reward, and not
    e^{r/temperature}/Z: its reward grows with n without end or to the maximum, whatever the temperature is.
    n: candidates a sample, at least 2. Cost: n runs of the chain a sample.
    Raises: BadInput; NotFinite for a reward that is not finite. Source: order statistics; derived.
    """
    return BestOf(problem, check_count("n", n, 2))


@dataclass(frozen=True)
class Accepted(Particles):
    """Exact draws. proposals: drawn for each of them, measured; expected: e^{bound/temperature}/Z, None where Z is not
    closed."""

    proposals: Estimate
    expected: float | None


@dataclass(frozen=True)
class Round:
    """Some proposals: those accepted, (m, *event), all their total rewards and which were accepted, (n,)."""

    x: Tensor
    rewards: Tensor
    accepted: Tensor


class Rejection(Sampler):
    """Von Neumann's rejection from the reference chain; see `rejection`."""

    def __init__(self, problem: Problem, bound: float | None, budget: float):
        super().__init__(problem)
        self.bound, self.budget = bound, budget

    def _run(self, grid: TimeGrid, kernel: Kernel, n: int, noise: Noise) -> Accepted:
        temperature = self.problem.temperature
        bound = supremum(self.problem, kernel, grid) if self.bound is None else self.bound
        expected = self._expected(bound, grid, kernel)
        size = PILOT if expected is None else math.ceil(1.1 * expected * n) + 16
        rounds = [self._round(grid, kernel, size, noise, bound)]
        while (missing := n - sum(len(r.x) for r in rounds)) > 0:
            likely = self._measured(bound, rounds) if expected is None else expected
            size = max(PILOT, math.ceil(1.1 * missing * likely))
            rounds.append(self._round(grid, kernel, size, seeded(noise, len(rounds)), bound))
        rewards, accepted = (torch.cat([getattr(r, name) for r in rounds]) for name in ("rewards", "accepted"))
        waits = torch.diff(accepted.nonzero()[:n, 0], prepend=torch.tensor([-1]))
        route = "log of the mean weight of all proposals, biased low by half its variance"
        return Accepted(
            torch.cat([r.x for r in rounds])[:n], torch.zeros(n, dtype=torch.float64),
            Estimate.log_mean_exp(rewards / temperature, route), rewards[accepted][:n], n,
            mean_of(waits.double(), "proposals for each accepted draw"), expected,
        )  # fmt: skip

    def _round(self, grid: TimeGrid, kernel: Kernel, wanted: int, noise: Noise, bound: float) -> Round:
        size = min(wanted, max(PILOT, TOGETHER // self.problem.process.dim))
        x, rewards = draw(self.problem, grid, kernel, size, noise)
        self._check_bound(rewards, bound, x.dtype)
        u = torch.cat([b.uniform()[: b.count] for b in noise.blocks("accept", size, (1,))])
        accepted = u.log() < (rewards - bound) / self.problem.temperature
        return Round(x[accepted], rewards, accepted)

    def _expected(self, bound: float, grid: TimeGrid, kernel: Kernel) -> float | None:
        """e^{bound/temperature}/Z, None where log Z of the chain is not closed. Raises BadInput above the budget."""
        try:
            log_z = self.problem.discretise(kernel, grid).exact.log_normalizer
        except NoClosedForm:
            return None
        return self._affordable(bound / self.problem.temperature - log_z, "e^{bound/temperature}/Z")

    def _measured(self, bound: float, rounds: list[Round]) -> float:
        """The same from the proposals so far."""
        seen = torch.cat([r.rewards for r in rounds]) / self.problem.temperature
        log_z = float(seen.logsumexp(0)) - math.log(len(seen))
        return self._affordable(bound / self.problem.temperature - log_z, f"by {len(seen)} proposals")

    def _affordable(self, log_count: float, route: str) -> float:
        count = math.exp(min(log_count, 700.0))
        check(
            count <= self.budget,
            f"{count:.3g} proposals a draw expected ({route})",
            f"at most budget = {self.budget:g}",
            "Raise the budget or the temperature, or use sc.steering.fk, whose cost is the number of particles.",
        )
        return count

    def _check_bound(self, rewards: Tensor, bound: float, dtype: torch.dtype) -> None:
        top, rounding = float(rewards.max()), 64 * torch.finfo(dtype).eps * (1 + abs(bound))
        check(top <= bound + rounding, f"a total reward of {top:.9g} above bound = {bound:.9g}",
              "a number that no reward exceeds", "Pass a larger bound.")  # fmt: skip


def rejection(problem: Problem, *, bound: float | None = None, budget: float = 1_000.0) -> Rejection:
    """Accept a reference path with probability e^{(r - bound)/temperature}: independent, exact draws of the tilt.

    Exact for the tilt of the chain's path law, start and running reward included. Proposals a draw: on average
    e^{bound/temperature}/Z, reported as `expected` beside the measured `proposals`. bound: a number that the total
    reward never exceeds; by default the largest value of a concave Quadratic or a Step, over the subspace where the
    chain ends on one. budget: the expected number of proposals a draw above which it refuses, before work where the
    chain's log Z is closed, else after every round of proposals (the first has 4096).
    Raises: NotDefined for an unbounded reward without bound; BadInput above the budget, or when a reward exceeds bound.
    Source: Tang 2403.06279, the remark on rejection sampling after Lemma 3.1, with sup r for its bound; else derived.
    """
    check(bound is None or math.isfinite(bound), f"bound = {bound}", "a finite number")
    check(budget >= 1, f"budget = {budget}", "at least one proposal a draw")
    return Rejection(problem, None if bound is None else float(bound), float(budget))
