"""The full Stable Diffusion 1.5 at 512 x 512 on a GPU: images a second beside the stock pipeline, and peak memory.

The pipeline has the published shapes (UNet 859.5 M, VAE 83.7 M, CLIP ViT-L/14 text encoder) and random weights, which
cost what trained ones cost. Both routes make the same images: 50 steps of DDIM with eta 1, CFG 7.5, decoded. They take
turns in one run; seconds are of the wall clock, the device synchronised. Beside the times, the same device checks what
a test on the CPU checks: latents against the stock pipeline, E exp(-log ratio) = 1 under a control of bounded size, the
gradient of the reward against a central difference, and what an exhausted memory says.

    python -m benchmarks.stable_diffusion_gpu [--small] [--device cuda] [--repeats 3]

Writes benchmarks/results/stable_diffusion_gpu.json (with --small, which is a rehearsal, nothing).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.schedulers import scheduling_ddim
from diffusers.utils import logging, torch_utils
from rich.console import Console
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

import sdecontrol as sc
from benchmarks.stable_diffusion import SD15, Stored
from sdecontrol.backends import StableDiffusionProcess
from sdecontrol.backends.stock import controlled
from sdecontrol.backends.tiny.components import tokenizer
from sdecontrol.errors import OutOfMemory
from sdecontrol.report.atomic import write

RESULTS = Path(__file__).parent / "results" / "stable_diffusion_gpu.json"
PROMPT, CFG, STEPS = "a photograph of an astronaut riding a horse", 7.5, 50
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}  # fmt: skip
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "projection_dim": 768, "hidden_act": "quick_gelu"}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {  # the same code on the same path in seconds on a CPU
    "unet": {"block_out_channels": (32, 64, 64, 64), "sample_size": 16},
    "vae": {"block_out_channels": (32, 32, 32, 32), "sample_size": 128},
    "text": {"num_hidden_layers": 1},
}


def pipeline(device: str, dtype: torch.dtype, small: bool) -> StableDiffusionPipeline:
    change: dict[str, dict[str, Any]] = SMALL if small else {"unet": {}, "vae": {}, "text": {}}
    words = tokenizer()
    words.model_max_length = 77
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**(SD15 | change["unet"]))
        vae = AutoencoderKL(**(VAE | change["vae"]))
        text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **(TEXT | change["text"])))
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    parts = {"unet": unet, "vae": vae, "text_encoder": text}
    for part in parts.values():
        part.eval().requires_grad_(False).to(dtype)
    pipe = StableDiffusionPipeline(**parts, tokenizer=words, scheduler=scheduler, safety_checker=None,
                                   feature_extractor=None, requires_safety_checker=False)  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


PULL = sc.StepControl(lambda step: step.from_mean(1e-3 * step.x0_hat))


class Clock:
    """Seconds and peak memory of a call, the device synchronised before and after."""

    def __init__(self, device: str):
        self.cuda = torch.device(device).type == "cuda"

    def synchronise(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    @contextmanager
    def measuring(self, into: dict[str, Any]) -> Iterator[None]:
        self.synchronise()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield
        self.synchronise()
        into.setdefault("seconds", []).append(time.perf_counter() - start)
        into["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30 if self.cuda else None


def turns(calls: dict[str, Callable[[], Any]], clock: Clock, repeats: int) -> dict[str, dict[str, Any]]:
    """Each call once to warm up, then all of them in turn, `repeats` times."""
    found: dict[str, dict[str, Any]] = {name: {} for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            with clock.measuring(found[name] if round_ else {}):
                call()
    return found


def side_by_side(pipe: Any, n: int, clock: Clock, repeats: int) -> list[dict[str, Any]]:
    """Images a second: stock, control off, a control of x0_hat that needs no gradient, and how they compare."""
    process = StableDiffusionProcess(pipe, PROMPT, cfg=CFG, steps=STEPS, batch=n)

    def ours(control: Any) -> Callable[[], Tensor]:
        return lambda: process.decode(sc.simulate(process, control, n=n, keep="ends", noise=process.default_noise)
                                      .terminal)  # fmt: skip

    def stock() -> Any:
        generators = [torch.Generator(pipe.unet.device).manual_seed(i) for i in range(n)]
        return pipe([PROMPT] * n, num_inference_steps=STEPS, guidance_scale=CFG, eta=1.0, output_type="pt",
                    generator=generators)  # fmt: skip

    found = turns({"stock pipeline": stock, "control off": ours(None), "control on": ours(PULL)}, clock, repeats)
    base = statistics.median(found["stock pipeline"]["seconds"])
    for numbers in found.values():
        seconds = statistics.median(numbers["seconds"])
        numbers |= {"images a second": n / seconds, "times the stock pipeline's seconds": seconds / base}
    return [{"batch": n, "dtype": str(pipe.unet.dtype), "route": name, **numbers} for name, numbers in found.items()]


def apart(pipe: Any, n: int, clock: Clock) -> dict[str, Any]:
    """Seconds of one CFG call, and of a step of the loop whose network is a stored answer on the same device."""
    process = StableDiffusionProcess(pipe, PROMPT, cfg=CFG, steps=STEPS, batch=n)
    x = torch.randn(n, *process.event_shape, generator=torch.Generator().manual_seed(0))
    answer = torch.randn(2 * n, *process.event_shape).to(pipe.unet.device, pipe.unet.dtype)
    network = replace(process.network, unet=Stored(answer))
    bookkept = sc.ReverseProcess(process.schedule, sc.NoisePrediction(network), event_shape=process.event_shape)
    level = process.schedule.level(500)
    with torch.no_grad():
        times = turns({
            "call": lambda: process.network(x, level),
            "loop": lambda: sc.simulate(bookkept, PULL, grid=process.default_grid, kernel=process.default_kernel, n=n,
                                        keep="ends", noise=process.default_noise),
        }, clock, 7)  # fmt: skip
    call, loop = (statistics.median(times[name]["seconds"]) for name in ("call", "loop"))
    return {"batch": n, "seconds of a CFG call": call, "seconds of bookkeeping a step": loop / STEPS,
            "share": loop / STEPS / call}  # fmt: skip


def gradients(pipe: Any, n: int, clock: Clock, steps: int) -> list[dict[str, Any]]:
    """Seconds a step and memory of laws that differentiate: the plug-in law, with and without recomputation; DPS."""
    found = []
    for recompute in (False, True):
        process = StableDiffusionProcess(pipe, PROMPT, cfg=CFG, steps=steps, batch=n, checkpoint=recompute)
        problem = sc.Problem(process, process.on_images(brightness), temperature=1.0)
        laws = {"plug-in": sc.guidance.plug_in(problem), "dps": sc.guidance.dps(problem, scale=0.05)}
        runs = {name: partial(sc.simulate, process, law, n=n, keep="ends") for name, law in laws.items()}
        for name, numbers in turns(runs, clock, 1).items():
            each = statistics.median(numbers["seconds"]) / steps
            found.append({"law": name, "batch": n, "recompute": recompute, "seconds a step": each,
                          "peak GiB": numbers["peak GiB"]})  # fmt: skip
    return found


def brightness(images: Tensor) -> Tensor:
    return 20 * images.mean((1, 2, 3))


def parity(pipe: Any, n: int, steps: int) -> float:
    """max |latents - stock latents| / max |stock latents| for the same noise, the whole CFG loop."""
    process = StableDiffusionProcess(pipe, PROMPT, cfg=CFG, steps=steps, batch=n)
    path = sc.simulate(process, n=n, keep="all", noise=process.default_noise)
    assert path.noises is not None
    normals, drawn = iter(path.noises), scheduling_ddim.randn_tensor
    scheduling_ddim.randn_tensor = lambda shape, device=None, dtype=None, **_: next(normals).to(device, dtype)
    try:
        theirs = stock_latents(pipe, path.initial, steps)
    finally:
        scheduling_ddim.randn_tensor = drawn
    return furthest(path.terminal, theirs)


def parity_under_control(pipe: Any, n: int, steps: int) -> float:
    """The same with a control in the unmodified scheduler, whose normals the pipeline draws and the path is given."""
    process = StableDiffusionProcess(pipe, PROMPT, cfg=CFG, steps=steps, batch=n)
    path = sc.simulate(process, PULL, n=n, keep="all", noise=process.default_noise)
    assert path.noises is not None and path.states is not None
    drawn = iter(own_noise(process, path))
    before = torch_utils.randn_tensor
    torch_utils.randn_tensor = lambda shape, device=None, dtype=None, **_: next(drawn).to(device, dtype)
    try:
        with controlled(process, PULL) as (pipe, scheduler):
            theirs = stock_latents(pipe, path.initial, steps)
        assert torch.allclose(scheduler.energy, path.weights.energy, rtol=1e-3)
    finally:
        torch_utils.randn_tensor = before
    return furthest(path.terminal, theirs)


def own_noise(process: StableDiffusionProcess, path: Any) -> list[Tensor]:
    """The normals xi_k drawn along the path, before the control shifted them."""
    steps = process.default_noise.steps(0, process.event_shape, path.times)
    return [next(steps)[: path.n] for _ in path.transitions]


def stock_latents(pipe: Any, start: Tensor, steps: int) -> Tensor:
    answer = pipe([PROMPT] * len(start), num_inference_steps=steps, guidance_scale=CFG, eta=1.0, output_type="latent",
                  latents=start.to(pipe.unet.device, pipe.unet.dtype))  # fmt: skip
    latents: Tensor = answer.images
    return latents.float().cpu()


def furthest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def swarm(pipe: Any, n: int, clock: Clock, steps: int) -> dict[str, Any]:
    """Two images, each by n particles resampled along the way: seconds, memory, reward."""
    process = StableDiffusionProcess(pipe, PROMPT, cfg=CFG, steps=steps, batch=n)
    problem = sc.Problem(process, process.on_images(brightness), temperature=1.0)
    found: dict[str, Any] = {"particles": n, "steps": steps}
    with clock.measuring(found):
        score = sc.evaluate(problem, sc.steering.fk(problem, n), n=2 * n)
    return found | {"reward": score.reward.to_dict()}


def girsanov(pipe: Any, n: int, steps: int) -> dict[str, Any]:
    """E_u exp(-L) under a control of fixed size, L in nats around 0.1."""
    process = StableDiffusionProcess(pipe, PROMPT, cfg=CFG, steps=steps, batch=16)
    size = (2 * 0.1 / steps) ** 0.5

    def along(step: Any) -> Tensor:
        direction = step.x0_hat
        return size * direction / direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) / step.dt**0.5

    path = sc.simulate(process, sc.StepControl(along), n=n, keep="ends", noise=process.default_noise)
    estimate = sc.Estimate.mean((-path.log_ratio()).exp())
    return {"estimate": estimate.to_dict(), "z": (float(estimate.value) - 1) / float(estimate.stderr)}


def slope(pipe: Any) -> float:
    """Relative error of d reward(decode(x)) along its gradient, against a central difference (float32)."""
    process = StableDiffusionProcess(pipe, PROMPT, cfg=CFG, steps=10, batch=1)
    reward = process.on_images(brightness)
    x = torch.randn(1, *process.event_shape, generator=torch.Generator().manual_seed(1))
    gradient = reward.gradient(x)
    step = 0.3 * gradient / gradient.norm()
    central = float(reward(x + step) - reward(x - step)) / (2 * float(step.norm()))
    return abs(central / float(gradient.norm()) - 1)


def exhausted(pipe: Any, n: int) -> str:
    """What is said when n images at once do not fit."""
    process = StableDiffusionProcess(pipe, PROMPT, cfg=CFG, steps=2, batch=n)
    problem = sc.Problem(process, process.on_images(brightness), temperature=1.0)
    try:
        sc.simulate(process, sc.guidance.plug_in(problem), n=n, keep="ends")
    except OutOfMemory as error:
        return str(error)
    return f"{n} images fitted"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a rehearsal with a small network; writes nothing")
    asked = parser.parse_args()
    on_gpu, clock = asked.device != "cpu", Clock(asked.device)
    logging.set_verbosity_error()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    content: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu", "torch": torch.__version__,
        "diffusers": version("diffusers"), "steps": STEPS, "cfg": CFG, "rows": [], "bookkeeping": [], "gradients": [],
    }  # fmt: skip
    console = Console(width=160)

    def note(key: str, value: Any) -> None:
        content[key] = content[key] + value if isinstance(value, list) else value
        console.print(key, value)
        if not asked.small:
            RESULTS.parent.mkdir(exist_ok=True)
            write(RESULTS, json.dumps(content, indent=1) + "\n")

    pipe = pipeline(asked.device, torch.float16 if on_gpu else torch.float32, asked.small)
    parts = {"unet": pipe.unet, "vae": pipe.vae, "text encoder": pipe.text_encoder}
    note("parameters", {name: sum(w.numel() for w in part.parameters()) for name, part in parts.items()})
    note("latents against stock, float16, relative", parity(pipe, 2, 10))
    for n in (1, 8):
        note("rows", side_by_side(pipe, n, clock, asked.repeats))
        note("bookkeeping", [apart(pipe, n, clock)])
    note("gradients", gradients(pipe, 1, clock, 10))
    note("gradients", gradients(pipe, 4, clock, 10))
    note("particles", swarm(pipe, 4, clock, 10))
    note("E exp(-log ratio), float16", girsanov(pipe, 64, 10))
    note("exhausted memory", exhausted(pipe, 64) if on_gpu and not asked.small else "not tried")
    del pipe
    pipe = pipeline(asked.device, torch.float32, asked.small)
    note("latents against stock, float32, relative", parity(pipe, 2, 50))
    note("the same under a control in the scheduler", parity_under_control(pipe, 2, 50))
    note("gradient of the reward against a central difference, relative", slope(pipe))


if __name__ == "__main__":
    main()
