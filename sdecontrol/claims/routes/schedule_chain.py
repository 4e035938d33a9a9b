"""Affine chains in latent coordinates, in numpy: from the three numbers of a step and the score of the noised law.

Everything about the optimum comes from regression on the end: under P* = P e^{rho(z_K)} / Z the law of the whole path
given z_K is that of P, so moments along the way are those of P moved by what the tilt moves at the end (derived).
There is no backward recursion, which is how the library finds the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from sdecontrol.claims.base import Case, NotApplicable, rounding
from sdecontrol.claims.routes.draws import extrapolated
from sdecontrol.claims.routes.latent import Latent
from sdecontrol.claims.routes.ode import Feedback
from sdecontrol.claims.routes.plain import GaussianSum, Tilt
from sdecontrol.claims.routes.posterior import gaussian, gaussian_kl
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.simulations import clock
from sdecontrol.claims.routes.workbench import Workbench
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Dirac
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.exact.chain.optimum import ChainExact
    from sdecontrol.problems.base import Problem

Moments = tuple[Array, Array]  # mean (d,) and covariance (d, d)
FINE, COARSE = 32, 16  # steps of the coarsest of three chains, each twice as fine; where a control is asked at each
OWN_STEPS = 12, 40  # of the chain that is compared with its own exact answers, quick or not


class Move(NamedTuple):
    """z+ = matrix z + offset + std xi, from time t, of length dt."""

    t: float
    dt: float
    matrix: Array
    offset: Array
    std: float


class PlainChain:
    """The chain that a kernel makes of an affine process on a grid.

    Raises NotApplicable, or NoClosedForm, where the process is not affine or its start not Gaussian.
    """

    def __init__(self, latent: Latent, kernel: Kernel, grid: TimeGrid):
        process, times = latent.process, [float(t) for t in grid.resolve(latent.process).times]
        start = process.initial_law(0.0)
        point = isinstance(start, Dirac)
        self.start: Moments = latent.moments(0.0, start) if point else latent.gaussian_start
        field, centre = _field(latent), latent.frame.basis.T @ latent.frame.offset
        self.moves = []
        for t, t_next in zip(times[:-1], times[1:]):
            keep, weight, std = kernel.coefficients(process, t, t_next)
            matrix, offset = field(t)
            drift = keep * latent.level(t)[0] - latent.level(t_next)[0]
            moved = keep * np.eye(latent.dim) + weight * matrix
            self.moves.append(Move(t, t_next - t, moved, weight * offset + drift * centre, std))

    @cached_property
    def moments(self) -> list[Moments]:
        """Of z_0 .. z_K."""
        return _propagate(self.start, self.moves)

    @cached_property
    def onward(self) -> list[Array]:
        """A_0 .. A_K with z_K = A_k z_k + (what does not depend on z_k)."""
        products = [np.eye(len(self.start[0]))]
        for move in reversed(self.moves):
            products.append(products[-1] @ move.matrix)
        return products[::-1]

    @property
    def law(self) -> GaussianSum:
        """Of z_K."""
        return gaussian(*self.moments[-1])

    def driven(self, start: Moments, feedback: Sequence[Feedback]) -> Moments:
        """Of z_K from another start under u = gain z + offset, given step by step."""
        closed = []
        for move, (gain, offset) in zip(self.moves, feedback):
            push = math.sqrt(move.dt) * move.std
            closed.append(move._replace(matrix=move.matrix + push * gain, offset=move.offset + push * offset))
        return _propagate(start, closed)[-1]

    def asked(self, feedback: Callable[[float], Feedback]) -> list[Feedback]:
        """A control at every step; none where a step has no noise, for there it is not asked."""
        d = len(self.start[0])
        return [feedback(move.t) if move.std else (np.zeros((d, d)), np.zeros(d)) for move in self.moves]

    def under(self, tilt: Tilt) -> Optimum:
        return Optimum(self, tilt)


class Optimum:
    """The chain tilted at its end."""

    def __init__(self, chain: PlainChain, tilt: Tilt):
        mean, covariance = chain.moments[-1]
        self.chain, self.tilt = chain, tilt
        inverse = np.linalg.inv(covariance)
        self._pull = inverse @ (tilt.law.mean - mean)
        self._shrink = inverse @ (covariance - tilt.law.clouds[0].covariance) @ inverse

    def at(self, k: int) -> Moments:
        """Of z_k under P*: Cov(z_k, z_K) = S_k A_k'."""
        mean, covariance = self.chain.moments[k]
        cross = covariance @ self.chain.onward[k].T
        return mean + cross @ self._pull, covariance - cross @ self._shrink @ cross.T

    def cost(self, k: int, feedback: Feedback) -> tuple[float, float]:
        """sqrt(dt) E* u . xi_k and dt E* |u|^2, xi_k being the noise of step k as P draws it."""
        (gain, offset), move = feedback, self.chain.moves[k]
        noise = move.std * self.chain.onward[k + 1].T
        (mean, covariance), cross = self.at(k), self.chain.moments[k][1] @ self.chain.onward[k].T
        u, push = gain @ mean + offset, noise @ self._pull
        along = float(u @ push - np.sum(gain * (noise @ self._shrink @ cross.T)))
        return math.sqrt(move.dt) * along, move.dt * float(u @ u + np.sum((gain @ covariance) * gain))

    def half_square_error(self, start: Moments, feedback: Sequence[Feedback]) -> float:
        """KL(P* || P^{u, nu}) = KL(P* || P) + E* log dP/dP^{u, nu}: eps^2/2 of Prop. 3.7."""
        first = self.at(0)
        total = self.tilt.kl + gaussian_kl(first, start) - gaussian_kl(first, self.chain.start)
        for k, one in enumerate(feedback):
            along, square = self.cost(k, one)
            total += square / 2 - along
        return total


