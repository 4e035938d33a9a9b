"""The problems that come with the library, by name, and problems from a user's file.

Gaussians and subspaces have closed forms for every quantity, the two-dimensional mixtures add quadrature, the digits
are real data, and an Ornstein-Uhlenbeck process has a running reward. Standard and marginal initial laws, VP and VE
noising, linear, concave and indefinite rewards are all present. Horizons are short in the small problems, so that the
initial law matters and forgetting it shows.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sdecontrol.errors import BadInput, UnknownName, check
from sdecontrol.laws import Gaussian, GaussianMixture, Law, SubspaceGaussian
from sdecontrol.problems.base import Problem
from sdecontrol.problems.digits import COMPONENTS, digit_subjects
from sdecontrol.problems.fitted import Subject
from sdecontrol.processes import Affine, DiffusionProcess, ReverseProcess
from sdecontrol.rewards import Linear, Quadratic, Reward
from sdecontrol.schedules import VE, VP, Schedule


@dataclass(frozen=True)
class Builtin:
    """A problem that has a name: one line about it, and how to make it."""

    name: str
    description: str
    build: Callable[[str], Subject]

    def subject(self) -> Subject:
        return self.build(self.name)


BUILTIN: dict[str, Builtin] = {}


def _builtin(name: str, description: str) -> Callable[[Callable[[str], Subject]], Callable[[str], Subject]]:
    def register(build: Callable[[str], Subject]) -> Callable[[str], Subject]:
        BUILTIN[name] = Builtin(name, description, cache(build))
        return build

    return register


def _reverse(
    name: str, schedule: Schedule, law: Law, reward: Reward, temperature: float, initial: str = "standard"
) -> Subject:
    return Subject(Problem(ReverseProcess(schedule, law, initial), reward, temperature, name=name))


def _covariance(dim: int, smallest: float, largest: float, seed: int) -> np.ndarray:
    """A fixed dense covariance: geometric spectrum in [smallest, largest], eigenvectors from a seeded QR."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
    covariance = (rotation * np.geomspace(smallest, largest, dim)) @ rotation.T
    return (covariance + covariance.T) / 2


