"""Rewards that need no pretrained model: the size of a JPEG file, brightness, and any classifier of images."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import check

BYTES = 1000  # a kilobyte of the published experiments


def check_images(images: Tensor) -> None:
    """Raise BadInput unless images is (n, 3, height, width)."""
    check(isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3,
          f"images of shape {tuple(getattr(images, 'shape', ()))}", "(n, 3, height, width) in [0, 1]")  # fmt: skip


class JPEGIncompressibility:
    """Size of the image as a JPEG file of the given quality, in units of 1 000 bytes. It has no gradient.

    Values are rounded to 8 bits, half up. Source: DDPO (2305.13301) and CTRL (2406.12120) use quality 95.
    """

    sign = 1.0

    def __init__(self, quality: int = 95):
        check(isinstance(quality, int) and 1 <= quality <= 95, f"quality = {quality!r}", "an integer from 1 to 95")
        self.quality = quality

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        pixels = (images.detach() * 255 + 0.5).clamp(0, 255).to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        sizes = [self.sign * self._bytes(image) / BYTES for image in pixels]
        return torch.tensor(sizes, dtype=torch.float64).to(images)

    def _bytes(self, image: np.ndarray) -> int:
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=self.quality)
        return buffer.tell()


class JPEGCompressibility(JPEGIncompressibility):
    """Minus the size of the image as a JPEG file, in units of 1 000 bytes. It has no gradient."""

    sign = -1.0


class Brightness:
    """scale * mean of all pixels and channels: "bolder" where strokes are bright, as on the digits. Differentiable."""

    def __init__(self, scale: float = 1.0):
        check(np.isfinite(scale), f"scale = {scale}", "a finite number")
        self.scale = scale

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        return self.scale * images.mean((1, 2, 3))


class ClassPosterior:
    """log p(label | image), from a classifier images (n, 3, height, width) -> logits (n, classes). Differentiable.

    Source: the reward of CTRL (2406.12120), eq. (2), at strength 1; multiply it for another strength.
    Raises: BadInput for logits of another shape, or a label that the classifier does not have.
    """

    def __init__(self, classifier: Callable[[Tensor], Tensor], label: int):
        check(isinstance(label, int) and label >= 0, f"label {label!r}", "the number of a class, from 0")
        self.classifier, self.label = classifier, label

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        logits = self.classifier(images)
        check(logits.ndim == 2 and len(logits) == len(images), f"logits of shape {tuple(logits.shape)}",
              f"({len(images)}, classes)")  # fmt: skip
        check(self.label < logits.shape[1], f"label {self.label} of a classifier with {logits.shape[1]} classes",
              f"a label below {logits.shape[1]}")  # fmt: skip
        return torch.log_softmax(logits, dim=1)[:, self.label]