def _field(latent: Latent) -> Callable[[float], Feedback]:
    """What the three numbers of a step multiply, in latent coordinates: the score of Gaussian data, else as given."""
    if latent.data is None:
        return lambda t: tuple(part.numpy() for part in latent.process.affine_field(t))  # type: ignore[return-value]
    if len(latent.data.clouds) > 1:
        raise NotApplicable("the score of a mixture is not affine, so its chains have no closed moments")
    cloud = latent.data.clouds[0]
    values, vectors = np.linalg.eigh(cloud.covariance)

    def score(t: float) -> Feedback:
        a, h = latent.level(t)
        matrix = -(vectors / (a * a * values + h)) @ vectors.T
        return matrix, -a * matrix @ cloud.means[0]

    return score


def _propagate(start: Moments, moves: Sequence[Move]) -> list[Moments]:
    found = [start]
    for move in moves:
        mean, covariance = found[-1]
        spread = move.matrix @ covariance @ move.matrix.T + move.std**2 * np.eye(len(mean))
        found.append((move.matrix @ mean + move.offset, (spread + spread.T) / 2))
    return found


def distance(first: Moments, second: Moments) -> float:
    """Largest difference of means and covariances, in units of the second law's standard deviations."""
    deviation = np.sqrt(np.diag(second[1]))
    gap = np.abs((first[0] - second[0]) / deviation).max()
    return max(float(gap), float(np.abs((first[1] - second[1]) / np.outer(deviation, deviation)).max()))


# ------------------------------------------------------------------ the chains of a case


class OwnChain(NamedTuple):
    """A chain with the library's answers about it, the same chain in numpy, its tilt, and the error of rounding."""

    exact: ChainExact
    plain: PlainChain
    tilt: Tilt
    error: float

    @property
    def optimum(self) -> Optimum:
        return self.plain.under(self.tilt)


@lru_cache(maxsize=2)
def _library_chain(problem: Problem, steps: int) -> ChainExact:
    chain = problem.discretise(problem.process.default_kernel, TimeGrid.geometric(steps))
    return cast("ChainExact", chain.exact)  # the second route has found the reward quadratic


@lru_cache(maxsize=2)
def _plain_chain(problem: Problem, steps: int) -> PlainChain:
    return PlainChain(Latent.of(problem), problem.process.default_kernel, TimeGrid.geometric(steps))


def own_chain(case: Case) -> OwnChain:
    """On a coarse grid, far from the continuum. Raises NotApplicable or NoClosedForm where it has no closed optimum."""
    steps = OWN_STEPS[0 if case.quick else 1]
    plain, latent = _plain_chain(case.problem, steps), Workbench.of(case).latent
    tilt = plain.law.tilt(latent.rho)
    exact = getattr(case.answers, "chain", None) or _library_chain(case.problem, steps)
    size = abs(tilt.q.constant) + abs(tilt.mean_q) + abs(tilt.log_mass) + latent.dim
    condition = math.sqrt(max(plain.law.condition, tilt.law.condition))
    return OwnChain(exact, plain, tilt, rounding(size, operations=100 * steps * latent.dim, condition=condition))


@lru_cache(maxsize=4)
def finer_chains(latent: Latent, coarsest: int) -> tuple[PlainChain, ...]:
    """On three nested grids that end at the data, steps even in a power of the posterior variance."""
    kernel = latent.process.default_kernel
    return tuple(PlainChain(latent, kernel, clock(latent, coarsest * factor)) for factor in (1, 2, 4))


def vanishing(case: Case, measure: Callable[[PlainChain], float], coarsest: int = FINE) -> tuple[float, float]:
    """The limit of a quantity of ever finer chains, their errors being powers of the step, and its error.

    That is what the last power removed, so it is well above what is left, and rounding.
    """
    bench = Workbench.of(case)
    values = [measure(chain) for chain in finer_chains(bench.latent, coarsest * (1 if case.quick else 2))]
    limit, error = extrapolated(values)
    return limit, error + rounding(1.0, *values, operations=1_000 * bench.latent.dim)
