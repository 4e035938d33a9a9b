"""Fits to offline examples: the loop of `sc.fit`, on addressed minibatches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdecontrol.conditioning.pairs import Examples
from sdecontrol.errors import check
from sdecontrol.finetune.batch import Batch
from sdecontrol.finetune.checkpoint import FitRecord
from sdecontrol.finetune.fit import Decay, Training, constant
from sdecontrol.noise import Noise

RATE = 1e-2  # of the default optimiser, Adam

Objective = Callable[[Any, Noise], Tensor]  # (examples of the minibatch, noise of the iteration) -> scalar


class Likelihood(nn.Module):
    """The negative mean log likelihood; it names the fit and has no parameters."""


def train(
    model: nn.Module, examples: Examples, objective: Objective, *, steps: int, n: int | None,
    optimiser: torch.optim.Optimizer | None, decay: Decay = constant, noise: Noise | None = None,
    checkpoint: str | Path | None = None, resume: bool = True, progress: bool = True,
) -> FitRecord:  # fmt: skip
    """Minimise objective(minibatch, noise) over the model's parameters; n = None takes all examples each time.

    A minibatch is drawn with replacement at an address of its iteration, so (parameters, optimiser, iteration) decide
    everything and an interrupted fit goes on from `checkpoint` bit for bit.
    """
    check(n is None or (isinstance(n, int) and n >= 1), f"n = {n!r}", "a minibatch size, or None for all examples")
    chosen = optimiser or torch.optim.Adam(model.parameters(), lr=RATE)
    batch = Batch(n or len(examples), noise or Noise(0))
    settings = {"model": type(model).__name__, "examples": len(examples), "steps": steps, "n": batch.n,
                "seed": batch.noise.seed}  # fmt: skip

    def loss(batch: Batch) -> Tensor:
        drawn = examples if n is None else examples[rows(batch, len(examples))]
        return objective(drawn, batch.noise)

    run = Training(model, Likelihood(), loss, batch, steps, chosen, decay, FitRecord(settings))
    return run.carry_out(checkpoint, resume, 10.0, progress)


def rows(batch: Batch, count: int) -> Tensor:
    """batch.n indices below `count`, drawn at the batch's address."""
    return (uniforms(batch.noise, "rows", batch.n) * count).long()


def uniforms(noise: Noise, stream: str, n: int) -> Tensor:
    return torch.cat([block.uniform() for block in noise.blocks(stream, n, (1,))])[:n]


def normals(noise: Noise, stream: str, like: Tensor) -> Tensor:
    event = tuple(like.shape[1:])
    drawn = [block.normal(event) for block in noise.blocks(stream, len(like), event)]
    return torch.cat(drawn)[: len(like)].contiguous()
