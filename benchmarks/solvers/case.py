"""The problems of the accuracy benchmark and what a contender is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import qmc

import sdecontrol as sc
from benchmarks.solvers.law_error import Features, QuantileFeatures, SpectralFeatures
from sdecontrol.problems.builtin import BUILTIN

Sample = Callable[[int, int], np.ndarray]  # (paths, seed) -> terminal states (paths, dim)
Probe = Callable[["Impulses"], np.ndarray]  # the same sampler fed with the impulses -> (rows, dim)


@dataclass(frozen=True)
class Case:
    """A data law under the VP schedule with beta from 0.1 to 20, sampled from N(0, I) by every contender.

    `stop` is the level s at which solvers in continuous time end, followed by x0_hat; 0 where the score exists there.
    `paths` is n of the timings; `batches` how many times n samples a sampled error takes, the second near a target.
    `targets`: the relative errors whose times are compared.
    """

    name: str
    title: str
    law: sc.laws.Law
    paths: int
    batches: tuple[int, int]
    stop: float
    targets: tuple[float, ...] = (1e-2, 1e-3)

    @cached_property
    def process(self) -> sc.ReverseProcess:
        return sc.ReverseProcess(sc.VP(), self.law)

    @property
    def dim(self) -> int:
        return self.process.dim

    @property
    def affine(self) -> bool:
        return self.process.is_affine

    @cached_property
    def features(self) -> Features:
        return SpectralFeatures(self.law) if self.affine else QuantileFeatures(self.law)


def _dense_gaussian() -> sc.Gaussian:
    law = BUILTIN["gaussian-4d-vp"].subject().problem.process.data_law
    assert isinstance(law, sc.Gaussian)
    return law


def _three_modes() -> sc.laws.Law:
    return BUILTIN["mixture-2d-vp"].subject().problem.process.data_law


@lru_cache
def cases(quick: bool = False) -> dict[str, Case]:
    """The four problems by name."""
    small = 16 if quick else 1
    digits = {name: BUILTIN[name].subject().problem.process.data_law for name in ("digits-gaussian", "digits-mixture")}
    paths = 65_536 // small
    listed = (
        Case("gaussian", "dense Gaussian, d = 4", _dense_gaussian(), paths, (8, 16), 0.0),
        Case("mixture", "three Gaussians, d = 2", _three_modes(), paths, (8, 32), 0.0),
        Case("digits-gaussian", "digits, a Gaussian on 29 of 64 dimensions", digits["digits-gaussian"], paths // 8,
             (8, 16), 1e-3),
        Case("digits-mixture", "digits, ten Gaussians on 29 of 64 dimensions", digits["digits-mixture"], paths // 16,
             (8, 16), 1e-3, targets=(1e-2,)),
    )  # fmt: skip
    return {case.name: case for case in listed}


@dataclass(frozen=True)
class Contender:
    """One solver with its grid and number of steps.

    `evaluations` is the number of calls of the score, 0 where only the run tells (then `counted` does).
    The law: `law` gives its exact mean and standard deviations along the eigenvectors of an affine problem, `probe`
    lets impulses find them; `push` maps starting states and the normals of `draws` steps (n, (1 + draws) dim) to
    terminal states where the sampler draws nothing else, so that its law can be integrated by quasi-Monte Carlo;
    without any of them it is estimated from samples.
    `coupled` runs it on given starts (n, dim) and Brownian increments of FINE equal steps (FINE, n, dim), to be
    compared with a fine solution on the same noise. `threads`: whether the run obeys torch's thread count. `slow`: no
    more samples than the first batches are taken.
    """

    family: str
    solver: str
    grid: str
    steps: int
    evaluations: int
    sample: Sample
    law: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    probe: Probe | None = None
    push: Callable[[np.ndarray], np.ndarray] | None = None
    coupled: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    counted: Callable[[], int] | None = None
    threads: bool = False
    slow: bool = False
    draws: int = 0

    @property
    def key(self) -> str:
        return f"{self.family} | {self.solver} | {self.grid} | {self.steps}"

    def calls(self) -> int:
        """Calls of the score; of the last run where the steps adapt."""
        return self.counted() if self.counted else self.evaluations


FINE = 240  # steps of the fine solution; a multiple of many step counts


@dataclass(frozen=True)
class Coupling:
    """Starts (n, dim), increments (FINE, n, dim) of equal time steps, and features of the fine solution on them.

    The fine solution is Heun's scheme, weak order 2 for this noise.
    """

    start: np.ndarray
    increments: np.ndarray
    features: np.ndarray


def coupling(case: Case, n: int, seed: int) -> Coupling:
    """The coupling of one batch."""
    dt = (case.process.horizon - case.stop) / FINE
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(case.dim, n, generator=generator).mT
    increments = torch.randn(FINE, case.dim, n, generator=generator).mul_(math.sqrt(dt)).mT
    x = start
    for k, step in enumerate(increments):
        now = case.process.state(k * dt, x)
        ahead = x + dt * now.drift + case.process.amplitude(k * dt) * step
        then = case.process.state((k + 1) * dt, ahead)
        amplitude = (case.process.amplitude(k * dt) + case.process.amplitude((k + 1) * dt)) / 2
        x = x + dt / 2 * (now.drift + then.drift) + amplitude * step
    terminal = denoise(case, x, case.stop).numpy()
    return Coupling(start.numpy(), increments.numpy(), case.features.of(terminal))


class Impulses:
    """Inputs that read off the terminal law of a sampler that is affine in its normals.

    Its steps are functions of one symmetric matrix, the score's, so in the eigenvectors of the data covariance every
    coordinate is moved alone, and one impulse, the sum of all eigenvectors, serves all of them. Row 0 gets nothing,
    row 1 is an impulse in the start, row 1 + j one in the j-th draw of normals. Terminal mean = row 0; variance of a
    coordinate = sum of the squared responses.
    """

    def __init__(self, eigenvectors: np.ndarray, draws: int):
        self.eigenvectors, self.draws, self.drawn = eigenvectors, draws, 0
        self.impulse = eigenvectors.sum(axis=1)
        self.rows = 2 + draws

    def start(self) -> np.ndarray:
        x = np.zeros((self.rows, len(self.impulse)))
        x[1] = self.impulse
        return x

    def draw(self) -> np.ndarray:
        """The next draw (rows, dim); more draws than announced are counted and are zero."""
        x = np.zeros((self.rows, len(self.impulse)))
        if self.drawn < self.draws:
            x[2 + self.drawn] = self.impulse
        self.drawn += 1
        return x

    def read(self, terminal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Terminal mean (dim,) and the standard deviation along every eigenvector (dim,)."""
        responses = (terminal[1:] - terminal[0]) @ self.eigenvectors
        return terminal[0], np.sqrt(np.square(responses).sum(axis=0))


def spectrum(law: sc.laws.Law) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, not negative, and eigenvectors of the covariance."""
    values, vectors = np.linalg.eigh(law.covariance.numpy())
    return np.clip(values, 0, None), vectors


def strided_normals(n: int, dim: int, seed: int) -> torch.Tensor:
    """float32 standard normals (n, dim) with the paths contiguous in memory, the layout that suits the score."""
    return torch.randn(dim, n, generator=torch.Generator().manual_seed(seed)).mT


def quasi_normals(n: int, dim: int, seed: int) -> np.ndarray:
    """Standard normals (n, dim) from a scrambled Sobol sequence, moved off the edge by half a cell."""
    cells = qmc.Sobol(dim, scramble=True, bits=30, rng=np.random.default_rng(seed)).random(n)
    return ndtri(cells + 2.0**-31)


def denoise(case: Case, x: torch.Tensor, s: float) -> torch.Tensor:
    """The closing step x0_hat = (x + h score) / alpha from level s; the identity at s = 0."""
    if s == 0:
        return x
    schedule = case.process.schedule
    score, _ = case.process.model.score(x, s)
    return (x + schedule.h(s) * score) / schedule.alpha(s)
