"""Rounds of guided generation: Algorithm 1 of gradient-guided optimisation, and Algorithm 2 with its refits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NotDefined, check
from sdecontrol.estimate import Estimate
from sdecontrol.guidance.ascent.refits import Batch, Refit
from sdecontrol.guidance.ascent.targets import Slope, Target
from sdecontrol.guidance.base import gradient_at
from sdecontrol.guidance.gradient import g_loss
from sdecontrol.laws import Law, Subspace
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import GaussianLabel
from sdecontrol.simulate import simulate

if TYPE_CHECKING:
    from sdecontrol.kernels import Kernel
    from sdecontrol.time import TimeGrid

exactly_weighted = partial(g_loss, beta="exact")
Objective = Callable[[Tensor], Tensor]  # (n, D) -> (n,), maximised


@dataclass(frozen=True, eq=False)
class Round:
    """One batch: the label it was guided by (None for the first, unguided one), its mean (D,) and what it earned.

    off_support: mean over the batch of |normal part| / |part in the span|, None where no subspace is known.
    """

    label: GaussianLabel | None
    mean: Tensor
    reward: Estimate
    off_support: float | None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Rounds 0 (unguided) .. K, the draws (n, D) of the last one, and the process that made them."""

    rounds: list[Round]
    samples: Tensor
    process: ReverseProcess

    @property
    def means(self) -> Tensor:
        """(K + 1, D)."""
        return torch.stack([r.mean for r in self.rounds])

    @property
    def rewards(self) -> list[float]:
        """E f of every round."""
        return [float(r.reward.value) for r in self.rounds]

    @property
    def off_support(self) -> list[float | None]:
        return [r.off_support for r in self.rounds]


def optimise(
    process: ReverseProcess,
    objective: Objective,
    target: Target,
    *,
    rounds: int,
    batch: int = 256,
    label_noise: float = 0.1,
    guide: Callable[[Problem], Any] = exactly_weighted,
    refit: Refit | None = None,
    data: Batch | None = None,
    support: Subspace | None = None,
    grid: TimeGrid | None = None,
    kernel: Kernel | None = None,
    noise: Noise | None = None,
    observe: Callable[[int, Round], None] | None = None,
) -> Trajectory:
    """Climb `objective` by guided generation: the next batch is drawn by the chain of `process` guided by a label
    g_k . x + N(0, label_noise^2) = y_k, where g_k = grad f(z_k), z_k is the last batch's mean and `target` gives y_k.

    Without `refit` (Algorithm 1) the model stays the pretrained one, so the means stop at the regularised maximum (13),
    argmax f - strength/2 |x - m|^2 in S^{-1}, m and S the moments of the data; with it (Algorithm 2) the score is
    refitted in every round to the batches so far, and they go on.
    objective: (n, D) -> (n,), a reward or any function that autograd knows. guide: problem -> control, what the label
    is turned into: g_loss with the exact weight, g_loss, naive, exact_variance, doob, ...
    data: D_0 of the refits, draws (n, D) or a law; by default the process's data law, for a network its unguided batch.
    support: the subspace whose normal part `off_support` measures; by default that of the data law.
    observe(k, round) is called after every round. The start is the process's own, so the process should forget it
    (a long horizon) for a batch to follow p(x | y_k).
    The rounds stop early where the gradient is zero. Randomness: `noise`, one stream of its own a round.
    Raises: BadInput for bad numbers; NotDefined for a process without x0_hat, or a target that needs a network's law.
    Source: Guo et al. 2404.14743, Algorithms 1 and 2.
    """
    check(isinstance(rounds, int) and rounds >= 1, f"rounds = {rounds!r}", "a positive integer")
    check(isinstance(batch, int) and batch >= 2, f"batch = {batch!r}", "at least two samples")
    if not isinstance(process, ReverseProcess):
        raise NotDefined(f"guided generation needs x0_hat of a ReverseProcess; saw a {type(process).__name__}")
    noise, first = noise or Noise(0), _law_of(process)
    support = first if support is None and isinstance(first, Subspace) else support
    model = process
    samples = _draw(model, None, batch, grid, kernel, _round_noise(noise, 0))
    known = first if data is None else data
    batches: list[Batch] = [samples if known is None else known]
    done = [_measured(None, samples, objective, support)]
    for k in range(1, rounds + 1):
        g = gradient_at(objective, done[-1].mean.double())
        if not bool(g.any()):
            break
        slope = Slope(g, done[-1].mean, _law_of(model), first)
        label = GaussianLabel(g, target(slope, label_noise**2), label_noise)
        samples = _draw(model, guide(Problem(model, label)), batch, grid, kernel, _round_noise(noise, k))
        done.append(_measured(label, samples, objective, support))
        if observe is not None:
            observe(k, done[-1])
        if refit is not None:
            batches.append(samples)
            model = refit(process, batches)
    return Trajectory(done, samples, model)


def _law_of(process: ReverseProcess) -> Law | None:
    try:
        return process.data_law
    except NoClosedForm:
        return None


def _draw(process: ReverseProcess, control: Any, n: int, grid: Any, kernel: Any, noise: Noise) -> Tensor:
    with torch.no_grad():
        return simulate(process, control, grid=grid, kernel=kernel, n=n, noise=noise, keep="ends").terminal.detach()


def _round_noise(noise: Noise, k: int) -> Noise:
    """A seed of its own for every round."""
    digest = hashlib.blake2b(f"guided round {noise.seed} {k}".encode(), digest_size=8).digest()
    return replace(noise, seed=int.from_bytes(digest, "little"))


def _measured(label: GaussianLabel | None, x: Tensor, objective: Objective, support: Subspace | None) -> Round:
    x = x.to(torch.float64)
    reward = Estimate.mean(objective(x).detach())
    return Round(label, x.mean(0), reward, None if support is None else off_support(support, x))


def off_support(support: Subspace, x: Tensor) -> float:
    """Mean of |(I - B B')(x - offset)| / |B'(x - offset)| over the rows of x (n, D)."""
    y = x.to(torch.float64) - support.offset
    return float((support.frame.normal(y).norm(dim=1) / support.frame.project(y).norm(dim=1)).mean())
