"""Rewards, always maximised: r maps states (n, *event) to (n,).

Any callable of that signature is a reward. The classes here also know E_{N(m, P)} exp(r / temperature) in closed
form, which is what the exact answers are made of. Parameters are float64 and cast to the state's dtype when called.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import NoTilt, check

FLAT = 1e-12  # eigenvalue of a curvature relative to the largest below which it is rounding


def _vector(name: str, value: Any) -> Tensor:
    v = torch.atleast_1d(torch.as_tensor(value, dtype=torch.float64))
    check(v.ndim == 1, f"{name} of shape {tuple(v.shape)}", "a vector (d,)")
    check(bool(torch.isfinite(v).all()), f"{name} with NaN or infinite entries", "finite numbers")
    return v


def _number(name: str, value: Any) -> float:
    check(math.isfinite(float(value)), f"{name} = {value}", "a finite number")
    return float(value)


class _Dense:
    """K as a symmetric matrix (d, d)."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    def times(self, x: Tensor) -> Tensor:
        """K x: (..., d) -> (..., d)."""
        return x @ self.matrix.to(x)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Its eigenvalues that are not rounding, and their eigenvectors."""
        values, vectors = torch.linalg.eigh(self.matrix)
        curved = values.abs() > FLAT * values.abs().max()
        return values[curved], vectors.mT[curved]


class _LowRank:
    """K = sum_i weights_i v_i v_i' with q directions v (q, d): O(q d) a point, and never a (d, d) matrix."""

    def __init__(self, weights: Tensor, directions: Tensor):
        self.weights, self.directions = weights, directions

    @property
    def matrix(self) -> Tensor:
        return self.directions.mT @ (self.weights[:, None] * self.directions)

    def times(self, x: Tensor) -> Tensor:
        v = self.directions.to(x)
        return ((x @ v.mT) * self.weights.to(x)) @ v

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.weights, self.directions


