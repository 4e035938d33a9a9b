"""A reward for the digits: the log posterior of a digit under a classifier of 8 x 8 pixels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sdecontrol.backends.image_rewards import ClassPosterior
from sdecontrol.backends.tiny.images import ink, split
from sdecontrol.data.arrays import scikit_learn
from sdecontrol.errors import check


def digit_posterior(label: int) -> ClassPosterior:
    """log p(label | image) by multinomial logistic regression on the digits that the pipeline was trained on.

    Smooth and differentiable. Judge the result by another classifier, such as `quality.Reader` on the held-out digits.
    """
    check(label in range(10), f"digit {label!r}", "one from 0 to 9")
    return ClassPosterior(_logits, label)


def _logits(images: Tensor) -> Tensor:
    weight, bias = _regression()
    return ink(2 * images - 1).flatten(1) @ weight.to(images).mT + bias.to(images)


@lru_cache(maxsize=1)
def _regression() -> tuple[Tensor, Tensor]:
    digits, _ = split()
    regression = scikit_learn("sklearn.linear_model").LogisticRegression(C=1.0, max_iter=2000)
    regression.fit(ink(digits.images).flatten(1).numpy(), digits.labels.numpy())
    return torch.as_tensor(regression.coef_), torch.as_tensor(regression.intercept_)
