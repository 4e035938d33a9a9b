"""Families of values V_theta(t, x) = v / temperature, each a control through its gradient."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from sdecontrol.finetune.families import Family, ResidualNetwork
from sdecontrol.finetune.features import Cosines, Polynomials, TimeFeatures
from sdecontrol.step import StepView


class ValueFamily(Family):
    """sqrt(dt) u = std' grad V(t_next, y), y the mean of the step.

    With `passes` = 2 the gradient is taken once more at mean + std sqrt(dt) u: the best mean shift of a chain solves
    w = std' E grad V(mean + std (xi + w)), and each pass gains an order in dt.
    """

    def __init__(self, passes: int = 2):
        super().__init__()
        self.passes = passes

    @abstractmethod
    def value(self, t: float, x: Tensor) -> Tensor:
        """V(t, x): (n, d) -> (n,)."""

    @abstractmethod
    def slope(self, t: float, x: Tensor) -> Tensor:
        """grad V(t, x): (n, d) -> (n, d)."""

    def shift(self, step: StepView) -> Tensor:
        end = step.mean
        for _ in range(self.passes):
            u = step.from_value(self.slope(step.t_next, end), 1.0)
            end = step.transition.finish(step.process, step.state, step.mean, u * step.dt**0.5)
        return u


class QuadraticValue(ValueFamily):
    """V = sum_j phi_j(t) (c_j + b_j . x - x' K_j x / 2) with symmetric K_j."""

    def __init__(
        self, dim: int, features: TimeFeatures | None = None, passes: int = 2, dtype: torch.dtype = torch.float64
    ):
        super().__init__(passes)
        self.features = features or Polynomials()
        m = self.features.count
        self.constants = nn.Parameter(torch.zeros(m, dtype=dtype))
        self.linear = nn.Parameter(torch.zeros(m, dim, dtype=dtype))
        self.curvatures = nn.Parameter(torch.zeros(m, dim, dim, dtype=dtype))

    def _coefficients(self, t: float) -> tuple[Tensor, Tensor, Tensor]:
        phi = self.features(t, self.dtype)
        k = torch.tensordot(phi, self.curvatures, 1)
        return phi @ self.constants, phi @ self.linear, (k + k.mT) / 2

    def value(self, t: float, x: Tensor) -> Tensor:
        c, b, k = self._coefficients(t)
        y = x.to(b)
        return (c + y @ b - ((y @ k) * y).sum(1) / 2).to(x)

    def slope(self, t: float, x: Tensor) -> Tensor:
        _, b, k = self._coefficients(t)
        return (b - x.to(b) @ k).to(x)


class NetworkValue(ValueFamily):
    """V = a residual MLP of x and features of time; its gradient by automatic differentiation."""

    def __init__(
        self, dim: int, width: int = 128, blocks: int = 2, features: TimeFeatures | None = None, passes: int = 1,
        seed: int = 0, dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        super().__init__(passes)
        self.features = features or Cosines()
        self.network = ResidualNetwork(dim, self.features.count, 1, width, blocks, seed).to(dtype)

    def value(self, t: float, x: Tensor) -> Tensor:
        return self.network(x.to(self.dtype), self.features(t, self.dtype))[:, 0].to(x)

    def slope(self, t: float, x: Tensor) -> Tensor:
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(self.value(t, x).sum(), x, create_graph=graph)[0]
