"""Fine-tuning by the loss of classifier-free guidance: conditional denoising regression with dropped labels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sdecontrol.conditioning.classifier import check_classes
from sdecontrol.conditioning.networks import LevelNetwork
from sdecontrol.conditioning.noised import SMALLEST_LEVEL
from sdecontrol.conditioning.pairs import Pairs, check_label
from sdecontrol.conditioning.rewards import frozen
from sdecontrol.conditioning.training import normals, train, uniforms
from sdecontrol.errors import NotDefined, check
from sdecontrol.finetune.checkpoint import FitRecord
from sdecontrol.finetune.fit import Decay, constant
from sdecontrol.models import NoisePrediction
from sdecontrol.noise import Noise
from sdecontrol.processes import Process, ReverseProcess


class ConditionalNoise(nn.Module):
    """eps(x, s, y) = eps_pre(x, s) + network(x, s, one-hot y): the pretrained noise prediction at first.

    The class `classes` is the null label, as of a dropped one. process: a ReverseProcess, whose score is kept as it is.
    """

    def __init__(
        self, process: Process, classes: int, dropout: float = 0.1, width: int = 64, hidden: int = 2, seed: int = 0
    ):
        super().__init__()
        if not isinstance(process, ReverseProcess):
            raise NotDefined("the CFG loss denoises: it needs a ReverseProcess, whose score it starts from")
        check(isinstance(classes, int) and classes >= 2, f"classes = {classes!r}", "2 or more")
        check(0 <= dropout < 1, f"dropout = {dropout}", "a probability below 1")
        self.process, self.classes, self.dropout = process, classes, dropout
        dim = process.dim
        self.network = LevelNetwork(process.schedule, dim, dim, width, hidden, extra=classes + 1, seed=seed, zero=True)

    def correction(self, x: Tensor, s: Tensor | float, y: Tensor) -> Tensor:
        return self.network(x, s, nn.functional.one_hot(y, self.classes + 1).double())

    def levels(self, count: int) -> Tensor:
        """Noise levels even in log SNR over the whole horizon, at which the loss is taken: (count,)."""
        check(isinstance(count, int) and count >= 1, f"levels = {count!r}", "a positive integer")
        schedule, horizon = self.process.schedule, self.process.horizon
        ends = schedule.log_snr(horizon), schedule.log_snr(SMALLEST_LEVEL * horizon)
        ratios = torch.linspace(*ends, count, dtype=torch.float64).tolist()
        return torch.tensor([schedule.noise_level_at(ratio) for ratio in ratios], dtype=torch.float64)

    def model(self, label: int | None) -> NoisePrediction:
        """The model of one label, None the null one, for sc.guidance.cfg. Raises BadInput for a label out of range."""
        chosen = self.classes if label is None else check_label(label, self.classes)
        model, network, classes = self.process.model, frozen(self.network), self.classes

        def predict(x: Tensor, s: float) -> Tensor:
            labels = nn.functional.one_hot(torch.full((len(x),), chosen), classes + 1).double()
            return -self.process.schedule.sigma(s) * model.score(x, s)[0] + network(x, s, labels).to(x)

        return NoisePrediction(predict, self.process.event_shape)

    def loss(self, pairs: Pairs, levels: Tensor, noise: Noise) -> Tensor:
        """mean |eps - eps(x_s, s, y or null)|^2 / 2, the level one of `levels` (L,), stratified over the minibatch."""
        index = (torch.arange(len(pairs)) + uniforms(noise, "shift", 1)) * len(levels) / len(pairs)
        s = levels[index.long() % len(levels)]
        alpha, h = self.process.schedule.alpha(s)[:, None], self.process.schedule.h(s)[:, None]
        z = normals(noise, "noising", pairs.x)
        x = alpha * pairs.x + h.sqrt() * z
        with torch.no_grad():
            known = torch.zeros_like(x)
            for level in s.unique():
                rows = s == level
                score = self.process.model.score(x[rows], float(level))[0]
                known[rows] = -self.process.schedule.sigma(float(level)) * score
        dropped = uniforms(noise, "dropout", len(pairs)) < self.dropout
        labels = torch.where(dropped, self.classes, pairs.y)
        return (z - known - self.correction(x, s, labels)).square().sum(1).mean() / 2


def fit_conditional(
    model: ConditionalNoise, pairs: Pairs, *, optimiser: torch.optim.Optimizer | None = None, steps: int = 1000,
    n: int = 512, levels: int = 32, decay: Decay = constant, noise: Noise | None = None,
    checkpoint: str | Path | None = None, resume: bool = True, progress: bool = True,
) -> FitRecord:  # fmt: skip
    """Regress the noise on (x_s, s, y) with labels dropped at rate model.dropout: the loss that CFG is trained with.

    levels: how many noise levels, even in log SNR, are drawn from; the network is asked between them too.
    Source: 2207.12598; as the rival of conditioning by control, CTRL 2406.12120.
    """
    check_classes(pairs, model.classes)
    grid = model.levels(levels)
    objective = lambda drawn, noise: model.loss(drawn, grid, noise)  # noqa: E731
    return train(model, pairs, objective, steps=steps, n=n, optimiser=optimiser, decay=decay, noise=noise,
                 checkpoint=checkpoint, resume=resume, progress=progress)  # fmt: skip
