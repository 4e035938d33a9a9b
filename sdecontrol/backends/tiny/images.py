"""The digits as images with prompts: "a zero" ... "a nine"; 8 x 8 pixels enlarged to 32 x 32, three equal channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sdecontrol import data
from sdecontrol.backends.tiny.components import IMAGE
from sdecontrol.data.arrays import scikit_learn

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPTS = tuple(f"a {word}" for word in WORDS)
HELD_OUT = 0.2


@dataclass(frozen=True)
class Digits:
    """Images (n, 3, 32, 32) between -1 and 1 and their labels (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


def split(seed: int = 0) -> tuple[Digits, Digits]:
    """The digits to train on, and a fifth held out: equal shares of every class, always the same for one seed."""
    digits = data.digits()
    parts = scikit_learn("sklearn.model_selection").train_test_split(
        np.arange(len(digits.values)), test_size=HELD_OUT, random_state=seed, stratify=digits.labels
    )
    ink = torch.as_tensor(digits.values, dtype=torch.float32).reshape(-1, 8, 8)
    labels = torch.as_tensor(digits.labels)
    return Digits(enlarge(ink[parts[0]]), labels[parts[0]]), Digits(enlarge(ink[parts[1]]), labels[parts[1]])


def enlarge(ink: Tensor) -> Tensor:
    """(n, 8, 8) between 0 and 1 -> (n, 3, 32, 32) between -1 and 1, bilinear."""
    large = functional.interpolate(ink[:, None], size=(IMAGE, IMAGE), mode="bilinear", align_corners=False)
    return (2 * large - 1).expand(-1, 3, -1, -1).contiguous()


def ink(images: Tensor) -> Tensor:
    """(n, 3, 32, 32) between -1 and 1 -> (n, 8, 8) between 0 and 1: the mean over channels and over 4 x 4 pixels."""
    return (functional.avg_pool2d(images.mean(1, keepdim=True), IMAGE // 8)[:, 0] + 1) / 2
