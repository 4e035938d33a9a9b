"""Families that are linear in their parameters: convex to learn, and with orthonormal features well conditioned."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from sdecontrol.errors import check
from sdecontrol.finetune.families import Family, StateFamily
from sdecontrol.finetune.features import Polynomials, TimeFeatures
from sdecontrol.laws import Law
from sdecontrol.noise import Noise
from sdecontrol.simulate import simulate
from sdecontrol.step import StepView
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


class LinearFamily(Family):
    """u_i = theta_i . B_i psi_i(step): linear in its parameters theta (outputs, size), zero at first.

    psi are the family's features, shared by the outputs or one set each, and B, the identity at first, may make them
    orthonormal (`orthonormalise`). Every loss here is (1/2) E sum dt |u - u*|^2 near its optimum, so with orthonormal
    features its Hessian is near the identity and plain SGD takes Newton's steps. A control that moves the mean of the
    features by m standard deviations raises the largest eigenvalue to 1 + m^2, and a rate above 2/(1 + m^2) diverges.
    """

    theta: nn.Parameter
    basis: Tensor
    observer: Callable[[StepView], None] | None = None  # sees the steps on which u is evaluated with gradients

    def __call__(self, *where: Any) -> Tensor:
        if self.observer is not None and torch.is_grad_enabled() and self.theta.requires_grad and len(where) == 1:
            self.observer(where[0])
        return super().__call__(*where)

    def _start(self, outputs: int, sets: int, size: int, dtype: torch.dtype) -> None:
        self.theta = nn.Parameter(torch.zeros(outputs, size, dtype=dtype))
        self.register_buffer("basis", torch.eye(size, dtype=dtype).repeat(sets, 1, 1))

    @abstractmethod
    def psi(self, step: StepView) -> Tensor:
        """The features at the states of a step: (sets, rows, size), one set or one for each output."""

    def gram(self, step: StepView) -> Tensor:
        """Mean of psi psi' over the paths of a step, times dt: (sets, size, size)."""
        psi = self.psi(step)
        return psi.mT @ psi * (step.dt / len(step.x))

    def coefficients(self) -> Tensor:
        """theta_i B_i, the coefficients of psi: (outputs, size)."""
        return (self.theta[:, None] @ self.basis)[:, 0]

    def orthonormalise(
        self, problem: Problem, control: Any = None, initial: Law | None = None, *, grid: TimeGrid | None = None,
        ridge: float = 1e-3, n: int = 2048, noise: Noise | None = None,
    ) -> Self:  # fmt: skip
        """B = (G + ridge |G|)^{-1/2} with G = E sum_k dt psi psi' along n paths of `control`, default none.

        ridge keeps directions that those paths hardly show from being magnified. Raises: BadInput once theta is not 0.
        """
        check(not bool(self.theta.detach().any()), "a family that has learned already", "one with u = 0",
              "Orthonormalise before the fit.")  # fmt: skip
        with torch.no_grad():
            path = simulate(problem.process, control, initial, grid=grid, n=n, noise=noise or Noise(2))
            gram = torch.zeros_like(self.basis)
            for _, step in path.views(self.requires_jacobian):
                gram += self.gram(step)
            size, axes = torch.linalg.eigh(gram)
            self.basis.copy_((size + ridge * size[:, -1:]).rsqrt()[:, :, None] * axes.mT)
        return self


class SeparableFamily(StateFamily, LinearFamily):
    """psi = phi(t) shapes(x), every product of a feature of time and one of the state."""

    features: TimeFeatures

    @abstractmethod
    def shapes(self, x: Tensor) -> Tensor:
        """The features of the state: (n, d) -> (sets, n, count)."""

    def psi(self, step: StepView) -> Tensor:
        phi = self.features(step.t, self.dtype)
        return (phi[:, None] * self.shapes(step.x.to(phi))[:, :, None]).flatten(2)

    def gram(self, step: StepView) -> Tensor:
        phi, shapes = self.features(step.t, self.dtype), self.shapes(step.x.to(self.dtype))
        return torch.kron(torch.outer(phi, phi), shapes.mT @ shapes) * (step.dt / len(step.x))

    def at_time(self, t: float) -> Tensor:
        """The coefficients of the shapes at time t: (outputs, count)."""
        phi, coefficients = self.features(t, self.dtype), self.coefficients()
        return torch.tensordot(phi, coefficients.view(len(coefficients), len(phi), -1), ([0], [1]))


class AffineFamily(SeparableFamily):
    """u(t, x) = sum_j phi_j(t) (G_j x + b_j), with phi the features of time: m d (d + 1) parameters.

    It has `affine_at`, so the exact moments, path KL and gap of a learned control are closed on affine chains.
    """

    def __init__(self, dim: int, features: TimeFeatures | None = None, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.features = features or Polynomials()
        self._start(dim, 1, self.features.count * (dim + 1), dtype)

    def shapes(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.new_ones(len(x), 1)], 1)[None]

    def at(self, t: float, x: Tensor) -> Tensor:
        here = self.at_time(t)
        return torch.addmm(here[:, -1:], here[:, :-1], x.to(here).mT).mT.to(x)

    def affine_at(self, t: float) -> tuple[Tensor, Tensor]:
        here = self.at_time(t).detach().double()
        return here[:, :-1], here[:, -1]


class CoordinateFamily(SeparableFamily):
    """u_i(t, x) = sum_jk c_ijk phi_j(t) T_k(x_i / half_width): Chebyshev polynomials of each coordinate, k <= degree.

    For problems whose coordinates do not interact; beyond the half width a coordinate counts as being there.
    """

    def __init__(
        self, dim: int, features: TimeFeatures | None = None, degree: int = 9, half_width: float = 2.0,
        dtype: torch.dtype = torch.float64,
    ):  # fmt: skip
        super().__init__()
        self.features, self.degree, self.half_width = features or Polynomials(), degree, half_width
        self._start(dim, dim, self.features.count * (degree + 1), dtype)

    def _chebyshev(self, x: Tensor) -> Tensor:
        """T_k(x / half_width), k = 0 .. degree: (degree + 1, n, d)."""
        y = (x / self.half_width).clamp(-1, 1)
        terms = [torch.ones_like(y), y]
        while len(terms) <= self.degree:
            terms.append(2 * y * terms[-1] - terms[-2])
        return torch.stack(terms[: self.degree + 1])

    def shapes(self, x: Tensor) -> Tensor:
        return self._chebyshev(x).permute(2, 1, 0)

    def at(self, t: float, x: Tensor) -> Tensor:
        here = self.at_time(t)
        return (self._chebyshev(x.to(here)) * here.mT[:, None]).sum(0).to(x)
