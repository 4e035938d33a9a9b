"""Hypothesis strategies of matrices, laws and rewards, bounded to the mathematical domain.

Each shrinks to the simplest case: matrices to the identity, vectors to 0, laws to N(0, I), rewards to 0. Numbers are
rounded to a few decimals, so that a counter-example is readable; rewards have a tilt and are of the order of the
temperature, so that float64 has digits to spare.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from sdecontrol.errors import check
from sdecontrol.laws import Gaussian, GaussianMixture, Isotropic, Law, Subspace
from sdecontrol.rewards import GaussianLabel, Linear, Quadratic, Reward, Step
from sdecontrol.testing.tilts import Floats

CONDITION = 30.0  # largest over smallest eigenvalue of a drawn covariance
_MARGIN = 0.2  # smallest eigenvalue of I + S^{1/2} K S^{1/2} / temperature of a drawn quadratic


def numbers(low: float, high: float, digits: int = 3) -> SearchStrategy[float]:
    """Numbers in [low, high] with that many decimals; the ends have no more."""
    return st.floats(low, high, allow_nan=False).map(lambda x: round(x, digits) + 0.0)


@cache
def vectors(dim: int, size: float = 3.0) -> SearchStrategy[Floats]:
    """(dim,) with entries in [-size, size]; shrinks to 0."""
    return st.lists(numbers(-size, size), min_size=dim, max_size=dim).map(np.array)


@cache
def directions(dim: int) -> SearchStrategy[Floats]:
    """Vectors that are not 0."""
    return vectors(dim).filter(lambda v: bool(v.any()))


def temperatures(low: float = 0.1, high: float = 10.0) -> SearchStrategy[float]:
    """Temperatures in [low, high] with two decimals; shrinks to 1 where it is inside."""
    return numbers(low, high, digits=2)


@cache
def rotations(dim: int) -> SearchStrategy[Floats]:
    """Rotations of R^dim as products of plane rotations; shrinks to the identity."""
    planes = [(i, j) for i in range(dim) for j in range(i)]
    return st.lists(numbers(0.0, 3.0), min_size=len(planes), max_size=len(planes)).map(
        lambda angles: _turned(dim, planes, angles)
    )


def _turned(dim: int, planes: list[tuple[int, int]], angles: list[float]) -> Floats:
    rotation = np.eye(dim)
    for plane, angle in zip(planes, angles):
        cosine, sine = np.cos(angle), np.sin(angle)
        rotation[:, plane] = rotation[:, plane] @ np.array([[cosine, -sine], [sine, cosine]])
    return rotation


def symmetric_matrices(dim: int, eigenvalues: SearchStrategy[float]) -> SearchStrategy[Floats]:
    """Q diag(eigenvalues) Q' with a rotation Q; shrinks to the diagonal matrix of the simplest eigenvalue."""
    spectra = st.lists(eigenvalues, min_size=dim, max_size=dim).map(np.array)
    return st.builds(_rotated, rotations(dim), spectra)


def _rotated(rotation: Floats, spectrum: Floats) -> Floats:
    matrix = (rotation * spectrum) @ rotation.T
    return (matrix + matrix.T) / 2


@cache
def spd_matrices(dim: int, condition: float = CONDITION) -> SearchStrategy[Floats]:
    """Symmetric positive definite (dim, dim), eigenvalues within condition^(-1/2), condition^(1/2); shrinks to I."""
    check(condition >= 1, f"condition = {condition}", "a number >= 1")
    return symmetric_matrices(dim, numbers(-0.5, 0.5).map(lambda power: condition**power))


# ---------------------------------------------------------------------- laws


@cache
def gaussians(dim: int = 1, condition: float = CONDITION) -> SearchStrategy[Gaussian]:
    """N(mean, covariance) on R^dim; shrinks to N(0, I)."""
    return st.builds(Gaussian, vectors(dim), spd_matrices(dim, condition))


@cache
def mixtures(dim: int = 1, components: int = 3, condition: float = CONDITION) -> SearchStrategy[GaussianMixture]:
    """Mixtures of 1 to `components` Gaussians, weights in ratios up to 9; shrinks to one of them, N(0, I)."""
    part = st.tuples(st.integers(1, 9), vectors(dim), spd_matrices(dim, condition))
    return st.lists(part, min_size=1, max_size=components).map(_mixed)


