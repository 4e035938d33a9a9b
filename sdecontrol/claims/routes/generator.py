"""The generator of a controlled process on the log ratio of two path laws: an identity at points, in any dimension.

For q = r'/temperature put phi(t, y) = log E_Q[e^{q(Y_T)} | Y_t = y], by the second route, and w = sigma grad phi. As
e^phi is a martingale of Q, its logarithm satisfies (derived)

    A^u phi = d/dt phi + (b + sigma u) . grad phi + sigma^2/2 lap phi = u . w - |w|^2 / 2   for every u.

With u = u* = w it is |u*|^2 / 2: the rate at which KL(Q*_t || Q_t) grows. The difference of two such phi is, up to
a constant, the log ratio of their tilts Q* and Q', and A^{u*} of it is |u* - u'|^2 / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import EPS, Case
from sdecontrol.claims.routes.differences import ROUNDINGS, Slopes
from sdecontrol.claims.routes.latent import Latent
from sdecontrol.claims.routes.ode import check_smooth
from sdecontrol.claims.routes.quadrature import Array

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

POINTS = 2  # at each time
FRACTIONS = (0.4, 0.2, 0.75)  # of the horizon: when; the first in a quick run; none is another read backwards
TIME_STEP, SPACE_STEP = 1e-3, 1e-2  # of the differences: shares of the time left, and of the narrowest deviation


@dataclass(frozen=True, eq=False)
class Place:
    """A time and a few states there, x (n, D), of latent coordinates z (n, d)."""

    latent: Latent
    t: float
    z: Array

    @cached_property
    def x(self) -> Tensor:
        return self.latent.lift(self.t, self.z)

    @cached_property
    def amplitude(self) -> float:
        return self.latent.process.amplitude(self.t)

    @cached_property
    def drift(self) -> Array:
        """The process's own b, in latent coordinates: (n, d)."""
        return self.latent.inside(self.latent.process.state(self.t, self.x).drift)

    def asked(self, control: Callable[[float, Tensor], Tensor]) -> Array:
        """A control at the states, in latent coordinates: (n, d)."""
        return self.latent.inside(control(self.t, self.x))


@dataclass(frozen=True, eq=False)
class Growth:
    """phi at the points of a place: its derivatives by two steps; the rounding of those in time, of order 1 and 2."""

    place: Place
    fine: Slopes
    coarse: Slopes
    rounding: Array

    def rate(self, u: Array) -> tuple[Array, Array]:
        """A^u phi (n,), and the error of the differences (n,): what twice the step changes, and rounding."""
        place = self.place
        push, half = place.drift + place.amplitude * u, place.amplitude**2 / 2

        def total(slopes: Slopes) -> Array:
            along = (push * slopes.gradient.numpy()).sum(1)
            return slopes.in_time.numpy() + along + half * slopes.laplacian.numpy()

        fine, weights = total(self.fine), np.stack([np.ones(len(u)), np.abs(push).sum(1), np.full(len(u), half)], 1)
        return fine, np.abs(fine - total(self.coarse)) + weights @ self.rounding


@lru_cache(maxsize=12)
def growth(place: Place, share: float = 1.0) -> Growth:
    """phi of `share` times the reward, by differences; time moves the coordinates of a state that stays."""
    latent, t = place.latent, place.t
    q = latent.rho.times(share)
    dt, dx = TIME_STEP * (latent.process.horizon - t), SPACE_STEP * latent.narrowest(t)

    def phi(moved: float, z: Tensor) -> Tensor:
        now = latent.encode(moved, latent.lift(t, z.numpy()))
        return torch.as_tensor(latent.clean(moved).log_growth(q, now))

    z = torch.as_tensor(place.z)
    size = float(phi(t, z).abs().max()) + float(np.abs(latent.clean(t).log_omega(place.z)).max())
    rounding = ROUNDINGS * EPS * size * np.array([1 / dt, 1 / dx, latent.dim / dx**2])
    fine, coarse = (Slopes.of(phi, t, z, factor * dt, factor * dx) for factor in (1, 2))
    return Growth(place, fine, coarse, rounding)


def places(case: Case) -> tuple[Place, ...]:
    """Where the identities are looked at. Raises NotApplicable without an exact score or where rates jump."""
    return _places(case.problem, case.quick, case.seed)


@lru_cache(maxsize=2)
def _places(problem: Problem, quick: bool, seed: int) -> tuple[Place, ...]:
    check_smooth(problem.process)
    latent, rng = Latent.of(problem), np.random.default_rng([seed, *b"generator"])
    latent.known_data, latent.start  # noqa: B018  raise NotApplicable
    times = [share * problem.process.horizon for share in FRACTIONS[: 1 if quick else None]]
    return tuple(Place(latent, t, latent.encode(t, latent.draw(t, POINTS, rng, widen=1.5))) for t in times)


def residual_row(case: Case, quantity: str, sides: Iterable[tuple[Array, Array, Array]]) -> None:
    """Left sides, right sides and the errors of the left, at points: the largest difference, relative to the sides."""
    worst, error = 0.0, 0.0
    for left, right, of_left in sides:
        size = float(max(np.abs(left).max(), np.abs(right).max())) or 1.0
        worst, error = max(worst, float(np.abs(left - right).max()) / size), max(error, float(of_left.max()) / size)
    case.zero(f"{quantity}, relative", worst, error)
