"""Guidance by the label of a noised point: the exact log p(y | x_s), a trained one, and its drift scaled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sdecontrol.conditioning.classifier import check_classes, check_logits
from sdecontrol.conditioning.networks import LevelNetwork
from sdecontrol.conditioning.pairs import Pairs, check_label
from sdecontrol.conditioning.rewards import frozen
from sdecontrol.conditioning.training import normals, train, uniforms
from sdecontrol.controls import Control
from sdecontrol.errors import check
from sdecontrol.finetune.checkpoint import FitRecord
from sdecontrol.finetune.fit import Decay, constant
from sdecontrol.guidance.classifier import LogClassifier
from sdecontrol.guidance.doob import doob
from sdecontrol.noise import Noise
from sdecontrol.schedules import Schedule

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

SMALLEST_LEVEL = 1e-3  # of the horizon: the lowest noise level that a noised classifier is trained at


class _Exact(torch.autograd.Function):
    """log p(y | x_s) = v(t, x) / temperature, its gradient u* / amplitude by the closed form."""

    @staticmethod
    def forward(ctx, x, problem, t):  # type: ignore[no-untyped-def]
        amplitude = problem.process.amplitude(t)
        ctx.save_for_backward(problem.exact.control(t, x) / amplitude)
        return problem.exact.value(t, x) / problem.temperature

    @staticmethod
    def backward(ctx, *weights):  # type: ignore[no-untyped-def]
        (slope,) = ctx.saved_tensors
        return weights[0][:, None] * slope, None, None


def exact_classifier(problem: Problem) -> LogClassifier:
    """(x, s) -> log E[p(y | X_0) | x_s], the time-dependent classifier that is right, where problem.exact has a value.

    problem: its reward the log likelihood of the label, at temperature 1. Source: CTRL 2406.12120, Lemma 1.
    """
    return lambda x, s: _Exact.apply(x, problem, problem.process.horizon - s)


def scaled_drift(problem: Problem, strength: float) -> Control:
    """strength times the control of the label at strength 1: what "a guidance scale" does, and not the tilt.

    problem: its reward log p(y | x), at temperature 1. The drift strength sigma^2 grad log E[p | x_s] is that of no
    tilt unless the strength is 1; Lemma 2's is sigma^2 grad log E[p^strength | x_s], the exact control of the reward
    with the strength in it. On Gaussians the law that it samples is `combined_gaussian`.
    Source: derived, against CTRL 2406.12120, Lemma 2. Raises: BadInput for a strength that is not finite.
    """
    check(math.isfinite(strength), f"strength = {strength}", "a finite number")
    return strength * doob(problem, form="value")


class NoisedClassifier(nn.Module):
    """log p(y | x_s) = log softmax(network(x, s)), trained on noised pairs; the wanted label's is a LogClassifier."""

    def __init__(self, schedule: Schedule, dim: int, classes: int, network: nn.Module | None = None):
        super().__init__()
        check(isinstance(classes, int) and classes >= 2, f"classes = {classes!r}", "2 or more")
        self.schedule, self.classes = schedule, classes
        self.network = network or LevelNetwork(schedule, dim, classes)

    def log_prob(self, x: Tensor, s: Tensor | float) -> Tensor:
        """(n, d), a level or one each -> (n, classes), float64."""
        logits = self.network(x, s)
        check_logits(logits, len(x), self.classes)
        return logits.double().log_softmax(1)

    def of(self, label: int) -> LogClassifier:
        """(x, s) -> log p(label | x_s), for sc.guidance.classifier. Raises BadInput for a label out of range."""
        chosen, model = check_label(label, self.classes), frozen(self)
        return lambda x, s: model.log_prob(x, s)[:, chosen].to(x.dtype)

    def loss(self, pairs: Pairs, noise: Noise) -> Tensor:
        """-mean log p(y_i | alpha x_i + sqrt(h) z_i), the level even in time."""
        low, high = SMALLEST_LEVEL * self.schedule.horizon, self.schedule.horizon
        s = low + (high - low) * uniforms(noise, "levels", len(pairs))
        alpha, h = self.schedule.alpha(s)[:, None], self.schedule.h(s)[:, None]
        x = alpha * pairs.x + h.sqrt() * normals(noise, "noising", pairs.x)
        return -self.log_prob(x, s)[torch.arange(len(pairs)), pairs.y].mean()


def fit_noised(
    classifier: NoisedClassifier, pairs: Pairs, *, optimiser: torch.optim.Optimizer | None = None, steps: int = 1000,
    n: int = 512, decay: Decay = constant, noise: Noise | None = None, checkpoint: str | Path | None = None,
    resume: bool = True, progress: bool = True,
) -> FitRecord:  # fmt: skip
    """Cross-entropy on noised pairs: its minimiser over all functions is E[p(y | X_0) | x_s]. See `fit_classifier`."""
    check_classes(pairs, classifier.classes)
    return train(classifier, pairs, classifier.loss, steps=steps, n=n, optimiser=optimiser, decay=decay, noise=noise,
                 checkpoint=checkpoint, resume=resume, progress=progress)  # fmt: skip
