"""A continuous label: y = f(x) + noise, f and the noise by maximum likelihood."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from sdecontrol.conditioning.pairs import TargetPairs
from sdecontrol.conditioning.rewards import LabelReward, frozen
from sdecontrol.conditioning.training import train
from sdecontrol.errors import NotDefined, check
from sdecontrol.finetune.checkpoint import FitRecord
from sdecontrol.finetune.fit import Decay, constant
from sdecontrol.noise import Noise
from sdecontrol.rewards import GaussianLabel

_LOG_2PI = math.log(2 * math.pi)


class Regression(nn.Module):
    """p(y | x) = N(y; network(x), e^{2 log_noise}); network: (n, *event) -> (n, 1)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        check(isinstance(network, nn.Module), f"a network of type {type(network).__name__}", "a torch module")
        self.network = network
        self.log_noise = nn.Parameter(torch.zeros((), dtype=torch.float64))

    @property
    def noise(self) -> float:
        """The standard deviation of the label given x."""
        return float(self.log_noise.detach().exp())

    def centre(self, x: Tensor) -> Tensor:
        """E[y | x]: (n, *event) -> (n,), float64. Raises BadInput for a network of another shape."""
        parameter = next(self.network.parameters(), None)
        found = self.network(x if parameter is None else x.to(parameter.dtype))
        check(found.shape == (len(x), 1), f"a network output of shape {tuple(found.shape)}", f"({len(x)}, 1)")
        return found[:, 0].double()

    def log_prob(self, x: Tensor, y: Tensor | float) -> Tensor:
        """log N(y; f(x), noise^2): (n,)."""
        z = (y - self.centre(x)) / self.log_noise.exp()
        return -(z.square() + _LOG_2PI) / 2 - self.log_noise

    def reward(self, target: float, strength: float = 1.0) -> LabelReward:
        """strength log p(target | x). Raises BadInput for numbers that are not finite."""
        check(math.isfinite(target), f"target = {target}", "a finite number")
        model = frozen(self)
        return LabelReward(lambda x: model.log_prob(x, float(target)), strength, f"log p({target:g}|x)")

    def as_label(self, target: float, strength: float = 1.0) -> GaussianLabel:
        """The same reward in closed form where the network is one linear layer: every exact answer applies.

        Raises: NotDefined for other networks.
        """
        layers = list(self.network.children()) or [self.network]
        layer = layers[0]
        if len(layers) != 1 or not isinstance(layer, nn.Linear):
            raise NotDefined("a closed form needs a linear regression, network = torch.nn.Linear(d, 1); use .reward")
        bias = 0.0 if layer.bias is None else float(layer.bias.detach())
        return GaussianLabel(layer.weight.detach()[0].double(), target - bias, self.noise, strength)


def fit_regression(
    regression: Regression, pairs: TargetPairs, *, optimiser: torch.optim.Optimizer | None = None, steps: int = 500,
    n: int | None = None, decay: Decay = constant, noise: Noise | None = None, checkpoint: str | Path | None = None,
    resume: bool = True, progress: bool = True,
) -> FitRecord:  # fmt: skip
    """argmax sum_i log N(y_i; f(x_i), noise^2) over f and the noise, in place; see `fit_classifier`."""
    check(isinstance(pairs, TargetPairs), f"a {type(pairs).__name__}", "sc.conditioning.TargetPairs")
    with torch.no_grad():
        regression.centre(pairs.x[:1])
    objective = lambda drawn, _: -regression.log_prob(drawn.x, drawn.y).mean()  # noqa: E731
    return train(regression, pairs, objective, steps=steps, n=n, optimiser=optimiser, decay=decay, noise=noise,
                 checkpoint=checkpoint, resume=resume, progress=progress)  # fmt: skip
