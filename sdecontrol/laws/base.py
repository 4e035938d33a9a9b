"""What every law offers.

A law p on events of shape `event_shape` can be sampled, and where it has a density knows log p, its score
grad log p and the products of its Hessian with a vector. `noised(a, h)` is the law of a X + sqrt(h) Z, Z
standard normal, which is what a forward diffusion makes of it at a noise level; `posterior(a, h)` is the law
of X given a X + sqrt(h) Z = y; `tilt(r, temperature)` is p e^{r/temperature} / E_p e^{r/temperature}.

Parameters and moments are float64. `score` and `score_jvp` work in the dtype and on the device of the points;
`log_prob` is always float64, as every log-weight. Points are (n, *event); an (n, d) view of (d, n) memory is
used as it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NotDefined, check
from sdecontrol.laws.parameters import apply, apply_affine
from sdecontrol.noise import Block, Noise
from sdecontrol.rewards import Reward


class Law(ABC):
    """A probability law on tensors of shape `event_shape`; `dtype` is that of its samples."""

    event_shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def affine_score(self) -> bool:
        """Whether the score is affine in x, as for Gaussian laws."""
        return False

    @property
    def dim(self) -> int:
        """Number of coordinates of an event."""
        return math.prod(self.event_shape)

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E X, float64, of the event's shape."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Cov X, float64, dense (D, D) in the flattened coordinates; BadInput above D = 4096."""

    @abstractmethod
    def draw(self, block: Block) -> Tensor:
        """(block.size, *event): one independent draw for each path of the whole block."""

    def sample(self, n: int, noise: Noise, stream: str = "sample") -> Tensor:
        """(n, *event) draws; the first m of them do not depend on n."""
        return torch.cat(
            [self.draw(block)[: block.count] for block in noise.blocks(stream, n, self.event_shape)]
        )

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x): (n, *event) -> (n,), float64, summed over coordinates."""

    @abstractmethod
    def score(self, x: Tensor) -> Tensor:
        """grad log p(x): (n, *event) -> (n, *event), in x's dtype."""

    @abstractmethod
    def score_jvp(self, x: Tensor, c: Tensor) -> Tensor:
        """(Hessian of log p at x) c, the Jacobian of the score, which is symmetric, times c: (n, *event)."""

    def denoised_jvp(self, x: Tensor, a: float, h: float, c: Tensor) -> Tensor:
        """The Jacobian of E[X_0 | a X_0 + sqrt(h) Z = x] times c, for the law of a X_0 + sqrt(h) Z: (n, *event)."""
        return (c + h * self.score_jvp(x, c)) / a

    def noised(self, a: float, h: float) -> Law:
        """The law of a X + sqrt(h) Z."""
        raise NoClosedForm(
            f"{type(self).__name__} has no closed noised law; Gaussians, mixtures and subspaces have"
        )

    def posterior(self, a: float, h: float) -> Posterior | SubspacePosterior:
        """The law of X given a X + sqrt(h) Z = y, as a function of y."""
        raise NoClosedForm(
            f"{type(self).__name__} has no closed posterior; Gaussians, mixtures and subspaces have"
        )

    def along(self, direction: Tensor) -> Law:
        """The one-dimensional law of direction . X."""
        raise NoClosedForm(
            f"{type(self).__name__} has no closed law along a direction; Gaussians and mixtures have"
        )

    def affine(self, matrix: Tensor, offset: Tensor) -> Law:
        """The law of matrix @ X + offset, for a matrix of full row rank."""
        raise NoClosedForm(f"{type(self).__name__} has no closed affine image; Gaussians and mixtures have")

    def landmarks(self) -> tuple[Tensor, Tensor]:
        """Centres and scales (k,), (k,) around which a law on the line has its mass, for quadratures."""
        raise NoClosedForm(
            f"{type(self).__name__} on events {self.event_shape} has no quadrature; laws on the line have"
        )

    def log_expectation(self, reward: Any, temperature: float) -> float:
        """log E exp(reward / temperature): closed, or by quadrature on the line (1e-11 relative).

        Raises: NoTilt when infinite; NoClosedForm where the law and the reward leave it open.
        """
        from sdecontrol.laws.tilted import (
            log_expectation_on_line,
        )  # it needs Law: this module cannot import it above

        return log_expectation_on_line(self, reward, temperature)

    def tilt(self, reward: Any, temperature: float) -> Law:
        """p e^{reward/temperature}, normalised.

        Closed where the family is closed under the reward, else a TiltedLaw, whose normaliser is known where
        log_expectation is. Raises: NoTilt when the normaliser is infinite.
        """
        from sdecontrol.laws.tilted import tilted_by  # TiltedLaw is a Law: this module cannot import it above

        return tilted_by(self, reward, temperature)

    def _check_points(self, x: Tensor) -> None:
        check(
            x.ndim == 1 + len(self.event_shape) and x.shape[1:] == self.event_shape,
            f"points of shape {tuple(x.shape)}",
            f"(n, {', '.join(map(str, self.event_shape))})",
        )


