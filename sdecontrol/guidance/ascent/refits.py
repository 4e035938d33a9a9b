"""The weighted score refit: min over s of sum_i w_{k,i} E_{D_i} E |grad log phi_t(x_t | x_0) - s(x_t, t)|^2.

Its minimiser over affine scores is the exact score of the Gaussian with the weighted moments of the batches (derived:
the loss is an expectation over the mixture of the batches, and affine regression sees two moments).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdecontrol.errors import check
from sdecontrol.laws import Gaussian, Law, Subspace
from sdecontrol.models import Denoiser, NoisePrediction
from sdecontrol.noise import Noise
from sdecontrol.processes import ReverseProcess

Batch = Law | Tensor  # draws (n, D), or a law where it is known
Weights = Callable[[int], Tensor]  # k -> the weights of D_0 .. D_k, (k + 1,), of sum one


def uniform(k: int) -> Tensor:
    """1/(k+1) on every batch."""
    return torch.full((k + 1,), 1 / (k + 1), dtype=torch.float64)


def last(k: int) -> Tensor:
    """All on the last batch."""
    return torch.eye(k + 1, dtype=torch.float64)[k]


def anchored(k: int) -> Tensor:
    """1/(k+1) on the original data and the rest on the last batch."""
    weights = last(k) * (1 - 1 / (k + 1))
    weights[0] += 1 / (k + 1)
    return weights


class Refit(ABC):
    """Makes the model of a round from the batches so far."""

    @abstractmethod
    def __call__(self, process: ReverseProcess, batches: Sequence[Batch]) -> ReverseProcess:
        """The pretrained process with the score refitted to D_0 (the pretraining data), D_1, .., D_k."""


class MomentMatching(Refit):
    """The refit over affine scores, in closed form; on a subspace in its coordinates, the normal part kept exact.

    weights: k -> (k + 1,), one of `uniform`, `last`, `anchored` or one's own.
    Source: Guo et al. 2404.14743, (14); its minimiser derived.
    """

    def __init__(self, weights: Weights = anchored):
        self.weights = weights

    def __call__(self, process: ReverseProcess, batches: Sequence[Batch]) -> ReverseProcess:
        return ReverseProcess(process.schedule, self.law(process.data_law, batches), process.initial)

    def law(self, first: Law, batches: Sequence[Batch]) -> Law:
        """The Gaussian with the weighted moments of the batches, on the subspace of `first` if that is one."""
        chosen = [(w, b) for w, b in zip(self.weights(len(batches) - 1).tolist(), batches, strict=True) if w]
        pieces = [(w, *moments_in(first, batch)) for w, batch in chosen]
        mean = torch.stack([w * m for w, m, _ in pieces]).sum(0)
        spread = [w * (c + torch.outer(m - mean, m - mean)) for w, m, c in pieces]
        matched = Gaussian(mean, torch.stack(spread).sum(0))
        return Subspace.from_frame(first.frame, matched, first.dtype) if isinstance(first, Subspace) else matched


def moments_in(first: Law, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of a batch, in the coordinates of `first` where it is a law on a subspace."""
    if isinstance(batch, Law):
        inner = batch.latent if isinstance(batch, Subspace) else batch
        return inner.mean, inner.covariance
    x = batch.to(torch.float64)
    x = first.encode(x) if isinstance(first, Subspace) else x
    check(len(x) > x.shape[1], f"{len(x)} draws in {x.shape[1]} dimensions", "more draws than dimensions",
          "Raise batch: a covariance from fewer is singular.")  # fmt: skip
    return x.mean(0), torch.atleast_2d(torch.cov(x.T, correction=0))


class NetworkRefit(Refit):
    """The refit of a network f(x (n, D), s float) -> (n, D) by stochastic gradients.

    predicts: NoisePrediction, or Denoiser, whose x0_hat does not blow up errors where alpha is small. One step takes a
    level s, log-uniform between s_min and the horizon, and a draw of the batches in proportion to their weights; the
    loss is the mean square error of what f predicts, eps or x_0: (14) with another weight of each level, of the same
    minimiser. The network goes on from where the last round left it; the first call fits it to D_0, in `warm_up`
    steps, and no later round touches other randomness than this object's own generator.
    Accuracy: that of the training. Source: Guo et al. 2404.14743, (14).
    """

    def __init__(self, network: nn.Module, weights: Weights = anchored, *,
                 predicts: type[NoisePrediction] | type[Denoiser] = NoisePrediction,
                 steps: int = 200, warm_up: int = 2_000, size: int = 512, rate: float = 1e-3,
                 s_min: float = 1e-3, seed: int = 0):  # fmt: skip
        check(isinstance(network, nn.Module), f"a network of type {type(network).__name__}", "a torch module")
        for name, value in (("steps", steps), ("warm_up", warm_up), ("size", size)):
            check(value >= 1, f"{name} = {value}", "a positive integer")
        self.network, self.weights, self.steps, self.warm_up, self.size = network, weights, steps, warm_up, size
        self.predicts, self.s_min, self.generator = predicts, s_min, torch.Generator().manual_seed(seed)
        self.optimiser = torch.optim.Adam(network.parameters(), rate)
        self.losses: list[float] = []

    def __call__(self, process: ReverseProcess, batches: Sequence[Batch]) -> ReverseProcess:
        weights = self.weights(len(batches) - 1)
        draws = {i: _draws(batches[i]) for i in weights.nonzero()[:, 0].tolist()}
        with torch.enable_grad():
            for _ in range(self.steps if self.losses else self.warm_up):
                self._step(process, draws, weights)
        model = self.predicts(self.network, process.event_shape)
        return ReverseProcess(process.schedule, model, process.initial_law())

    def _step(self, process: ReverseProcess, draws: dict[int, Tensor], weights: Tensor) -> None:
        counts = torch.multinomial(weights, self.size, True, generator=self.generator).bincount(minlength=len(weights))
        x = torch.cat([self._some(draws[i], n) for i, n in enumerate(counts.tolist()) if n])
        s = self._level(process)
        eps = torch.randn(x.shape, generator=self.generator)
        noisy = process.schedule.alpha(s) * x + process.schedule.sigma(s) * eps
        loss = (self.network(noisy, s) - (x if self.predicts is Denoiser else eps)).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.losses.append(float(loss.detach()))

    def _some(self, draws: Tensor, n: int) -> Tensor:
        return draws[torch.randint(len(draws), (n,), generator=self.generator)]

    def _level(self, process: ReverseProcess) -> float:
        low, high = self.s_min * process.horizon, process.horizon
        return low * (high / low) ** float(torch.rand((), generator=self.generator))


def _draws(batch: Any) -> Tensor:
    """float32 draws of a batch; 16 384 of a law."""
    return (batch.sample(16_384, Noise(0), "refit") if isinstance(batch, Law) else batch).float()
