"""What control, log ratio and KL cost beside the network, at the size of Stable Diffusion 1.5.

The network's time is that of the full UNet (859.5 M random weights, one image with CFG) on small latents, a lower bound
on its time on 64 x 64 ones. Bookkeeping is measured apart from it: the whole loop of `simulate` on 64 x 64 latents with
the network replaced by a stored answer, under a control that uses x0_hat, minus the time of the stored answers. Their
ratio is therefore larger than at full resolution. Seconds are of the processor (user + system), one thread.

    python -m benchmarks.stable_diffusion [--side 8] [--calls 3]

Writes benchmarks/results/stable_diffusion.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from rich.console import Console

import sdecontrol as sc
from sdecontrol.backends import read
from sdecontrol.backends.conditions import Conditions, Embedding
from sdecontrol.backends.network import Network
from sdecontrol.report.atomic import write

RESULTS = Path(__file__).parent / "results" / "stable_diffusion.json"
SD15 = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 768, "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
STEPS, WANTED = 50, 0.02


class Stored:
    """In the place of the UNet: the same answer at every call."""

    def __init__(self, answer: torch.Tensor):
        self.answer = answer

    def parameters(self) -> Iterator[torch.Tensor]:
        return iter([self.answer])

    def __call__(self, rows: torch.Tensor, times: torch.Tensor, **conditions: Any) -> Any:
        return SimpleNamespace(sample=self.answer[: len(rows)])


def full_unet() -> UNet2DConditionModel:
    """The UNet of Stable Diffusion 1.5 with uniform weights, which cost less to draw than those of its own start."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15).eval().requires_grad_(False)
    unet = unet.to_empty(device="cpu")
    for weight in unet.parameters():
        weight.uniform_(-0.02, 0.02)
    return unet


def processor_seconds(run: Callable[[], Any]) -> float:
    before = time.process_time()
    run()
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=8, help="of the latents on which the network is timed")
    parser.add_argument("--calls", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    reading = read(scheduler)
    conditions = Conditions(("",), Embedding(torch.randn(1, 77, 768)), Embedding(torch.randn(1, 77, 768)))
    unet = full_unet()
    network = Network(unet, reading.schedule, conditions, cfg=7.5, batch=1)
    x = torch.randn(1, 4, options.side, options.side)
    with torch.no_grad():
        network(x, 0.5)  # warm
        calls = [processor_seconds(lambda: network(x, 0.5)) for _ in range(options.calls)]
    parameters = sum(weight.numel() for weight in unet.parameters())

    stored = replace(network, unet=Stored(torch.randn(2, 4, 64, 64)))
    process = sc.ReverseProcess(reading.schedule, sc.NoisePrediction(stored), event_shape=(4, 64, 64))
    law = sc.StepControl(lambda step: step.from_mean(1e-3 * step.x0_hat))
    chain = {"grid": reading.grid(STEPS), "kernel": reading.kernel, "n": 1, "keep": "ends", "noise": sc.PathNoise(0)}
    start = torch.randn(1, 4, 64, 64)
    loop: Callable[[], Any] = lambda: sc.simulate(process, law, **chain)  # type: ignore[arg-type]  # noqa: E731
    answers: Callable[[], Any] = lambda: [stored(start, 0.5) for _ in range(STEPS)]  # noqa: E731
    loop()
    with torch.no_grad():
        each = [(processor_seconds(loop) - processor_seconds(answers)) / STEPS for _ in range(5)]
    call, step = statistics.median(calls), statistics.median(each)
    content = {
        "device": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread", "torch": version("torch"),
        "diffusers": version("diffusers"), "parameters": parameters,
        "latents of the network": [4, options.side, options.side],
        "latents of the bookkeeping": [4, 64, 64], "processor seconds of a CFG call": calls,
        "processor seconds of bookkeeping a step": each, "share": step / call, "wanted": WANTED,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    write(RESULTS, json.dumps(content, indent=1) + "\n")
    share = f"{100 * step / call:.3g} %; wanted {100 * WANTED:g} %"
    Console().print(f"network {call:.3g} s, bookkeeping {1e3 * step:.3g} ms a step: {share}")


if __name__ == "__main__":
    main()
