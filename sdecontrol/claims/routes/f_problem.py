"""The f-divergence problem along one direction: both routes' divergences, the bounded reward, and their solutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

from sdecontrol.claims.base import Case, rounding
from sdecontrol.claims.routes.output import output_law
from sdecontrol.claims.routes.quadrature import Array, NormalLine
from sdecontrol.claims.routes.static import Ramp, check_static, ramp
from sdecontrol.errors import NoClosedForm, NoTilt
from sdecontrol.laws import (
    KL,
    ChiSquare,
    DiscreteLaw,
    FDivergence,
    ForwardKL,
    GammaDivergence,
    Law,
    Surrogate,
    surrogate,
)

GAMMA = 0.5
HEIGHT = 2.0  # of the bounded reward, in units of the temperature


class Divergence(NamedTuple):
    """f, f' and the inverse of f' in numpy; gamma = 1 is the forward KL, None where f'(infinity) is infinite."""

    name: str
    library: FDivergence
    f: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    gamma: float | None

    @property
    def steepness(self) -> float:
        """w changes with the multiplier like w to this power."""
        return 1.0 + (self.gamma or 0.0)


DIVERGENCES = (
    Divergence("KL", KL(), lambda x: x * np.log(x), lambda x: np.log(x) + 1, lambda s: np.exp(s - 1), None),
    Divergence("forward KL", ForwardKL(), lambda x: -np.log(x), lambda x: -1 / x, lambda s: -1 / s, 1.0),
    Divergence(
        f"gamma = {GAMMA:g}",
        GammaDivergence(GAMMA),
        lambda x: (x ** (1 - GAMMA) - (1 - GAMMA) * x - GAMMA) / (GAMMA * (GAMMA - 1)),
        lambda x: (1 - x**-GAMMA) / GAMMA,
        lambda s: (1 - GAMMA * s) ** (-1 / GAMMA),
        GAMMA,
    ),
    Divergence(
        "chi-square", ChiSquare(), lambda x: (x - 1) ** 2 / 2, lambda x: x - 1, lambda s: np.maximum(1 + s, 0.0), None
    ),
)


class Bounded:
    """r(x) = height / (1 + e^{-(direction . x - centre)}): between 0 and height, neither attained."""

    def __init__(self, direction: Tensor, centre: float, height: float):
        self.direction, self.centre, self.height = direction, centre, height

    def __call__(self, x: Tensor) -> Tensor:
        return self.height * torch.sigmoid(x @ self.direction.to(x) - self.centre)


class Solution(NamedTuple):
    """The library's solution for one divergence, and its weights at the nodes."""

    divergence: Divergence
    found: Surrogate
    w: Array


class Setting(NamedTuple):
    """The problem along one direction: the library's law, the reward, and nodes and weights of the second route."""

    base: Law
    reward: Bounded
    temperature: float
    x: Array
    weights: Array
    r: Array
    error: float
    ramp: Ramp

    @property
    def ambient(self) -> Bounded:
        """The reward on the whole space."""
        return Bounded(self.ramp.ambient, self.reward.centre, self.reward.height)

    @property
    def points(self) -> Tensor:
        return torch.as_tensor(self.x)[:, None]

    def mean(self, values: Array) -> float:
        return float(self.weights @ values)

    def objective(self, d: Divergence, w: Array) -> float:
        """E r w - temperature E f(w)."""
        return self.mean(self.r * w - self.temperature * d.f(w))

    def tolerance(self, solution: Solution) -> float:
        """Of weights, relative to 1: the error of the multiplier, amplified where w is steep."""
        return 10 * self.error * float(solution.w.max()) ** solution.divergence.steepness


