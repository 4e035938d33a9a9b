"""A score network trained here: denoising score matching on draws of a law, or on rows of data."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from sdecontrol.errors import check
from sdecontrol.finetune.batch import Batch
from sdecontrol.finetune.checkpoint import FitRecord
from sdecontrol.finetune.families import ResidualNetwork
from sdecontrol.finetune.features import Cosines
from sdecontrol.finetune.fit import Training, cosine
from sdecontrol.laws import Law
from sdecontrol.noise import Noise
from sdecontrol.schedules import Schedule
from sdecontrol.time import TimeGrid


class DenoiserNetwork(nn.Module):
    """x0_hat(x, s) = m + (a v / q)(x - a m) + sqrt(v h / q) F((x - a m) / sqrt(q); log SNR), q = a^2 v + h.

    The first two terms are E[X_0 | x] for data N(m, v I), the factor of F the error that they leave, so F learns
    numbers of size one at every level. Wrap it as sc.Denoiser(network, event_shape=(dim,)).
    Source: the preconditioning of Karras et al. (2022), for every (alpha, h) and mean (derived).
    """

    def __init__(
        self, schedule: Schedule, mean: Tensor, variance: float, width: int = 128, blocks: int = 3, features: int = 16,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        check(variance > 0, f"variance = {variance}", "a positive number")
        self.schedule, self.variance, self.features = schedule, float(variance), Cosines(features)
        self.mean: Tensor
        self.register_buffer("mean", mean.float())
        self.network = ResidualNetwork(len(mean), features, len(mean), width, blocks, seed)

    @classmethod
    def of(cls, law: Law, schedule: Schedule, **options: int) -> DenoiserNetwork:
        """With the mean and the mean variance of a law."""
        return cls(schedule, law.mean, float(law.covariance.diagonal().mean()), **options)

    def error(self, s: float) -> float:
        """Root mean square error a coordinate of the best linear guess at level s."""
        a, h = self.schedule.alpha(s), self.schedule.h(s)
        return math.sqrt(self.variance * h / (a * a * self.variance + h))

    def forward(self, x: Tensor, s: float) -> Tensor:
        a, h, v = self.schedule.alpha(s), self.schedule.h(s), self.variance
        q = a * a * v + h
        centred = x.float() - a * self.mean
        level = 1 / (1 + math.exp(-self.schedule.log_snr(s) / 4))
        learned = self.network(centred / math.sqrt(q), self.features(level, torch.float32))
        return (self.mean + (a * v / q) * centred + self.error(s) * learned).to(x)


class ScoreMatching(nn.Module):
    """Mean over levels of E |x0_hat(a X_0 + sqrt(h) Z, s) - X_0|^2 / (dim error(s)^2): 1 for the linear guess.

    levels: noise levels a batch, one at random in each of as many parts of the range of log SNR down to s_min.
    """

    def __init__(self, law: Law, levels: int = 8, s_min: float = 1e-3):
        super().__init__()
        self.law, self.levels, self.s_min = law, levels, s_min

    def extra_repr(self) -> str:
        return f"levels={self.levels}, s_min={self.s_min}"

    def forward(self, network: DenoiserNetwork, batch: Batch) -> Tensor:
        schedule, shape = network.schedule, self.law.event_shape
        low, high = schedule.log_snr(schedule.horizon), schedule.log_snr(self.s_min)
        u = next(batch.noise.blocks("level", self.levels, (1,))).uniform()[: self.levels]
        total = torch.zeros(())
        for j, part in enumerate(u.tolist()):
            s = schedule.noise_level_at(low + (high - low) * (j + part) / self.levels)
            clean = self.law.sample(batch.n // self.levels, batch.noise, f"clean {j}").float()
            blocks = batch.noise.blocks(f"noise {j}", len(clean), shape)
            z = torch.cat([block.normal(shape, torch.float32)[: block.count] for block in blocks])
            x = schedule.alpha(s) * clean + schedule.sigma(s) * z
            total = total + (network(x, s) - clean).square().mean() / network.error(s) ** 2
        return total / self.levels


def fit_score(
    law: Law, network: DenoiserNetwork, *, steps: int = 3000, n: int = 512, rate: float = 2e-3,
    loss: ScoreMatching | None = None, noise: Noise | None = None, checkpoint: str | Path | None = None,
    resume: bool = True, save_every: float = 10.0, progress: bool = True,
) -> tuple[DenoiserNetwork, FitRecord]:  # fmt: skip
    """Train a network on fresh draws of `law`, n an iteration, by Adam with a cosine decay; in place.

    checkpoint, resume, noise: as in `fit`; a run that was stopped ends with the bits of one that was not. With a
    sc.laws.DiscreteLaw of rows it learns from data, and then it can learn them by heart.
    Raises: BadInput for a network of another dimension or fewer rows than levels; NotFinite naming the iteration.
    Source: denoising score matching (Vincent 2011).
    """
    loss = loss or ScoreMatching(law)
    check(law.event_shape == tuple(network.mean.shape), f"a network on {tuple(network.mean.shape)}",
          f"events {law.event_shape}, those of the law")  # fmt: skip
    check(isinstance(n, int) and n >= loss.levels, f"n = {n!r}", f"at least one row for each of {loss.levels} levels")
    settings = {
        "loss": f"ScoreMatching({loss.extra_repr()})", "control": type(network).__name__, "steps": steps, "n": n,
        "seed": (noise or Noise(0)).seed, "rate": rate, "schedule": repr(network.schedule),
    }  # fmt: skip
    batch = Batch(n, noise or Noise(0), TimeGrid.uniform(1))
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    objective = lambda batch: loss(network, batch)  # noqa: E731
    run = Training(network, loss, objective, batch, steps, optimiser, cosine, FitRecord(settings))
    return network, run.carry_out(checkpoint, resume, save_every, progress)
