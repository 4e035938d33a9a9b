"""Gradient guidance through score networks trained here: what leaves the span, and what refits reach.

The data, the objective (off/on ratio 9) and the increments are those of `experiments.guo_simulation`. Networks:
`plain` gives x_0 from x by a perceptron; the others are preconditioned (x0_hat = a multiple of x plus a learned part),
after 1 000 and 3 000 iterations of denoising score matching. Algorithm 1 with each; Algorithm 2, refits on all batches
so far, with the preconditioned ones.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sdecontrol as sc
import sdecontrol.finetune as ft
from experiments.guo_simulation import AMBIENT, LAW, NOISE, OUTSIDE, PROCESS, SCHEDULE, TILTED, parabola, run
from experiments.record import resumed
from sdecontrol import guidance
from sdecontrol.guidance import ascent

GRID = sc.TimeGrid.log_snr(40, s_min=1e-3)
LAWS = {"naive": (guidance.naive, 0.9), "g_loss": (guidance.g_loss, 0.2)}  # with the increments of the paper's commands
ALONE, REFITTED, BATCH = 60, 200, 256  # rounds of both algorithms, samples a round
STEPS, RATE = 60, 1e-4  # of a refit
LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


class Plain(nn.Module):
    """x_0 from x and the level (its log SNR and sigma) by two hidden layers."""

    def __init__(self, width: int = 256):
        super().__init__()
        torch.manual_seed(1234)
        self.body = nn.Sequential(nn.Linear(AMBIENT + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                  nn.Linear(width, AMBIENT))  # fmt: skip

    def forward(self, x: Tensor, s: float) -> Tensor:
        log_snr = math.log(SCHEDULE.alpha(s) / SCHEDULE.sigma(s))
        features = torch.tensor([log_snr / 4, SCHEDULE.sigma(s)], dtype=x.dtype).expand(len(x), 2)
        return self.body(torch.cat([x, features], 1))


def plain() -> dict[str, Any]:
    refit = ascent.NetworkRefit(Plain(), predicts=sc.Denoiser, warm_up=1_500, size=BATCH)
    process = refit(PROCESS, [LAW])
    return {"iterations": 1_500, "through": through(process), "algorithm 1": climbed(process, ALONE)}


def preconditioned(iterations: int) -> dict[str, Any]:
    network = ft.DenoiserNetwork.of(LAW, SCHEDULE, width=128, blocks=2)
    network, fit = ft.fit_score(LAW, network, steps=iterations, n=BATCH, progress=False)
    process = sc.ReverseProcess(SCHEDULE, sc.Denoiser(network, event_shape=(AMBIENT,)), PROCESS.noised(0.0))
    return {
        "iterations": iterations, "parameters": sum(p.numel() for p in network.parameters()),
        "loss": float(np.mean(fit.loss[-100:])), "through": through(process),
        "algorithm 1": climbed(process, ALONE), "algorithm 2": climbed(process, REFITTED, network),
    }  # fmt: skip


def climbed(process: sc.ReverseProcess, rounds: int, network: nn.Module | None = None) -> dict[str, Any]:
    """Both laws with their increments; with a network, refitted copies of it by uniform weights."""
    found = {}
    for name, (guide, delta) in LAWS.items():
        refit = None
        if network is not None:
            refit = ascent.NetworkRefit(copy.deepcopy(network), ascent.uniform, predicts=sc.Denoiser, steps=STEPS,
                                        warm_up=STEPS, size=BATCH, rate=RATE)  # fmt: skip
        found[name] = run(process, parabola(TILTED), ascent.Increment(delta), rounds, BATCH, guide=guide, grid=GRID,
                          refit=refit, data=LAW)  # fmt: skip
    return found


def through(process: sc.ReverseProcess) -> list[dict[str, float]]:
    """How much of a push of 1 off the span x0_hat keeps, by noise level; the exact score keeps nothing."""
    rows = []
    with torch.no_grad():
        for s in LEVELS:
            t = 1 - s
            x, push = PROCESS.noised(t).sample(BATCH, sc.Noise(0)).float(), OUTSIDE.float()
            moved = process.state(t, x + push).x0_hat - process.state(t, x).x0_hat
            rows.append({"s": s, "kept": float((moved @ push).mean())})
    return rows


def limits() -> dict[str, float]:
    """The maximum on the span, and where Algorithm 1 with G_loss, its increment and the exact score ends, (13)."""
    objective, delta = parabola(TILTED), LAWS["g_loss"][1]
    points = {"maximum": 0.0, "algorithm 1": NOISE**2 / delta}
    return {name: float(objective(ascent.regularised_maximum(LAW, objective, k)[None])) for name, k in points.items()}


PARTS = {"limits": limits, "plain": plain}
PARTS |= {f"{n}": partial(preconditioned, n) for n in (1_000, 3_000)}


if __name__ == "__main__":
    resumed("guo_network", PARTS)
