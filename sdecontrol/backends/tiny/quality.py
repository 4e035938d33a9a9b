"""What the small pipeline draws, measured: the prompted digit or not, how varied, copies of training images or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.backends.tiny.components import IMAGE
from sdecontrol.backends.tiny.images import PROMPTS, Digits, ink, split
from sdecontrol.data.arrays import scikit_learn
from sdecontrol.estimate import Estimate
from sdecontrol.report.progress import iterations_bar

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def draw(
    pipeline: StableDiffusionPipeline, n: int, *, scale: float = 1.0, steps: int = 50, eta: float = 0.0, seed: int = 0,
    batch: int = 100, progress: bool = True,
) -> Digits:
    """n images by the stock pipeline; image i has prompt i mod 10 and a generator of its own."""
    pipeline.set_progress_bar_config(disable=True)
    images = []
    with iterations_bar(progress) as bar:
        task = bar.add_task("images", total=n, note="")
        for start in range(0, n, batch):
            numbers = range(start, min(start + batch, n))
            drawn = pipeline(
                [PROMPTS[i % 10] for i in numbers], num_inference_steps=steps, guidance_scale=scale, eta=eta,
                height=IMAGE, width=IMAGE, output_type="pt",
                generator=[torch.Generator().manual_seed(seed * 1_000_003 + i) for i in numbers],
            ).images  # fmt: skip
            images.append(2 * drawn.float() - 1)
            bar.update(task, advance=len(numbers))
    return Digits(torch.cat(images), torch.arange(n) % 10)


class Reader:
    """A support vector machine that reads 8 x 8 digits; trained on the held-out ones, which the pipeline never saw."""

    def __init__(self, digits: Digits):
        self.machine = scikit_learn("sklearn.svm").SVC(C=10.0, gamma="scale")
        self.machine.fit(_rows(digits), digits.labels.numpy())

    def accuracy(self, digits: Digits) -> Estimate:
        """Share of the images that are read as their label."""
        right = self.machine.predict(_rows(digits)) == digits.labels.numpy()
        return Estimate.mean(torch.as_tensor(right, dtype=torch.float64))


@dataclass(frozen=True)
class Quality:
    """accuracy: share read as prompted. variance: within-class variance of the 8 x 8 pixels over that of real digits.

    nearest: median distance to the nearest training image, over that of held-out digits. copies: share of images nearer
    to a training image than 99 of 100 held-out digits are; a hundredth when nothing is copied.
    """

    accuracy: Estimate
    variance: Estimate
    nearest: float
    copies: Estimate

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"nearest": self.nearest}
        for name in ("accuracy", "variance", "copies"):
            estimate: Estimate = getattr(self, name)
            found[name] = {"value": float(estimate.value), "stderr": float(estimate.stderr), "n": estimate.n}
        return found


def quality(images: Digits, seed: int = 0) -> Quality:
    """Compare drawn images with the real digits; `seed` is that of the split into training and held-out ones."""
    train, held_out = split(seed)
    spread = _spread(images) / _spread(train).mean()
    distances, real = nearest(images, train), nearest(held_out, train)
    return Quality(
        Reader(held_out).accuracy(images),
        Estimate.mean(spread),
        float(distances.median() / real.median()),
        Estimate.mean((distances < torch.quantile(real, 0.01)).double()),
    )


def nearest(images: Digits, train: Digits) -> Tensor:
    """Euclidean distance of each image to the nearest training image, in 8 x 8 pixels: (n,)."""
    return torch.cdist(ink(images.images).flatten(1), ink(train.images).flatten(1)).amin(1).double()


def _spread(digits: Digits) -> Tensor:
    """n/(n - 1) |x - mean of its class|^2 of each image: (n,), whose mean is the within-class variance."""
    pixels = ink(digits.images).flatten(1).double()
    spread = torch.zeros(len(pixels), dtype=torch.float64)
    for label in digits.labels.unique():
        of_class = digits.labels == label
        count = int(of_class.sum())
        spread[of_class] = (pixels[of_class] - pixels[of_class].mean(0)).square().sum(1) * count / (count - 1)
    return spread


def _rows(digits: Digits) -> np.ndarray:
    return ink(digits.images).flatten(1).numpy()
