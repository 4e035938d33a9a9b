"""Classifier guidance where only clean images can be classified: a classifier of noisy latents, learned on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdecontrol import guidance
from sdecontrol.backends.image_rewards import ClassPosterior
from sdecontrol.conditioning import NoisedClassifier, Pairs, fit_noised
from sdecontrol.controls import Control
from sdecontrol.problems.base import Problem
from sdecontrol.simulate import simulate

IMAGES, STEPS = 1024, 600  # drawn to learn from; iterations


class NoisyClassifier:
    """problem -> score + (1 / temperature) grad log p(label | x_s) for a class-posterior reward.

    p(label | x_s) is a small network on noised latents, trained by cross-entropy on 1024 images of the unconditional
    model, labelled by the reward's own classifier of clean images. It is learned once a pipeline, when first asked
    for: the cost is 1024 runs of the chain without guidance. What it leaves out is what Lemma 2 of CTRL adds: the
    scale 1 / temperature multiplies the drift, which is exact at temperature 1 only.
    Raises: BadInput where the unconditional model draws no image of some class.
    """

    def __init__(self, reward: ClassPosterior):
        self.reward = reward
        self._learned: tuple[Any, NoisedClassifier] | None = None

    def __call__(self, problem: Problem) -> Control:
        log_p = self.learned(problem.process).of(self.reward.label)
        return guidance.classifier(problem, lambda x, s: log_p(x.flatten(1), s), 1 / problem.temperature)

    def learned(self, process: Any) -> NoisedClassifier:
        """The classifier of noisy latents of the process's pipeline."""
        if self._learned is None or self._learned[0] is not process.pipe:
            self._learned = (process.pipe, self._fit(process))
        return self._learned[1]

    def _fit(self, process: Any) -> NoisedClassifier:
        free = process.with_cfg(0.0)
        latents = simulate(free, n=IMAGES, keep="ends", noise=process.default_noise).terminal
        logits = self._logits(process, latents)
        pairs = Pairs(latents.flatten(1).double().cpu(), logits.argmax(1).cpu(), logits.shape[1])
        classifier = NoisedClassifier(process.schedule, process.dim, pairs.classes)
        optimiser = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=1e-2)
        fit_noised(classifier, pairs, optimiser=optimiser, steps=STEPS, progress=False)
        return classifier

    def _logits(self, process: Any, latents: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.reward.classifier(process.decode(part)) for part in latents.split(process.batch)])