def _mixed(parts: list[tuple[int, Floats, Floats]]) -> GaussianMixture:
    weights, means, covariances = zip(*parts)
    return GaussianMixture(np.array(weights) / sum(weights), np.array(means), np.array(covariances))


@cache
def subspace_laws(dim: int = 2, latent: int = 1, condition: float = CONDITION) -> SearchStrategy[Subspace]:
    """offset + B u in R^dim, u a Gaussian or a mixture on R^latent; shrinks to N(0, I) on the first coordinates."""
    check(1 <= latent < dim, f"latent = {latent} in dimension {dim}", "1 <= latent < dim")
    inner = st.one_of(gaussians(latent, condition), mixtures(latent, 2, condition))
    bases = rotations(dim).map(lambda rotation: rotation[:, :latent])
    return st.builds(Subspace, bases, inner, vectors(dim, 1.0))


@cache
def laws(dim: int = 1) -> SearchStrategy[Law]:
    """Gaussians, mixtures and, from two dimensions on, either on a subspace."""
    kinds: list[SearchStrategy[Any]] = [gaussians(dim), mixtures(dim)]
    return st.one_of(*kinds, *([subspace_laws(dim, dim - 1)] if dim > 1 else []))


def widest(law: Law) -> float:
    """A number that no variance of the law, of its components or along its subspace exceeds."""
    if isinstance(law, Subspace):
        return widest(law.latent)
    if isinstance(law, Isotropic):
        return law.std**2
    if isinstance(law, Gaussian | GaussianMixture):
        return float(law.spectrum.values.max())
    return float(np.linalg.eigvalsh(law.covariance.numpy())[-1])


# ---------------------------------------------------------------------- rewards


def rewards_admitting_a_tilt(law: Law, temperature: float) -> SearchStrategy[Reward]:
    """Rewards with E exp(reward / temperature) finite under the law; shrinks to the linear reward 0.

    Linear; quadratic of any sign with I + S^{1/2} K S^{1/2} / temperature >= 0.2; Gaussian labels; steps. A change by
    one standard deviation of the law moves reward / temperature by a few units at most.
    """
    return rewards(law.dim, widest(law), temperature)


def rewards(dim: int, variance: float, temperature: float) -> SearchStrategy[Reward]:
    """The rewards that have a tilt of every law whose variances do not exceed `variance`."""
    check(variance > 0, f"a largest variance of {variance}", "a positive number")
    deviation = variance**0.5
    return _rewards_in_units(dim).map(lambda scaled: scaled(deviation, temperature))


@cache
def _rewards_in_units(dim: int) -> SearchStrategy[Callable[[float, float], Reward]]:
    """Rewards as functions of the units of space and of reward; a strategy is built once for each dimension."""
    curvatures = symmetric_matrices(dim, numbers(_MARGIN - 1, 2.0))
    return st.one_of(
        st.builds(_linear, vectors(dim, 2.0)),
        st.builds(_quadratic, vectors(dim, 2.0), curvatures),
        st.builds(_label, directions(dim), numbers(-2.0, 2.0), numbers(0.5, 3.0)),
        st.builds(_step, directions(dim), numbers(-2.0, 2.0), numbers(-5.0, 5.0)),
    )


def _linear(g: Floats) -> Callable[[float, float], Reward]:
    return lambda length, unit: Linear(g * (unit / length))


def _quadratic(g: Floats, k: Floats) -> Callable[[float, float], Reward]:
    return lambda length, unit: Quadratic(g * (unit / length), k * (unit / length**2))


def _label(direction: Floats, target: float, noise: float) -> Callable[[float, float], Reward]:
    spread = noise * float(np.linalg.norm(direction))
    return lambda length, unit: GaussianLabel(direction, target * length, spread * length, unit)


def _step(direction: Floats, threshold: float, height: float) -> Callable[[float, float], Reward]:
    return lambda length, unit: Step(direction, threshold * length, height * unit)