@dataclass(frozen=True)
class Posterior:
    """X given a X + sqrt(h) Z = y is the mixture sum_i omega_i(y) N(offset_i + gain_i y, covariance_i).

    Shapes: offsets (k, d), gains (k, d, d), covariances (k, d, d), float64; reweight maps y (n, d) to the
    log responsibilities log omega (n, k).
    """

    reweight: Callable[[Tensor], Tensor]
    offsets: Tensor
    gains: Tensor
    covariances: Tensor

    def component_means(self, y: Tensor) -> Tensor:
        """offset_i + gain_i y: (n, d) -> (n, k, d)."""
        return torch.stack(
            [apply_affine(g.to(y), y, o.to(y)) for g, o in zip(self.gains, self.offsets, strict=True)], 1
        )

    def mean(self, y: Tensor) -> Tensor:
        """E[X | y]: (n, d) -> (n, d)."""
        weights = self.reweight(y).exp().to(y.dtype)
        return (weights[:, :, None] * self.component_means(y)).sum(1)

    def draw(self, y: Tensor, block: Block) -> Tensor:
        """One draw of X | y_i for each row of y, at most block.size of them."""
        n, d = y.shape
        check(n <= block.size, f"{n} rows", f"at most the block's {block.size}")
        chosen = choose(self.reweight(y).exp(), block)[:n]
        x = self.component_means(y)[torch.arange(n), chosen]
        z = block.normal((d,), y.dtype)[:n]
        for i, covariance in enumerate(self.covariances):
            rows = chosen == i
            x[rows] += apply(symmetric_root(covariance).to(y), z[rows])
        return x


@dataclass(frozen=True)
class SubspacePosterior:
    """X = offset + B U given a X + sqrt(h) Z = y: the latent posterior, fed with B'(y - a offset)."""

    latent: Posterior | SubspacePosterior
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    def reweight(self, y: Tensor) -> Tensor:
        return self.latent.reweight(self.encode(y))

    def mean(self, y: Tensor) -> Tensor:
        """E[X | y]: (n, D) -> (n, D)."""
        return self.decode(self.latent.mean(self.encode(y)))

    def draw(self, y: Tensor, block: Block) -> Tensor:
        return self.decode(self.latent.draw(self.encode(y), block))


def choose(weights: Tensor, block: Block) -> Tensor:
    """An index for each path of the block, of probabilities `weights` (k,), or (n, k) for its first n "
    "paths."""
    edges = weights.to(torch.float64).cumsum(-1)
    u = block.uniform()[: len(weights)] if weights.ndim == 2 else block.uniform()
    u = u * edges[..., -1]
    inner = edges[..., :-1].contiguous()
    if weights.ndim == 1:
        return torch.searchsorted(inner, u, right=True)
    return torch.searchsorted(inner, u[:, None], right=True)[:, 0]


def symmetric_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix; rounding below zero is cut at zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def check_temperature(temperature: float) -> None:
    check(
        math.isfinite(temperature) and temperature > 0,
        f"temperature = {temperature}",
        "a positive finite number",
    )


def restricted(reward: Any, basis: Tensor, offset: Tensor) -> Any:
    """The reward u -> r(offset + basis u) on latent coordinates."""
    if isinstance(reward, Reward):
        return reward.restrict(basis, offset)
    return lambda u: reward(apply_affine(basis.to(u), u, offset.to(u)))


def no_density(law: Law) -> NotDefined:
    return NotDefined(f"{type(law).__name__} has no density on its space; noised(a, h) with h > 0 has one")


class LawWithoutDensity(Law):
    """A law on a set of volume zero: it can be sampled and noised, but has no log density and no score."""

    def log_prob(self, x: Tensor) -> Tensor:
        raise no_density(self)

    def score(self, x: Tensor) -> Tensor:
        raise no_density(self)

    def score_jvp(self, x: Tensor, c: Tensor) -> Tensor:
        raise no_density(self)
