"""Values made of random ridge functions of the model's guess of the data: linear in their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdecontrol.finetune.families import denoiser_inputs, seeded
from sdecontrol.finetune.linear import LinearFamily
from sdecontrol.step import StepView

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

_LEVEL = 8.0  # size of the weights of the level, which goes from 0 to 1 and has to tell early from late


def ridges(inputs: int, count: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(w, b) of random tanh(w . y + b), y = (inputs of unit size, level): (inputs + 1, count) and (count,)."""
    with seeded(seed):
        weights, biases = torch.randn(inputs + 1, count, dtype=dtype), 4 * torch.rand(count, dtype=dtype) - 2
    weights[:-1] /= inputs**0.5
    weights[-1] *= _LEVEL
    return weights, biases - weights[-1] / 2  # centred at the middle level


class RidgeValue(LinearFamily):
    """sqrt(dt) u = std' grad_x V, V = sum_j c_j psi_j(y) of a reverse diffusion, y = (x / size, x0_hat, level).

    psi are the coordinates of (x / size, x0_hat) and tanh(w . y + b) for `count` random (w, b), drawn once: the scalar
    weights c of a gradient, half as many or fewer than those of a vector field of the same accuracy. grad_x holds J',
    the Jacobian of x0_hat, which is what is sharp in u* between modes (see `PulledFamily`). size and level are those of
    `DenoiserFamily`. For a few dimensions: in many, random directions miss those that matter.
    """

    requires_jacobian = True
    weights: Tensor
    biases: Tensor

    def __init__(self, dim: int, count: int = 200, seed: int = 0, dtype: torch.dtype = torch.float64):
        super().__init__()
        weights, biases = ridges(2 * dim, count, seed, dtype)
        coordinates = torch.eye(2 * dim + 1, 2 * dim, dtype=dtype)
        self.register_buffer("weights", torch.cat([weights, coordinates], 1))
        self.register_buffer("biases", biases)
        self._start(1, 1, count + 2 * dim, dtype)

    def _slopes(self, step: StepView) -> tuple[Tensor, Tensor, Tensor]:
        """psi_j' at w_j . y + b_j (n, size), and the weights of x and of x0_hat (d, size)."""
        inputs, level, scale = denoiser_inputs(step)
        y = torch.cat([inputs, torch.full_like(inputs[:, :1], level)], 1).to(self.dtype)
        count, d = len(self.biases), step.x.shape[1]
        slopes = 1 - torch.tanh(y @ self.weights[:, :count] + self.biases).square()
        both = torch.cat([slopes, slopes.new_ones(len(y), 2 * d)], 1)
        return both, self.weights[:d] / scale, self.weights[d : 2 * d]

    def psi(self, step: StepView) -> Tensor:
        slopes, in_x, in_x0 = self._slopes(step)
        units = torch.eye(step.x.shape[1], dtype=step.x.dtype)
        jacobian = torch.stack([step.pullback(e.expand_as(step.x)) for e in units], 2).to(self.dtype)
        gradients = (in_x + jacobian @ in_x0) * slopes[:, None]  # (n, d, size)
        spread = step.from_value(gradients.transpose(1, 2).reshape(-1, len(units)), 1.0)
        return spread.view(len(slopes), -1, len(units)).transpose(1, 2).reshape(1, -1, slopes.shape[1])

    def shift(self, step: StepView) -> Tensor:
        slopes, in_x, in_x0 = self._slopes(step)
        weighted = slopes * self.coefficients()
        gradient = (weighted @ in_x.mT).to(step.x) + step.pullback((weighted @ in_x0.mT).to(step.x))
        return step.from_value(gradient, 1.0)


class LearnedGuidance(LinearFamily):
    """sqrt(dt) u = std' grad_x V, V = f(r(x0_hat) / T, level): reward guidance with a learned scale f'.

    f(y) = c_0 y_0 + sum_j c_j tanh(w_j . y + b_j) with `count` random (w, b), drawn once. f = y_0 alone is the usual
    guidance by r(x0_hat), which is v to first order in r; f' says how far to trust it where x0_hat is uncertain. A few
    dozen parameters in any dimension, so losses whose noise grows with the parameters work.
    spread: the size of r(x0_hat) / T, by which y_0 is divided.
    """

    requires_jacobian = True
    weights: Tensor
    biases: Tensor

    def __init__(
        self, problem: Problem, count: int = 40, spread: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float64
    ):
        super().__init__()
        self.reward, self.unit = problem.reward, problem.temperature * spread
        weights, biases = ridges(1, count, seed, dtype)
        self.register_buffer("weights", weights)
        self.register_buffer("biases", biases)
        self._start(1, 1, count + 1, dtype)

    def _slopes(self, step: StepView) -> Tensor:
        """Derivatives of y_0 and of each ridge in y_0: (n, size)."""
        _, level, _ = denoiser_inputs(step)
        size = (self.reward(step.x0_hat) / self.unit).to(self.dtype)
        y = torch.stack([size, torch.full_like(size, level)], 1)
        slopes = (1 - torch.tanh(y @ self.weights + self.biases).square()) * self.weights[0]
        return torch.cat([torch.ones_like(slopes[:, :1]), slopes], 1)

    def _guidance(self, step: StepView) -> Tensor:
        """u of V = y_0."""
        return step.from_value(step.reward_gradient(self.reward), self.unit)

    def psi(self, step: StepView) -> Tensor:
        return (self._guidance(step)[:, :, None] * self._slopes(step)[:, None]).to(self.dtype).flatten(0, 1)[None]

    def shift(self, step: StepView) -> Tensor:
        scale = self._slopes(step) @ self.coefficients()[0]
        return self._guidance(step) * scale[:, None].to(step.x)