class Reward(ABC):
    """A reward that knows its gradient, its restriction to an affine subspace and its Gaussian exponential moment."""

    dim: int

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """r(x): (n, d) -> (n,)."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """grad r(x): (n, d) -> (n, d)."""

    @abstractmethod
    def restrict(self, basis: Tensor, offset: Tensor) -> Reward:
        """The reward u -> r(offset + basis u) on latent coordinates."""

    def active(self) -> Tensor | None:
        """An orthonormal basis (d, q) of the few directions on which the reward depends; None where it may be all."""
        return None

    @abstractmethod
    def log_expectation(self, mean: Tensor, covariance: Tensor, temperature: float) -> Tensor:
        """log E_{X ~ N(mean, covariance)} exp(r(X) / temperature): means (n, d), one covariance (d, d) -> (n,)."""

    def closed_tilt(self, law: Any, temperature: float) -> tuple[Any, float] | None:
        """(tilt of `law`, log of its normaliser) where this reward knows them without Gaussian moments, else None."""
        return None


class Quadratic(Reward):
    """r(x) = constant + linear . x - x' curvature x / 2, with a symmetric curvature of any sign.

    Shapes: linear (d,), curvature (d, d) or a scalar times the identity. One of them may be omitted when the other
    fixes the dimension; `Quadratic.low_rank` keeps a curvature of few directions as these.
    Raises: BadInput for an asymmetric curvature, mismatched shapes or entries not finite.
    """

    def __init__(self, linear: Any = None, curvature: Any = None, constant: float = 0.0):
        check(linear is not None or curvature is not None, "neither linear nor curvature", "at least one of them")
        k = None if curvature is None else torch.as_tensor(curvature, dtype=torch.float64)
        if linear is None:
            assert k is not None
            linear = torch.zeros(k.shape[0] if k.ndim else 1)
        self.linear = _vector("linear", linear)
        self.dim = len(self.linear)
        self.constant = _number("constant", constant)
        self._curvature: _Dense | _LowRank | None = None if k is None else self._checked(k)

    @classmethod
    def low_rank(cls, linear: Any, directions: Any, weights: Any, constant: float = 0.0) -> Quadratic:
        """constant + linear . x - sum_i weights_i (directions_i . x)^2 / 2, in O(q d) a point and in memory.

        Shapes: linear (d,), directions (q, d), weights (q,) of any sign. Raises: BadInput for other shapes.
        """
        reward = Quadratic(linear, constant=constant)
        v, w = torch.atleast_2d(torch.as_tensor(directions, dtype=torch.float64)), _vector("weights", weights)
        check(v.shape == (len(w), reward.dim), f"directions of shape {tuple(v.shape)}", f"({len(w)}, {reward.dim})")
        check(bool(torch.isfinite(v).all()), "directions with NaN or infinite entries", "finite numbers")
        reward._curvature = _LowRank(w, v) if bool(w.any()) else None
        return reward

    def _checked(self, k: Tensor) -> _Dense | None:
        d = self.dim
        k = k * torch.eye(d, dtype=torch.float64) if k.ndim == 0 else k
        check(k.shape == (d, d), f"curvature of shape {tuple(k.shape)}", f"({d}, {d}), as linear has {d} entries")
        check(bool(torch.isfinite(k).all()), "curvature with NaN or infinite entries", "finite numbers")
        skew = float((k - k.T).abs().max())
        check(
            skew <= 1e-10 * (1 + float(k.abs().max())),
            f"curvature asymmetric by {skew:.3g}",
            "a symmetric matrix",
            "Pass (K + K.T) / 2.",
        )
        return _Dense((k + k.T) / 2) if bool(k.any()) else None

    @property
    def is_linear(self) -> bool:
        return self._curvature is None

    @property
    def curvature(self) -> Tensor:
        """The symmetric matrix K (d, d); made when asked where it is zero or of low rank."""
        if self._curvature is None:
            return torch.zeros(self.dim, self.dim, dtype=torch.float64)
        return self._curvature.matrix

    def curved(self) -> tuple[Tensor, Tensor]:
        """(weights (q,), directions (q, d)) with K = sum_i weights_i v_i v_i'."""
        none = torch.zeros(0, dtype=torch.float64), torch.zeros(0, self.dim, dtype=torch.float64)
        return none if self._curvature is None else self._curvature.factors()

    def active(self) -> Tensor | None:
        if isinstance(self._curvature, _Dense):
            return None
        return torch.linalg.qr(torch.cat([self.linear[None], self.curved()[1]]).mT).Q

    def __call__(self, x: Tensor) -> Tensor:
        value = x @ self.linear.to(x) + self.constant
        return value if self._curvature is None else value - (self._curvature.times(x) * x).sum(-1) / 2

    def gradient(self, x: Tensor) -> Tensor:
        g = self.linear.to(x)
        return g.expand_as(x) if self._curvature is None else g - self._curvature.times(x)

    def restrict(self, basis: Tensor, offset: Tensor) -> Quadratic:
        if self._curvature is None:
            return Quadratic(basis.mT @ self.linear, constant=self.constant + float(self.linear @ offset))
        k_offset = self._curvature.times(offset)
        constant = float(self.constant + self.linear @ offset - offset @ k_offset / 2)
        k = basis.mT @ self._curvature.times(basis.mT).mT
        return Quadratic(basis.mT @ (self.linear - k_offset), (k + k.mT) / 2, constant)

    def log_expectation(self, mean: Tensor, covariance: Tensor, temperature: float) -> Tensor:
        """With S = P^{1/2}: exists iff I + S K S / temperature is positive; a Gaussian integral (derived)."""
        d, eye = self.dim, torch.eye(self.dim, dtype=covariance.dtype)
        g, k = self.linear.to(covariance), self.curvature.to(covariance)
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        root = (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.mT
        b = eye + root @ k @ root / temperature
        smallest = float(torch.linalg.eigvalsh(b)[0])
        if smallest <= 0:
            raise NoTilt(
                f"E exp(reward/temperature) is infinite: I + S^1/2 K S^1/2 / temperature has an eigenvalue "
                f"{smallest:.6g}; wanted a positive matrix. "
                "Raise the temperature or lower the positive curvature of the reward.",
                smallest,
                float(torch.linalg.eigvalsh(k)[0]) / (smallest - 1),
            )
        slope = (g - mean @ k) / temperature  # gradient of r/temperature at the mean
        scaled = slope @ root
        solved = torch.linalg.solve(b, scaled.mT).mT
        log_det = torch.linalg.slogdet(b)[1]
        at_mean = (mean @ g - ((mean @ k) * mean).sum(-1) / 2 + self.constant) / temperature
        return at_mean + (scaled * solved).sum(-1) / 2 - log_det / 2 if d else at_mean


class Linear(Quadratic):
    """r(x) = g . x with g (d,)."""

    def __init__(self, g: Any):
        super().__init__(linear=g)


class GaussianLabel(Quadratic):
    """r(x) = strength * log N(target; direction . x, noise^2): the log likelihood of a label, a quadratic.

    Source: the Gaussian label of CTRL (2406.12120), with r = strength log p(y|x).
    """

    def __init__(self, direction: Any, target: float, noise: float, strength: float = 1.0):
        self.direction = w = _vector("direction", direction)
        check(noise > 0, f"noise = {noise}", "a positive standard deviation")
        self.target, self.noise, self.strength = _number("target", target), float(noise), _number("strength", strength)
        precision = self.strength / noise**2
        log_norm = -(self.target**2) / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi))
        super().__init__(precision * target * w, constant=strength * log_norm)
        self._curvature = _LowRank(_vector("precision", precision), w[None]) if precision and bool(w.any()) else None


class Step(Reward):
    """r(x) = height * 1{direction . x > threshold}."""

    def __init__(self, direction: Any, threshold: float, height: float):
        self.direction = _vector("direction", direction)
        check(bool(self.direction.any()), "direction = 0", "a direction that is not zero")
        self.dim = len(self.direction)
        self.threshold = _number("threshold", threshold)
        self.height = _number("height", height)

    def __call__(self, x: Tensor) -> Tensor:
        return self.height * (x @ self.direction.to(x) > self.threshold).to(x.dtype)

    def gradient(self, x: Tensor) -> Tensor:
        """Zero almost everywhere; the jump has no gradient."""
        return torch.zeros_like(x)

    def restrict(self, basis: Tensor, offset: Tensor) -> Step:
        return Step(basis.mT @ self.direction, self.threshold - float(self.direction @ offset), self.height)

    def active(self) -> Tensor | None:
        return (self.direction / self.direction.norm())[:, None]

    def log_expectation(self, mean: Tensor, covariance: Tensor, temperature: float) -> Tensor:
        """log[1 + (e^{c/temperature} - 1) Phi] = logaddexp(log Phi(-z), c/temperature + log Phi(z)) (derived)."""
        w = self.direction.to(covariance)
        z = (mean @ w - self.threshold) / torch.sqrt(w @ covariance @ w)
        up, down = torch.special.log_ndtr(z), torch.special.log_ndtr(-z)
        return torch.logaddexp(down, up + self.height / temperature)


def as_quadratic(reward: Any) -> Quadratic | None:
    """The reward as a quadratic when it is one, else None."""
    return reward if isinstance(reward, Quadratic) else None
