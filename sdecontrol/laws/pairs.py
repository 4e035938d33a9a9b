"""Two laws brought to common coordinates, so that a divergence of the pair is one of simpler pairs.

A law on a subspace is its latent law; noise around a subspace is the latent law times a Gaussian on the
normal space. KL and Renyi divergences add over independent factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, check
from sdecontrol.laws.base import Law
from sdecontrol.laws.frame import Frame
from sdecontrol.laws.gaussian import Gaussian
from sdecontrol.laws.isotropic import Isotropic
from sdecontrol.laws.point import Dirac
from sdecontrol.laws.spectrum import Spectrum
from sdecontrol.laws.subspace import NoisySubspace, Subspace

Pairs = list[tuple[Law, Law]]
_SAME_SPAN = 1e-8


def factors(p: Law, q: Law) -> Pairs | None:
    """Independent pairs whose product is (p, q) in common coordinates; None when p is singular to q."""
    check(
        p.event_shape == q.event_shape,
        f"laws on events {p.event_shape} and {q.event_shape}",
        "laws on the same events",
    )
    return _factors(simplified(p), simplified(q))


@singledispatch
def simplified(law: Law) -> Law:
    """The same law as a Gaussian on flat coordinates where it is one."""
    return law


@simplified.register
def _(law: Isotropic) -> Law:
    variance = torch.full((law.dim,), law.variance, dtype=torch.float64)
    return Gaussian.from_spectrum(law.mean.reshape(-1), Spectrum(variance, None))


@simplified.register
def _(law: Subspace) -> Law:
    return law.latent.affine(law.basis, law.offset) if law.frame.latent_dim == law.dim else law


@singledispatch
def _factors(p: Law, q: Law) -> Pairs | None:
    if isinstance(q, NoisySubspace):
        around = _around(p, q.frame, q.offset)
        return None if around is None else _noisy_factors(around, q)
    return None if isinstance(q, (Dirac, Subspace)) else [(p, q)]


@_factors.register
def _(p: Dirac, q: Law) -> Pairs | None:
    return [] if isinstance(q, Dirac) and torch.equal(p.point, q.point) else None


@_factors.register
def _(p: Subspace, q: Law) -> Pairs | None:
    if not isinstance(q, Subspace) or p.frame.latent_dim != q.frame.latent_dim:
        return None
    moved = _in_frame(q.frame, q.offset, q.latent, p.frame, p.offset)
    if moved is None or moved[1] > _SAME_SPAN * (1 + float(p.offset.abs().max())):
        return None
    return [(p.latent, moved[0])]


@_factors.register
def _(p: NoisySubspace, q: Law) -> Pairs | None:
    around = _around(q, p.frame, p.offset)
    return None if around is None else _noisy_factors(p, around)


def _noisy_factors(p: NoisySubspace, q: NoisySubspace) -> Pairs | None:
    moved = _in_frame(q.frame, q.offset, q.latent, p.frame, p.offset)
    if moved is None:
        raise NoClosedForm(
            "noisy subspaces with different spans have no closed divergence here; compare them as dense "
            "Gaussians where they are"
        )
    latent, gap = moved
    pair: Pairs = [(p.latent, latent)]
    codimension = p.dim - p.frame.latent_dim
    if (
        codimension
    ):  # only the length of the gap between the normal means matters: put it on the first coordinate
        centre = torch.zeros(codimension, dtype=torch.float64)
        shifted = torch.cat([torch.tensor([gap], dtype=torch.float64), centre[1:]])
        pair.append((_ball(centre, p.variance), _ball(shifted, q.variance)))
    return pair


def _around(law: Law, frame: Frame, offset: Tensor) -> NoisySubspace | None:
    """An isotropic Gaussian as noise around any given frame; None for a law without a density."""
    if isinstance(law, NoisySubspace):
        return law
    if isinstance(law, (Dirac, Subspace)):
        return None
    if not isinstance(law, Gaussian) or bool((law.eigenvalues != law.eigenvalues[0]).any()):
        raise NoClosedForm(
            f"{type(law).__name__} against noise around a subspace has no closed divergence unless it is an "
            "isotropic Gaussian or noise around the same span"
        )
    variance = float(law.eigenvalues[0])
    latent = _ball(frame.basis.mT @ law.mean, variance)
    normal_mean = law.mean - frame.basis @ (frame.basis.mT @ law.mean)
    return NoisySubspace(frame.basis, latent, variance, normal_mean)


def _ball(mean: Tensor, variance: float) -> Gaussian:
    return Gaussian.from_spectrum(mean, Spectrum(torch.full_like(mean, variance), None))


def _in_frame(
    frame: Frame, offset: Tensor, law: Law, target: Frame, target_offset: Tensor
) -> tuple[Law, float] | None:
    """The latent law in the target's coordinates and the distance of the planes; None for another span."""
    if frame.latent_dim != target.latent_dim:
        return None
    if frame is target and torch.equal(offset, target_offset):
        return law, 0.0
    rotation = target.basis.mT @ frame.basis
    if float((frame.basis - target.basis @ rotation).abs().max()) > _SAME_SPAN:
        return None
    shift = target.basis.mT @ (offset - target_offset)
    gap = offset - target_offset - target.basis @ shift
    return law.affine(rotation, shift), float(gap.norm())


@dataclass(frozen=True)
class Whitened:
    """p = N(gap, I + diag(delta)) where q = N(0, I): every divergence of two Gaussians reads this."""

    delta: Tensor
    gap: Tensor

    @classmethod
    def of(cls, p: Gaussian, q: Gaussian) -> Whitened:
        if p.diagonal and q.diagonal:
            delta = (p.eigenvalues - q.eigenvalues) / q.eigenvalues
            return cls(delta, (p.mean - q.mean) / q.eigenvalues.sqrt())
        whitening = q.spectrum.whitening()
        excess = whitening @ (p.covariance - q.covariance) @ whitening.mT
        delta, vectors = torch.linalg.eigh((excess + excess.mT) / 2)
        return cls(delta, vectors.mT @ (whitening @ (p.mean - q.mean)))

    def kl(self) -> float:
        return 0.5 * float((self.delta - self.delta.log1p() + self.gap.square()).sum())

    def renyi(self, order: float) -> float:
        """Infinite where order * Sigma_q + (1 - order) * Sigma_p is not positive."""
        mixed = (1 - order) * self.delta
        if bool((mixed <= -1).any()):
            return math.inf
        quadratic = order / 2 * (self.gap.square() / (1 + mixed)).sum()
        logs = (mixed.log1p() - (1 - order) * self.delta.log1p()).sum()
        return float(quadratic - logs / (2 * (order - 1)))