def _indefinite(dim: int, size: float, seed: int) -> np.ndarray:
    """A fixed symmetric curvature with eigenvalues from -size/3 to size: it rewards spread in some directions."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
    curvature = (rotation * np.linspace(-size / 3, size, dim)) @ rotation.T
    return (curvature + curvature.T) / 2


@_builtin("gaussian-1d-vp", "N(0.5, 0.6) in 1-D, VP to alpha^2 = 0.08, standard start, concave quadratic reward")
def _gaussian_1d_vp(name: str) -> Subject:
    return _reverse(name, VP(0.1, 5.0), Gaussian([0.5], [[0.6]]), Quadratic([1.0], [[0.8]]), temperature=0.5)


@_builtin("gaussian-1d-ve", "N(-1, 2) in 1-D, VE to h = 9, marginal start, convex quadratic reward")
def _gaussian_1d_ve(name: str) -> Subject:
    reward = Quadratic([0.5], [[-0.15]])
    return _reverse(name, VE(0.01, 3.0), Gaussian([-1.0], [[2.0]]), reward, temperature=1.0, initial="marginal")


@_builtin("gaussian-4d-vp", "dense Gaussian in 4-D, VP to alpha^2 = 0.02, standard start, indefinite quadratic reward")
def _gaussian_4d_vp(name: str) -> Subject:
    law = Gaussian([0.5, -0.5, 0.0, 1.0], _covariance(4, 0.1, 2.0, seed=1))
    reward = Quadratic([1.0, 0.0, -0.5, 0.5], _indefinite(4, 0.9, seed=2))
    return _reverse(name, VP(0.1, 8.0), law, reward, temperature=0.8)


@_builtin("gaussian-4d-ve", "dense Gaussian in 4-D, VE to h = 25, standard start, indefinite quadratic reward")
def _gaussian_4d_ve(name: str) -> Subject:
    law = Gaussian([1.0, 0.0, -1.0, 0.5], _covariance(4, 0.2, 3.0, seed=3))
    reward = Quadratic([0.0, 0.7, 0.3, -0.6], _indefinite(4, 0.6, seed=4))
    return _reverse(name, VE(0.01, 5.0), law, reward, temperature=1.0)


def _three_modes() -> GaussianMixture:
    covariances = [np.diag([0.1, 0.3]), [[0.2, 0.08], [0.08, 0.1]], 0.15 * np.eye(2)]
    return GaussianMixture([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 1.0], [0.6, -1.2]], np.array(covariances))


@_builtin("mixture-2d-vp", "three Gaussians in 2-D, VP to alpha^2 = 0.02, standard start, linear reward")
def _mixture_2d_vp(name: str) -> Subject:
    return _reverse(name, VP(0.1, 8.0), _three_modes(), Linear([1.0, 0.5]), temperature=1.0)


@_builtin("mixture-2d-ve", "three Gaussians in 2-D, VE to h = 25, marginal start, indefinite quadratic reward")
def _mixture_2d_ve(name: str) -> Subject:
    reward = Quadratic([0.3, 0.6], [[0.8, 0.2], [0.2, -0.4]])
    return _reverse(name, VE(0.01, 5.0), _three_modes(), reward, temperature=0.8, initial="marginal")


def _subspace_16_in_64(seed: int) -> SubspaceGaussian:
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(64, 16)))[0]
    offset = 0.1 * rng.normal(size=64)
    return SubspaceGaussian(basis, 0.3 * rng.normal(size=16), _covariance(16, 0.05, 1.5, seed), offset=offset)


@_builtin("subspace-16-in-64-vp", "16-D Gaussian in 64-D, VP to alpha^2 = 0.02, standard start, indefinite reward")
def _subspace_vp(name: str) -> Subject:
    reward = Quadratic(np.random.default_rng(7).normal(size=64) / 4, _indefinite(64, 0.6, seed=8))
    return _reverse(name, VP(0.1, 8.0), _subspace_16_in_64(5), reward, temperature=0.8)


@_builtin("subspace-16-in-64-ve", "16-D Gaussian in 64-D, VE to h = 25, marginal start, linear reward")
def _subspace_ve(name: str) -> Subject:
    reward = Linear(np.random.default_rng(9).normal(size=64) / 4)
    return _reverse(name, VE(0.01, 5.0), _subspace_16_in_64(6), reward, temperature=1.0, initial="marginal")


@_builtin("quadratic-ou-2d", "Ornstein-Uhlenbeck process in 2-D, Gaussian start, quadratic reward and running reward")
def _quadratic_ou_2d(name: str) -> Subject:
    drift = Affine([[-0.8, 0.6], [-0.6, -0.3]], [0.2, -0.1])
    process = DiffusionProcess(drift, 0.9, Gaussian([0.5, -0.5], [[0.8, 0.2], [0.2, 0.5]]), horizon=1.0)
    reward = Quadratic([0.6, -0.3], [[0.6, 0.1], [0.1, -0.2]])
    running = Quadratic([0.2, 0.4], [[0.5, -0.1], [-0.1, 0.8]])
    return Subject(Problem(process, reward, 0.7, running, name=name))


@_builtin("digits-gaussian", "1 797 digits, 29 principal directions, a Gaussian, VP, standard start; ink")
def _digits_gaussian(name: str) -> Subject:
    return digit_subjects(None, 1)["total"].named(name)


@_builtin("digits-gaussian-symmetry", "the same; minus the left-right asymmetry, a concave quadratic")
def _digits_gaussian_symmetry(name: str) -> Subject:
    return digit_subjects(None, 1)["regular"].named(name)


@_builtin("digits-mixture", "1 797 digits, 29 principal directions, ten Gaussians, VP, marginal start; ink")
def _digits_mixture(name: str) -> Subject:
    return digit_subjects(None, COMPONENTS)["total"].named(name)


@_builtin("digits-mixture-symmetry", "the same; minus the left-right asymmetry, a concave quadratic")
def _digits_mixture_symmetry(name: str) -> Subject:
    return digit_subjects(None, COMPONENTS)["regular"].named(name)


MAKERS: list[Callable[[str], Subject | None]] = []  # what plugins make of a name; None where it is not theirs


def resolve(name: str) -> Subject:
    """The subject of a built-in name, of a Python file that defines `problem`, or of what a plugin knows.

    Raises: UnknownName with the nearest names; BadInput for a file that is missing, fails, or defines no problem.
    """
    if name.endswith(".py"):
        return Subject(from_file(Path(name)))
    for make in MAKERS:
        if (made := make(name)) is not None:
            return made
    if name not in BUILTIN:
        raise UnknownName("problem", name, BUILTIN)
    return BUILTIN[name].subject()


def from_file(path: Path) -> Problem:
    """The problem of a Python file: its `problem`, a `Problem` or a function without arguments that returns one."""
    return read_file(path)[0]


def read_names(path: Path) -> dict[str, Any]:
    """All the names that a Python file defines. Raises: BadInput for a file that is missing or fails."""
    check(path.is_file(), f"no file at {path}", "a Python file", "Check the path.")
    try:
        return runpy.run_path(str(path))
    except Exception as error:
        raise BadInput(
            f"saw {path} fail with {type(error).__name__}: {error}; wanted a Python file that runs."
        ) from error


def read_file(path: Path) -> tuple[Problem, dict[str, Any]]:
    """The problem of a Python file, and all the names that the file defines."""
    names = read_names(path)
    try:
        found = names.get("problem")
        if callable(found) and not isinstance(found, Problem):
            found = found()
    except Exception as error:
        raise BadInput(
            f"saw {path} fail with {type(error).__name__}: {error}; wanted a Python file that defines `problem`."
        ) from error
    if not isinstance(found, Problem):
        seen = "no `problem`" if found is None else f"`problem` of type {type(found).__name__}"
        raise BadInput(f"saw {seen} in {path}; wanted a sdecontrol.Problem, or a function that returns one.")
    found.name = found.name or path.stem
    return found, names
