"""Questions about a pipeline: a prompt, a reward and a temperature, and the images that each law draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sdecontrol import guidance
from sdecontrol.backends.diffusers import StableDiffusionProcess
from sdecontrol.backends.reward_names import Named, named
from sdecontrol.controls import Control
from sdecontrol.methods import choose
from sdecontrol.problems.base import Problem
from sdecontrol.report.comparison import Chain, Trial
from sdecontrol.report.comparison_figures import picked
from sdecontrol.report.questions import Question

GUIDED = 7.5  # the scale of `cfg` when it has no number


def question(process: StableDiffusionProcess, reward: Named, temperature: float, name: str) -> Question:
    """max E r(image) - temperature KL against the pipeline's own law of latents, whose CFG scale is `process.cfg`."""
    problem = Problem(process, process.on_images(reward.reward), temperature, name=name)
    title = f"{process.prompts[0]!r}, {reward.text}"
    return Question(problem, title, own={"cfg": _cfg, **reward.controls}, show=shown(process))


def trials(
    pipeline: Any, prompts: Sequence[str], reward: str, laws: Sequence[str], temperatures: Sequence[float], n: int,
    seed: int = 0, **process: Any,
) -> list[Trial]:  # fmt: skip
    """One trial a prompt and temperature, all on the pipeline's own grid and kernel; `process`: as of the process.

    Raises: BadInput and UnknownName for whatever is wrong with names, prompts or the pipeline.
    """
    made = []
    for prompt in prompts:
        reference = StableDiffusionProcess(pipeline, prompt, **process)
        chain = Chain(reference.default_grid, reference.default_kernel, n, seed)
        asked = named(reward, prompt)
        for temperature in temperatures:
            name = "-".join(prompt.lower().split()) + (f"-{temperature:g}" if len(temperatures) > 1 else "")
            about = question(reference, asked, temperature, name)
            made.append(Trial(about, chain, choose(list(laws), about.own)))
    return made


def _cfg(problem: Problem) -> Control:
    """Stock classifier-free guidance: from the reference's scale to 7.5."""
    process: Any = problem.process
    return guidance.cfg(problem, process.with_cfg(1.0).model, GUIDED - process.cfg, process.unconditional)


def shown(process: StableDiffusionProcess) -> Callable[[Tensor], np.ndarray]:
    """Latents (n, C, h, w) -> pictures (n, height, width, 3) in [0, 1]."""
    return lambda latents: process.decode(latents).permute(0, 2, 3, 1).double().cpu().numpy()


def save_images(trial: Trial, folder: Path) -> None:
    """folder/LAW/0000.png, ... for every law that ran; particles one a population, by their weights."""
    show = trial.question.show
    assert show is not None
    for row in trial.rows:
        target = folder / row.name.replace(":", "-")
        target.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(show(picked(row.run, trial.chain.n))):
            Image.fromarray((picture * 255 + 0.5).clip(0, 255).astype(np.uint8)).save(target / f"{i:04d}.png")

