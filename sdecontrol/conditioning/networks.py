"""Small networks: of x alone, and of x at a noise level that may differ from point to point."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sdecontrol.finetune.families import seeded
from sdecontrol.schedules import Schedule


def mlp(
    inputs: int, outputs: int, width: int = 64, hidden: int = 2, seed: int = 0, zero: bool = False
) -> nn.Sequential:
    """Linear layers with silu between them, float64; `hidden` = 0 is a linear map, `zero` a last layer of zeros."""
    sizes = [inputs, *[width] * hidden, outputs]
    with seeded(seed):
        layers: list[nn.Module] = []
        for a, b in zip(sizes[:-1], sizes[1:]):
            layers += [nn.Linear(a, b, dtype=torch.float64), nn.SiLU()]
    last = layers[-2]
    if zero:
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
    return nn.Sequential(*layers[:-1])


class LevelNetwork(nn.Module):
    """f(x / sqrt(alpha^2 + h), cosines of logistic(log SNR / 4), extra): (n, d), s or (n,) -> (n, outputs)."""

    def __init__(
        self, schedule: Schedule, dim: int, outputs: int, width: int = 64, hidden: int = 2, features: int = 6,
        extra: int = 0, seed: int = 0, zero: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.schedule, self.features = schedule, features
        self.net = mlp(dim + features + extra, outputs, width, hidden, seed, zero)

    def forward(self, x: Tensor, s: Tensor | float, extra: Tensor | None = None) -> Tensor:
        level = torch.as_tensor(s, dtype=torch.float64).expand(len(x))
        alpha, h = self.schedule.alpha(level), self.schedule.h(level)
        phase = torch.sigmoid((2 * alpha.log() - h.log()) / 4)
        waves = torch.cos(math.pi * phase[:, None] * torch.arange(1, self.features + 1, dtype=torch.float64))
        inputs = [x.double() / (alpha**2 + h).sqrt()[:, None], waves] + ([] if extra is None else [extra])
        return self.net(torch.cat(inputs, 1))
