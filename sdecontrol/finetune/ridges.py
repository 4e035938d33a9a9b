"""Values made of random ridge functions of the state and of the model's guess of the data: linear in their weights."""

from __future__ import annotations

import torch
from torch import Tensor

from sdecontrol.finetune.families import denoiser_inputs, seeded
from sdecontrol.finetune.linear import LinearFamily
from sdecontrol.step import StepView

_LEVEL = 8.0  # size of the weights of the level, which goes from 0 to 1 and has to tell early from late


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
        with seeded(seed):
            weights, biases = torch.randn(2 * dim + 1, count, dtype=dtype), 4 * torch.rand(count, dtype=dtype) - 2
        level = _LEVEL * weights[-1:]
        coordinates = torch.eye(2 * dim, dtype=dtype)
        self.register_buffer("weights", torch.cat([torch.cat([weights[:-1] / (2 * dim) ** 0.5, level]),
                                                   torch.cat([coordinates, torch.zeros(1, 2 * dim, dtype=dtype)])], 1))
        self.register_buffer("biases", biases - level[0] / 2)
        self._start(1, 1, count + 2 * dim, dtype)

    def _slopes(self, step: StepView) -> tuple[Tensor, Tensor, Tensor]:
        """psi_j' at w_j . y + b_j (n, size), and the weights of x and of x0_hat (d, size)."""
        inputs, level, scale = denoiser_inputs(step)
        y = torch.cat([inputs, torch.full_like(inputs[:, :1], level)], 1).to(self.dtype)
        count, d = len(self.biases), step.x.shape[1]
        ridges = 1 - torch.tanh(y @ self.weights[:, :count] + self.biases).square()
        both = torch.cat([ridges, ridges.new_ones(len(y), 2 * d)], 1)
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