@lru_cache(maxsize=2)
def setting(case: Case) -> Setting:
    """p_pre along the gradient of the reward; atoms at the nodes where the library has no law of a direction."""
    check_static(case.problem)
    output, temperature, along = output_law(case.problem), case.problem.temperature, ramp(case.problem)
    x, weights = along.line.nodes()
    middle = along.line.mean
    try:
        base = case.answers.reference.along(along.ambient)
    except NoClosedForm:
        base = DiscreteLaw(torch.as_tensor(x + along.shift), torch.as_tensor(weights / weights.sum()))
    reward = Bounded(torch.ones(1, dtype=torch.float64), middle + along.shift, HEIGHT * temperature)
    coarse, coarse_weights = along.line.nodes(order=12)
    rule = abs(float(coarse_weights @ np.exp(coarse - middle)) - float(weights @ np.exp(x - middle)))
    error = rounding(1.0, condition=10 * math.sqrt(output.law.condition)) + 100 * output.error + 10 * rule
    r = reward(torch.as_tensor(x + along.shift)[:, None]).numpy()
    return Setting(base, reward, temperature, x + along.shift, weights, r, error, along)


def solve(case: Case, base: Law, reward: Any, temperature: float, d: Divergence, supremum: float | None) -> Surrogate:
    """The library's solution."""
    found: Surrogate = getattr(case.answers, "surrogate", surrogate)(base, reward, temperature, d.library, supremum)
    return found


@lru_cache(maxsize=2)
def solutions(case: Case) -> tuple[Solution, ...]:
    s = setting(case)
    found = [solve(case, s.base, s.reward, s.temperature, d, s.reward.height) for d in DIVERGENCES]
    return tuple(Solution(d, f, f.weight(s.points).numpy()) for d, f in zip(DIVERGENCES, found))


def on_line(s: Setting, line: NormalLine) -> Setting:
    """The same reward under another law of the direction, that of the second route; the library's is left out."""
    x, weights = line.nodes()
    r = s.reward(torch.as_tensor(x + s.ramp.shift)[:, None]).numpy()
    return s._replace(x=x + s.ramp.shift, weights=weights, r=r)


def multiplier(s: Setting, d: Divergence) -> float:
    """lambda with E w = 1."""
    top = s.reward.height
    return top + s.temperature * level((s.r - top) / s.temperature, s.weights, d)


def own_weights(s: Setting, d: Divergence) -> Array:
    """w at the nodes, all by the second route."""
    return d.inverse((s.r - multiplier(s, d)) / s.temperature)


def level(rho: Array, shares: Array, d: Divergence) -> float:
    """y with sum shares (f')^{-1}(rho - y) = 1 for rho <= 0, by bracketing what is admissible."""
    low = {None: float(rho.min()) - 2, 1.0: 1e-13}.get(d.gamma, (1e-13 - 1) / GAMMA)
    return float(brentq(lambda y: float(shares @ d.inverse(rho - y)) - 1, low, 4.0, xtol=1e-15, rtol=1e-14))


def optimised(r: Array, shares: Array, d: Divergence) -> tuple[float, float]:
    """max sum_i shares_i (w_i r_i - f(w_i)) under sum_i shares_i w_i = 1, w >= 0, and a bound of what is missed."""
    result = minimize(
        lambda w: -float(shares @ (w * r - d.f(w))),
        np.ones_like(r),
        jac=lambda w: -shares * (r - d.slope(w)),
        method="SLSQP",
        bounds=[(1e-9, None)] * len(r),
        constraints={"type": "eq", "fun": lambda w: float(shares @ w) - 1, "jac": lambda w: shares},
        options={"ftol": 1e-16, "maxiter": 500},
    )
    w = result.x / float(shares @ result.x)
    gain = r - d.slope(w)
    return float(shares @ (w * r - d.f(w))), float(gain.max() - (shares * w) @ gain)


def refused_below(
    case: Case, base: Law, reward: Callable[[Tensor], Tensor], temperature: float, d: Divergence, supremum: float | None
) -> float:
    """The smallest admissible temperature that the library names when it refuses this one; 0 when it does not."""
    try:
        solve(case, base, reward, temperature, d, supremum)
    except NoTilt as error:
        return float(error.smallest_temperature) if error.smallest_temperature is not None else math.nan
    return 0.0
