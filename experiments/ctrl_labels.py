"""Two labels learned from separate pairs, and a continuous label: samples against the true targets.

The line, the reference and the chain are those of `experiments.ctrl`. The component of a mixture and a Bernoulli
label are learned apart, by logits of the right form or by networks. The continuous label is y = x^2 + noise, which no
straight line predicts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sdecontrol as sc
from experiments.ctrl import (
    CLASSES,
    LABEL,
    LINE,
    MODES,
    PATHS,
    REFERENCE,
    against,
    binned_tv,
    by_lbfgs,
    density,
    learned,
    pairs,
    shown,
    steered,
    target,
)
from experiments.record import resumed
from sdecontrol import conditioning

STRENGTHS, SIZES = (2.0, 1.5), (2_000, 20_000, 200_000)
BERNOULLI = conditioning.LabelReward(lambda x: nn.functional.logsigmoid(3 * (x[:, 0] - 0.5)))
TRUTHS = (sc.ClassPosterior(MODES, LABEL), BERNOULLI)
NOISE, VALUE, STRENGTH, EXAMPLES = 0.5, 2.0, 2.0, 50_000  # of the continuous label


def binary(n: int, which: int, seed: int) -> conditioning.Pairs:
    """n draws of the data, each with the label of one truth, yes or no."""
    x, rng = pairs(n, seed).x, np.random.default_rng([which + 1, n, seed])
    y = rng.uniform(size=n) < TRUTHS[which](x).exp().numpy()
    return conditioning.Pairs(x, torch.as_tensor(y).long(), 2)


def right_logits(n: int) -> tuple[conditioning.Classifier, conditioning.Classifier]:
    """Of the component by quadratic logits, of the other label by linear ones: maximum likelihood by LBFGS."""
    first, second = pairs(n, 50), binary(n, 1, 51)
    straight = conditioning.Classifier(conditioning.mlp(1, 2, hidden=0), 2)
    return learned(CLASSES["quadratic logits"], first), by_lbfgs(straight, lambda: straight.loss(second))


def networks(n: int) -> tuple[conditioning.Classifier, conditioning.Classifier]:
    """Two networks by 500 steps of Adam on minibatches, calibrated on held-out pairs."""

    def fitted(which: int) -> conditioning.Classifier:
        train, held = binary(n, which, 50 + which).split(0.2)
        torch.manual_seed(which)
        classifier = conditioning.Classifier(conditioning.mlp(1, 2, width=32), 2)
        conditioning.fit_classifier(classifier, train, steps=500, n=1_024, decay=sc.finetune.cosine, progress=False)
        classifier.calibrate(held)
        return classifier

    return fitted(0), fitted(1)


def two_labels() -> dict[str, Any]:
    """How far the learned joint targets are from the true one, and samples of the last of them."""
    true = (REFERENCE.log_prob(LINE) + sum(g * r(LINE) for g, r in zip(STRENGTHS, TRUTHS))).softmax(0)
    joint, found = None, {}
    for name, fit, label in (("networks", networks, 1), ("logits of the right form", right_logits, LABEL)):
        found[name] = []
        for n in SIZES:
            first, second = fit(n)
            joint = first.reward(label, STRENGTHS[0]) + second.reward(1, STRENGTHS[1])
            found[name].append({"pairs": n, **apart(target(joint), true)})
    x, first = steered(joint), target(sc.ClassPosterior(MODES, LABEL, STRENGTHS[0]))
    return {
        "pairs": SIZES[-1], "strengths": STRENGTHS, "targets": found, "true": against(x, true),
        "tv_first_label_only": binned_tv(first, true), **shown({"sampled": x}, true),
        "first_label_only": density(first),
    }  # fmt: skip


def apart(law: Tensor, true: Tensor) -> dict[str, float]:
    """Total variation, and mean and variance in units of their standard errors over PATHS samples."""
    (m, v, _), (mean, variance, fourth) = central(law), central(true)
    return {"tv": binned_tv(law, true), "mean": (m - mean) / (variance / PATHS) ** 0.5,
            "variance": (v - variance) / ((fourth - variance**2) / PATHS) ** 0.5}  # fmt: skip


def central(law: Tensor) -> tuple[float, float, float]:
    """Mean, variance and fourth central moment of a law at the nodes."""
    mean = float(law @ LINE[:, 0])
    return mean, float(law @ (LINE[:, 0] - mean) ** 2), float(law @ (LINE[:, 0] - mean) ** 4)


def examples(n: int) -> conditioning.TargetPairs:
    """n draws of the data with y = x^2 + noise."""
    x, rng = pairs(n, 60).x, np.random.default_rng(60)
    return conditioning.TargetPairs(x, x[:, 0] ** 2 + NOISE * torch.as_tensor(rng.standard_normal(n)))


def regression(network: nn.Module, offline: conditioning.TargetPairs) -> conditioning.Regression:
    """Adam, then LBFGS on all pairs."""
    model = conditioning.Regression(network)
    conditioning.fit_regression(model, offline, steps=500, n=1_024, decay=sc.finetune.cosine, progress=False)
    return by_lbfgs(model, lambda: -model.log_prob(offline.x, offline.y).mean())


def continuous() -> dict[str, Any]:
    """The label y = 2 at strength 2: a target of two modes, and what a straight line makes of it."""
    offline = examples(EXAMPLES)
    true = target(conditioning.LabelReward(lambda x: -((VALUE - x[:, 0] ** 2) ** 2) / (2 * NOISE**2), STRENGTH))
    curved = regression(conditioning.mlp(1, 1, width=16), offline)
    straight = regression(nn.Linear(1, 1, dtype=torch.float64), offline)
    reward = curved.reward(VALUE, STRENGTH)
    x, line = steered(reward), target(straight.as_label(VALUE, STRENGTH))
    return {
        "pairs": EXAMPLES, "value": VALUE, "strength": STRENGTH, "noise": NOISE, "learned_noise": curved.noise,
        "target": apart(target(reward), true), "true": against(x, true), "tv_line": binned_tv(line, true),
        "noise_line": straight.noise, "line": density(line), **shown({"sampled": x}, true),
    }  # fmt: skip


PARTS = {"two_labels": two_labels, "continuous": continuous}


if __name__ == "__main__":
    resumed("ctrl_labels", PARTS)
