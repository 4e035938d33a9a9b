"""`sdecontrol verify --problem FOLDER`: a folder of a pipeline as a problem, and the claims that can be checked on it.

FOLDER or "FOLDER?prompt=a three&cfg=2&steps=20&images=512&scheduler=ddim": the defaults are an empty prompt, cfg 2, 10
steps and 512 images a mean. The reward is the brightness of the image, scaled so that its standard deviation over
reference images is 1; the temperature is 2, so that log weights have a standard deviation of about one half.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

import torch
from torch import Tensor

import sdecontrol.backends.claims  # noqa: F401  registers the claims
from sdecontrol.backends.diffusers import StableDiffusionProcess
from sdecontrol.errors import check
from sdecontrol.problems.base import Problem
from sdecontrol.problems.builtin import MAKERS
from sdecontrol.problems.fitted import Subject
from sdecontrol.simulate import simulate

OPTIONS = {"prompt": str, "cfg": float, "steps": int, "images": int, "scheduler": str, "batch": int}
PILOT, TEMPERATURE = 32, 2.0


def brightness(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


class Scaled:
    """(brightness - mean) / standard deviation, the two of a pilot of reference images."""

    def __init__(self, process: StableDiffusionProcess):
        with torch.no_grad():
            values = process.on_images(brightness)(simulate(process, n=PILOT, keep="ends").terminal)
        self.mean, self.std = float(values.mean()), float(values.std())
        check(self.std > 0, "reference images of one brightness", "images that differ")

    def __call__(self, images: Tensor) -> Tensor:
        return (brightness(images) - self.mean) / self.std


def subject(name: str) -> Subject | None:
    """The subject of "FOLDER?options", None where that is no folder. Raises: BadInput for options or the folder."""
    folder, _, query = name.partition("?")
    if not Path(folder).is_dir():
        return None
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(given) - set(OPTIONS))
    check(not unknown, f"options {', '.join(unknown)} of {folder}", f"some of {', '.join(OPTIONS)}")
    options = {key: OPTIONS[key](value) for key, value in given.items()}
    images, prompt = options.pop("images", 512), options.pop("prompt", "")
    process = StableDiffusionProcess.from_pretrained(folder, prompt, **({"cfg": 2.0, "steps": 10} | options))
    problem = Problem(process, process.on_images(Scaled(process)), TEMPERATURE, name=Path(folder).name)
    problem.images = images  # type: ignore[attr-defined]
    return Subject(problem)


MAKERS.append(subject)
