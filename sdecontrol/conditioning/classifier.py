"""A classifier by maximum likelihood from offline pairs, calibrated by temperature scaling."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sdecontrol.conditioning.pairs import Pairs, check_label
from sdecontrol.conditioning.rewards import LabelReward, frozen
from sdecontrol.conditioning.training import train
from sdecontrol.errors import check
from sdecontrol.finetune.checkpoint import FitRecord
from sdecontrol.finetune.fit import Decay, constant
from sdecontrol.noise import Noise


class Classifier(nn.Module):
    """log p(y | x) = log softmax(network(x) / e^log_temperature), y in 0 .. classes - 1.

    network: any torch module (n, *event) -> (n, classes). Parameters decide the precision it works in.
    """

    log_temperature: Tensor

    def __init__(self, network: nn.Module, classes: int):
        super().__init__()
        check(isinstance(network, nn.Module), f"a network of type {type(network).__name__}", "a torch module")
        check(isinstance(classes, int) and classes >= 2, f"classes = {classes!r}", "2 or more")
        self.network, self.classes = network, classes
        self.register_buffer("log_temperature", torch.zeros((), dtype=torch.float64))

    def logits(self, x: Tensor) -> Tensor:
        """The network's output, (n, classes). Raises BadInput for another shape."""
        parameter = next(self.network.parameters(), None)
        found = self.network(x if parameter is None else x.to(parameter.dtype))
        check_logits(found, len(x), self.classes)
        return found

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(. | x): (n, *event) -> (n, classes), float64."""
        return (self.logits(x).double() / self.log_temperature.exp()).log_softmax(1)

    def reward(self, label: int, strength: float = 1.0) -> LabelReward:
        """strength log p(label | x) as it is now. Raises BadInput for a label out of range, a strength not finite."""
        chosen, model = check_label(label, self.classes), frozen(self)
        return LabelReward(lambda x: model.log_prob(x)[:, chosen], strength, f"log p({chosen}|x)")

    def loss(self, pairs: Pairs) -> Tensor:
        """-mean log p(y_i | x_i), nats."""
        return -self.log_prob(pairs.x)[torch.arange(len(pairs)), pairs.y].mean()

    def calibrate(self, held_out: Pairs) -> float:
        """Temperature scaling: the e^log_temperature of least loss on held-out pairs, by LBFGS; returned.

        One parameter, so a few hundred pairs do; the order of the classes never changes. The loss is convex in the
        inverse temperature, so a finite best one exists iff some pair is classified wrong and the true classes' logits
        are above average. Source: CTRL 2406.12120, Algorithm 1, line 3 (calibrate).
        Raises: BadInput for other classes, or where no finite temperature is best.
        """
        check_classes(held_out, self.classes)
        with torch.no_grad():
            logits = self.logits(held_out.x).double()
        _check_finite_optimum(logits, held_out.y)
        log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([log_t], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(logits / log_t.exp(), held_out.y)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimiser.step(closure)
        self.log_temperature.copy_(log_t.detach())
        return float(self.log_temperature.exp())

    def confusion(self, pairs: Pairs) -> Tensor:
        """Counts (classes, classes): rows the true label, columns the most probable one."""
        check_classes(pairs, self.classes)
        with torch.no_grad():
            guess = self.log_prob(pairs.x).argmax(1)
        return torch.bincount(pairs.y * self.classes + guess, minlength=self.classes**2).view(self.classes, -1)


def fit_classifier(
    classifier: Classifier, pairs: Pairs, *, optimiser: torch.optim.Optimizer | None = None, steps: int = 500,
    n: int | None = None, decay: Decay = constant, noise: Noise | None = None, checkpoint: str | Path | None = None,
    resume: bool = True, progress: bool = True,
) -> FitRecord:  # fmt: skip
    """argmax sum_i log p(y_i | x_i) over the network's parameters, in place.

    optimiser: a torch optimiser that holds them; default Adam. n: minibatch size, None for all pairs. checkpoint: a
    folder, see `sc.fit`. Source: CTRL 2406.12120, (6).
    Raises: BadInput for pairs of other classes, or a network whose output has another shape, before work.
    """
    check_classes(pairs, classifier.classes)
    with torch.no_grad():
        classifier.logits(pairs.x[:1])
    return train(classifier, pairs, lambda drawn, _: classifier.loss(drawn), steps=steps, n=n, optimiser=optimiser,
                 decay=decay, noise=noise, checkpoint=checkpoint, resume=resume, progress=progress)  # fmt: skip


def _check_finite_optimum(logits: Tensor, y: Tensor) -> None:
    own = logits[torch.arange(len(y)), y]
    check(bool((own < logits.amax(1)).any()), f"no finite best temperature: all {len(y)} held-out pairs right",
          "pairs of which some are classified wrong", "Hold out more pairs.")  # fmt: skip
    check(bool((own - logits.mean(1)).mean() > 0), "no finite best temperature: the true classes' logits below average",
          "a classifier better than chance on held-out pairs", "Check the labels, or fit it again.")  # fmt: skip


def check_classes(pairs: Pairs, classes: int) -> None:
    check(isinstance(pairs, Pairs), f"a {type(pairs).__name__}", "sc.conditioning.Pairs")
    check(pairs.classes == classes, f"pairs of {pairs.classes} classes", f"{classes}, those of the classifier")


def check_logits(logits: Tensor, n: int, classes: int) -> None:
    if logits.shape != (n, classes):
        check(False, f"a network output of shape {tuple(logits.shape)} for {n} points and {classes} classes",
              f"({n}, {classes}): one logit a class")  # fmt: skip
