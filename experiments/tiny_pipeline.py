"""A small Stable Diffusion pipeline, trained on the digits: what it draws, and what laws and samplers make of it.

    sdecontrol train-tiny --out build/tiny
    python -m experiments.tiny_pipeline build/tiny            # about 25 minutes on two cores; --quick: 3

The parts are shared by processes of one thread each, as the networks are small.

`quality`: 1 000 images by the stock pipeline, read by a classifier that saw other digits, their variance within a class
and their distance to the training images. `laws`: three rewards at four temperatures under every law, on a chain of 20
steps whose reference is the conditional model. `routes`: log Z by the mean weight of plain paths, by that of guided
paths and by particles; the law of the reward under twisted particles against weighed plain paths.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.record import resumed
from sdecontrol import guidance, steering
from sdecontrol.backends import StableDiffusionProcess
from sdecontrol.backends.loading import load_pipeline
from sdecontrol.backends.reward_names import named
from sdecontrol.backends.sampling import question, trials
from sdecontrol.backends.tiny.images import ink, split
from sdecontrol.backends.tiny.quality import Reader, draw, quality
from sdecontrol.errors import NotDefined
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import ControlRun, collect
from sdecontrol.girsanov import effective_sample_size
from sdecontrol.path import Path as SimulatedPath
from sdecontrol.report.comparing import Comparing
from sdecontrol.report.comparison_figures import picked
from sdecontrol.report.front import FEWEST, front, weighed
from sdecontrol.simulate import simulate
from sdecontrol.steering import Particles

PROMPT, STEPS = "a three", 20
REWARDS = {
    "brightness": (0.06, 0.03, 0.015, 0.008),
    "digit:8": (4.0, 2.0, 1.0, 0.5),
    "jpeg-incompressibility": (0.04, 0.02, 0.01, 0.005),
}
LAWS = ("none", "plug-in", "dps:0.3", "gloss", "classifier", "cfg", "fk", "twisted", "svdd", "best-of-n")
SETTINGS = {  # name -> (guidance scale, steps, eta)
    "no guidance, DDIM": (1.0, 50, 0.0), "no guidance, eta = 1": (1.0, 50, 1.0), "guidance 2, DDIM": (2.0, 50, 0.0),
}  # fmt: skip
ROUTES = ("brightness", "digit:8")
SHOWN, PICTURED, LEVELS = 8, 60, (0.1, 0.25, 0.5, 0.75, 0.9)


@lru_cache(maxsize=1)
def pipeline_of(folder: Path) -> Any:
    """The pipeline in `folder`, loaded once a process."""
    return load_pipeline(folder)


def measured_quality(folder: Path, n: int) -> dict[str, Any]:
    """What is drawn at each setting, its first images as 8 x 8 pixels, and what the classifier makes of real digits."""
    train, held_out = split()
    found: dict[str, Any] = {"real training digits": {"accuracy": Reader(held_out).accuracy(train).to_dict()}}
    for name, (scale, steps, eta) in SETTINGS.items():
        images = draw(pipeline_of(folder), n, scale=scale, steps=steps, eta=eta)
        pixels = ink(images.images[:PICTURED]).double().numpy().round(2).tolist()
        found[name] = {"scale": scale, "steps": steps, "eta": eta, **quality(images).to_dict(), "pixels": pixels}
    return found


def laws(folder: Path, reward: str, temperatures: Sequence[float], n: int, out: Path) -> list[dict[str, Any]]:
    """One entry a temperature: the comparison as numbers, with a few images of each law."""
    asked = trials(pipeline_of(folder), [PROMPT], reward, LAWS, temperatures, n, cfg=1.0, steps=STEPS)
    comparing = Comparing(asked, out / reward.replace(":", "-"))
    comparing.carry_out()
    if comparing.stopped:
        raise KeyboardInterrupt
    middle = asked[len(asked) // 2]
    return [{**trial.to_dict(), "images": _images(trial) if trial is middle else {}} for trial in asked]


def _images(trial: Any) -> dict[str, Any]:
    """A few images of each law as 8 x 8 pixels of ink."""
    show = trial.question.show
    drawn = {row.name: torch.as_tensor(show(picked(row.run, SHOWN))).permute(0, 3, 1, 2) for row in trial.rows}
    return {name: ink(2 * images - 1).double().numpy().round(2).tolist() for name, images in drawn.items()}


def chain_of(folder: Path) -> StableDiffusionProcess:
    """The conditional model, the reference of all laws."""
    return StableDiffusionProcess(pipeline_of(folder), PROMPT, cfg=1.0, steps=STEPS)


@lru_cache(maxsize=1)
def plain_path(folder: Path, n: int) -> SimulatedPath:
    """n paths of the chain without control: what all rewards and temperatures are weighed from."""
    process = chain_of(folder)
    return simulate(process, n=n, keep="ends", noise=process.default_noise)


def plain_run(folder: Path, problem: Any, n: int) -> ControlRun:
    path = plain_path(folder, n)
    with torch.no_grad():
        return ControlRun(path, problem.reward(path.terminal).double(), problem.temperature)


def fronts(folder: Path, n: int, temperatures: dict[str, Sequence[float]]) -> dict[str, Any]:
    """For each reward: the exact front by weighed plain paths, and at each temperature the reward and KL of the tilt.

    Where under 400 of the plain paths count, the tilt is weighed from paths of the plug-in law, if it is defined.
    """
    process = chain_of(folder)
    found: dict[str, Any] = {}
    for reward, chosen in temperatures.items():
        problems = [question(process, named(reward, PROMPT), t, reward).problem for t in chosen]
        free = plain_run(folder, problems[0], n)
        chain = process.default_grid, process.default_kernel
        points = front(problems[0], *chain, seed=0, reference=free.reward)
        tilts = [_tilt(problem, free) for problem in problems]
        found[reward] = {"front": [point.to_dict() for point in points], "tilts": tilts}
    return found


def _tilt(problem: Any, free: ControlRun) -> dict[str, Any]:
    log_w, rewards, route = free.reward / problem.temperature, free.reward, "plain paths"
    if effective_sample_size(log_w) < FEWEST:
        try:
            guided: Any = collect(problem, guidance.plug_in(problem), n=len(log_w) // 16)
            log_w, rewards, route = guided.log_weight, guided.reward, "guided paths"
        except NotDefined:
            pass
    point = weighed(log_w, rewards, problem.temperature)
    return {**point.to_dict(), "route": route, "ess": effective_sample_size(log_w)}


def routes(folder: Path, reward: str, temperature: float, n: int, particles: int, populations: int) -> dict[str, Any]:
    """log Z three times, and P(r <= level) under the tilt by twisted particles and by weighed plain paths."""
    process = chain_of(folder)
    problem = question(process, named(reward, PROMPT), temperature, reward).problem
    free = plain_run(folder, problem, n)
    guided: Any = collect(problem, guidance.plug_in(problem), n=n // 2)
    swarm: Any = collect(problem, steering.twisted(problem, particles), n=particles * populations)
    log_z = {
        "plain paths": free.log_normalizer,
        "guided paths": guided.log_normalizer,
        "twisted particles": swarm.log_normalizer,
    }
    levels = torch.quantile(free.reward, torch.tensor(LEVELS, dtype=torch.float64))
    by_paths, by_particles = _distribution(free, levels), _swarm_distribution(swarm, levels)
    z = [(a.value - b.value) / (a.stderr**2 + b.stderr**2) ** 0.5 for a, b in zip(by_paths, by_particles, strict=True)]
    return {
        "reward": reward, "temperature": temperature, "levels": levels.tolist(), "z": z,
        "log_z": {name: e.to_dict() for name, e in log_z.items()},
        "plain": [e.to_dict() for e in by_paths], "twisted": [e.to_dict() for e in by_particles],
    }  # fmt: skip


def _distribution(run: ControlRun, levels: Tensor) -> list[Estimate]:
    """E_tilt 1{r <= level} by weights, a ratio of means; errors by the delta method."""
    w = (run.log_weight - run.log_weight.max()).exp()
    return [_ratio(w * (run.reward <= level), w) for level in levels]


def _swarm_distribution(swarm: Particles, levels: Tensor) -> list[Estimate]:
    """The same by particles: sums of absolute weights over each population are the independent samples."""
    w = (swarm.log_weights - swarm.log_weights.max()).exp().reshape(swarm.populations, -1)
    r = swarm.rewards.reshape(swarm.populations, -1)
    return [_ratio((w * (r <= level)).mean(1), w.mean(1)) for level in levels]


def _ratio(top: Tensor, bottom: Tensor) -> Estimate:
    value = float(top.mean() / bottom.mean())
    spread = Estimate.mean((top - value * bottom) / bottom.mean())
    return Estimate(value, float(spread.stderr), len(top), "ratio of means")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path, help="a folder made by sdecontrol train-tiny")
    parser.add_argument("--quick", action="store_true", help="fewer images, two temperatures")
    parser.add_argument("--out", type=Path, default=Path("build/tiny-laws"), help="folder of the comparisons")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, all cores when left out")
    asked = parser.parse_args()
    folder = asked.pipeline
    pipeline_of(folder)  # a wrong folder is told before any work
    torch.set_num_threads(1)
    n, drawn, size = (16, 100, (240, 8, 8)) if asked.quick else (128, 1000, (2000, 16, 40))
    chosen = {reward: t[1:3] if asked.quick else t for reward, t in REWARDS.items()}
    parts: dict[str, Any] = {"setting": partial(dict, n=n, prompt=PROMPT, steps=STEPS)}
    for reward, temperatures in chosen.items():
        parts[f"laws {reward}"] = partial(laws, folder, reward, temperatures, n, asked.out)
    for reward in ROUTES:
        parts[f"routes {reward}"] = partial(routes, folder, reward, REWARDS[reward][1], *size)
    parts["fronts"] = partial(fronts, folder, size[0], chosen)
    parts["quality"] = partial(measured_quality, folder, drawn)
    resumed("tiny_pipeline_quick" if asked.quick else "tiny_pipeline", parts, asked.workers)


if __name__ == "__main__":
    main()
