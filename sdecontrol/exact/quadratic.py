"""Exponentials of quadratics under Gaussian noise: the one algebraic step of every recursion along an affine chain.

For f(x) = c + gamma . x - x' kappa x / 2 and x = a + N z with z ~ N(0, I), put H = I + N' kappa N (wanted positive) and
V = N N'. Completing the square (derived; the "discrete step" of linear-quadratic control),

    z under e^f:            N(w, H^-1),   w = H^-1 N' (gamma - kappa a)
    log E exp f(a + N z) =  c + |N' gamma|^2_{H^-1} / 2 - log det H / 2 + gamma_a . a - a' kappa_a a / 2,
                            kappa_a = (I + kappa V)^-1 kappa,   gamma_a = (I + kappa V)^-1 gamma.

kappa_a is solved for, never subtracted (kappa - kappa N H^-1 N' kappa cancels where kappa V is large).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.rewards import Quadratic


class NotPositive(ArithmeticError):
    """H = I + N' kappa N is not positive: E exp f is infinite. `eigenvalue` is its smallest eigenvalue."""

    def __init__(self, eigenvalue: float):
        super().__init__(f"smallest eigenvalue of I + N' kappa N is {eigenvalue:.6g}")
        self.eigenvalue = eigenvalue


def symmetric(a: Tensor) -> Tensor:
    """(a + a') / 2."""
    return (a + a.mT) / 2


def covariance_root(covariance: Tensor) -> Tensor:
    """L with L L' = covariance (d,d), which may be singular. Raises BadInput unless it is positive up to rounding."""
    values, vectors = torch.linalg.eigh(symmetric(covariance))
    floor = -1e-12 * float(values[-1].abs())
    check(float(values[0]) >= floor, f"a covariance with eigenvalue {float(values[0]):.6g}", "a positive matrix")
    return vectors * torch.where(values > 0, values, 0.0).sqrt()


@dataclass(frozen=True, eq=False)
class LogQuadratic:
    """f(x) = constant + linear . x - x' curvature x / 2 on R^d, float64."""

    curvature: Tensor
    linear: Tensor
    constant: float

    @classmethod
    def zero(cls, dim: int) -> LogQuadratic:
        return cls(torch.zeros(dim, dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64), 0.0)

    @classmethod
    def of(cls, reward: Quadratic, scale: float = 1.0) -> LogQuadratic:
        """scale * reward."""
        return cls(scale * reward.curvature, scale * reward.linear, scale * reward.constant)

    @classmethod
    def square(cls, gain: Tensor, offset: Tensor, weight: float) -> LogQuadratic:
        """weight * |gain x + offset|^2."""
        return cls(
            -2 * weight * symmetric(gain.mT @ gain), 2 * weight * gain.mT @ offset, float(weight * offset @ offset)
        )

    def as_reward(self, scale: float = 1.0) -> Quadratic:
        """scale * f as a reward."""
        return Quadratic(scale * self.linear, scale * self.curvature, scale * self.constant)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., d) -> (...)."""
        return self.constant + x @ self.linear - ((x @ self.curvature) * x).sum(-1) / 2

    def __add__(self, other: LogQuadratic) -> LogQuadratic:
        return LogQuadratic(
            self.curvature + other.curvature, self.linear + other.linear, self.constant + other.constant
        )

    def __mul__(self, factor: float) -> LogQuadratic:
        return LogQuadratic(factor * self.curvature, factor * self.linear, factor * self.constant)

    def compose(self, matrix: Tensor, offset: Tensor) -> LogQuadratic:
        """x -> f(matrix x + offset)."""
        return LogQuadratic(
            symmetric(matrix.mT @ self.curvature @ matrix),
            matrix.mT @ (self.linear - self.curvature @ offset),
            float(self(offset)),
        )

    def mean(self, mean: Tensor, covariance: Tensor) -> float:
        """E f(X) for X of that mean (d,) and covariance (d,d), whatever its law."""
        return float(self(mean) - (self.curvature * covariance).sum() / 2)

    def noise_law(self, noise: Tensor) -> NoiseLaw:
        """The law of z under exp f(a + noise z), noise (d,r). Raises NotPositive."""
        values, vectors = torch.linalg.eigh(symmetric(noise.mT @ self.curvature @ noise))
        if len(values) and float(values[0]) <= -1:
            raise NotPositive(1 + float(values[0]))
        return NoiseLaw(noise, values, vectors)

    def expected(self, law: NoiseLaw) -> LogQuadratic:
        """a -> log E exp f(a + N z); `law` is this f's own `noise_law(N)`."""
        eye = torch.eye(len(self.linear), dtype=torch.float64)
        factor = eye + self.curvature @ law.noise @ law.noise.mT
        solved = torch.linalg.solve(factor, torch.cat([self.curvature, self.linear[:, None]], dim=1))
        pull = law.response @ self.linear
        constant = self.constant + float((law.noise.mT @ self.linear) @ pull) / 2 - law.log_det / 2
        return LogQuadratic(symmetric(solved[:, :-1]), solved[:, -1], constant)


@dataclass(frozen=True, eq=False)
class NoiseLaw:
    """z ~ N(response (gamma - kappa a), H^-1), H = I + N' kappa N = vectors diag(1 + values) vectors'."""

    noise: Tensor
    values: Tensor
    vectors: Tensor

    @cached_property
    def root(self) -> Tensor:
        """H^-1/2, as vectors diag((1 + values)^-1/2): root root' = H^-1."""
        return self.vectors / (1 + self.values).sqrt()

    @cached_property
    def response(self) -> Tensor:
        """H^-1 N'."""
        return self.root @ (self.noise @ self.root).mT

    @property
    def log_det(self) -> float:
        """log det H."""
        return float(torch.log1p(self.values).sum())

    @property
    def fixed_variance_loss(self) -> float:
        """(tr(H - I) - log det H) / 2: what a shift of the mean alone leaves behind in log E exp f."""
        return float((self.values - torch.log1p(self.values)).sum() / 2)

    @property
    def variance_kl(self) -> float:
        """KL(N(0, H^-1) || N(0, I))."""
        return float((torch.log1p(self.values) - self.values / (1 + self.values)).sum() / 2)
