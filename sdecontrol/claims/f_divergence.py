"""Beyond KL: the maximiser of E_p r - temperature D_f(p || p_pre), its surrogate reward, and when there is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

from sdecontrol.claims.base import EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.output import output_law
from sdecontrol.claims.quadrature import Array
from sdecontrol.claims.static import Ramp, check_static, draws, draws_exactly, ramp
from sdecontrol.errors import NoClosedForm, NoTilt
from sdecontrol.estimate import Estimate
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
ATOMS = 12  # of the grid on which a general optimiser solves the problem
TRIED = (0.01, 0.1, 0.5)  # relative sizes of other weights

CLAIM = Claim(
    "f-divergence",
    "With an f-divergence the best law is p_pre w(r), w = [(f')^{-1}((r - lambda)/temperature)]_+",
    "Tang 2403.06279, remark on f-divergences; statement, existence and surrogate reward: derived",
    r"""max_p E_p r - \alpha D_f(p \| p_pre) has dp/dp_pre = w(r) with E_{pre} w = 1; it is the KL tilt of the surrogate
reward \alpha log w(r). Forward KL and gamma-divergences have a maximiser only for bounded r and temperatures above
\gamma (E_{pre} (sup r - r)^{-1/\gamma})^{-\gamma}. By data processing the same weight solves the problem on path space.""",
)


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


def multiplier(s: Setting, d: Divergence) -> float:
    """lambda with E w = 1, by bracketing in the interval of admissible multipliers."""
    top = s.reward.height
    low = {None: -4 * s.temperature, 1.0: top * (1 + 1e-13)}.get(d.gamma, top - s.temperature / GAMMA * (1 - 1e-13))
    excess = lambda lam: s.mean(d.inverse((s.r - lam) / s.temperature)) - 1  # noqa: E731
    return float(brentq(excess, low, top + 4 * s.temperature, xtol=1e-15, rtol=1e-14))


@CLAIM.check(EXACT)
def weights(case: Case) -> None:
    """E_pre w = 1, the weight and the value, against a second solution of the first-order condition."""
    s = setting(case)
    masses, gaps, errors = [], [], []
    for solution in solutions(case):
        d, found, w = solution
        own = d.inverse((s.r - multiplier(s, d)) / s.temperature)
        masses.append(s.mean(w) - 1)
        gaps.append(float(np.abs(w - own).max() / own.max()))
        errors.append(s.tolerance(solution))
        value = s.objective(d, own)
        case.identity(f"value, both routes, {d.name}", found.value, value, s.temperature * errors[-1])
    case.zero("E_pre w - 1, worst of four divergences", max(masses, key=abs), max(errors))
    case.zero("w, both routes, worst of four divergences", max(gaps), max(errors))


@CLAIM.check(EXACT)
def optimality(case: Case) -> None:
    """Other weights do worse, by temperature E_pre of the Bregman distance of f."""
    s = setting(case)
    z = (s.x - s.x.mean()) / s.x.std()
    gaps, misses, errors = [], [], []
    for solution in solutions(case):
        d, found, w = solution
        held = w > 0
        errors.append(3 * s.tolerance(solution))
        for size, (a, b) in zip(TRIED, case.rng.uniform(-1, 1, (len(TRIED), 2))):
            other = w * (1 + size * np.tanh(a * z + b * np.cos(z)))
            other = other / s.mean(other)
            gap = (found.value - s.objective(d, other)) / s.temperature
            v, o = w[held], other[held]
            bregman = float(s.weights[held] @ (d.f(o) - d.f(v) - d.slope(v) * (o - v)))
            gaps.append(gap)
            misses.append(gap - bregman)
    case.bound("0 <= gap / T of other weights, smallest of twelve", 0.0, min(gaps), max(errors))
    case.zero("gap / T - E Bregman, worst of twelve", max(misses, key=abs), max(errors), scale=min(gaps))


@CLAIM.check(EXACT)
def brute_force(case: Case) -> None:
    """The problem on a few atoms of the reward's law, against a general convex optimiser that bounds its own gap."""
    s = setting(case)
    levels = (np.arange(ATOMS) + 0.5) / ATOMS
    points = torch.as_tensor([s.ramp.line.quantile(float(u)) + s.ramp.shift for u in levels])
    shares = (1 + 0.5 * np.cos(np.arange(ATOMS))) / float((1 + 0.5 * np.cos(np.arange(ATOMS))).sum())
    law, r = DiscreteLaw(points, torch.as_tensor(shares)), s.reward(points[:, None]).numpy() / s.temperature
    for d in DIVERGENCES:
        found = solve(case, law, s.reward, s.temperature, d, None).value / s.temperature
        value, gap = optimised(r, shares, d)
        case.identity(f"value / T on {ATOMS} atoms by SLSQP, {d.name}", found, value, gap + rounding(value, 1.0),
                      note="error: the optimiser's duality gap")  # fmt: skip


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


@CLAIM.check(EXACT)
def surrogate_reward(case: Case) -> None:
    """The KL row is the tilt; the KL tilt by temperature log w(r) needs no normaliser, divergence by divergence."""
    s, (first, *others) = setting(case), solutions(case)
    tilt = np.exp(s.r / s.temperature) / s.mean(np.exp(s.r / s.temperature))
    gap = float(np.abs(first.w - tilt).max() / tilt.max())
    case.zero("KL: w - e^{r/T}/C", gap, s.tolerance(first))
    logs = [s.base.log_expectation(other.found, s.temperature) for other in others]
    error = max(s.tolerance(other) for other in others) + 1e-11
    case.zero("log E_pre e^{surrogate/T}, worst of three", max(logs, key=abs), error)


@CLAIM.check(EXACT)
def existence(case: Case) -> None:
    """Forward KL and gamma: the smallest admissible temperature of the bounded reward; none for an unbounded one."""
    s = setting(case)
    if isinstance(s.base, DiscreteLaw):
        raise NotApplicable("finitely many atoms always have a maximiser")
    top = s.reward.height
    for d in (d for d in DIVERGENCES if d.gamma is not None):
        gamma = float(d.gamma or 1.0)
        smallest = gamma * s.mean((top - s.r) ** (-1 / gamma)) ** -gamma
        seen = refused_below(case, s.base, s.reward, 0.9 * smallest, d, top)
        error = 1e3 * s.error * smallest + 1e-9 * smallest
        case.identity(f"smallest temperature, {d.name}", seen, smallest, error, note="named on refusing 0.9 of it")
        limit = top - (0.0 if gamma == 1.0 else 1.05 * smallest / gamma)
        found = solve(case, s.base, s.reward, 1.05 * smallest, d, top).multiplier
        case.bound(f"a multiplier at 1.05 of it, {d.name}", limit, found, s.error * smallest)
        unbounded = refused_below(case, s.base, lambda x: x[:, 0], s.temperature, d, None)
        case.identity(f"an unbounded reward is refused, {d.name}", float(unbounded == math.inf), 1.0, 0.0)


def refused_below(
    case: Case, base: Law, reward: Callable[[Tensor], Tensor], temperature: float, d: Divergence, supremum: float | None
) -> float:
    """The smallest admissible temperature that the library names when it refuses this one; 0 when it does not."""
    try:
        solve(case, base, reward, temperature, d, supremum)
    except NoTilt as error:
        return float(error.smallest_temperature) if error.smallest_temperature is not None else math.nan
    return 0.0


@CLAIM.check(EXACT)
def data_processing(case: Case) -> None:
    """D_f falls when only the side of the median is seen, as it does from paths to their ends."""
    s = setting(case)
    upper = s.x - s.ramp.shift > s.ramp.threshold(0.5)
    cells = (upper, ~upper)
    masses = np.array([s.weights[cell].sum() for cell in cells])
    losses = []
    for d, _, w in solutions(case):
        seen = np.array([s.weights[cell] @ w[cell] for cell in cells]) / masses
        losses.append(float(s.weights[w > 0] @ d.f(w[w > 0]) - masses @ d.f(seen)))
    case.bound("0 <= D_f - D_f seen in two cells, smallest of four", 0.0, min(losses), 10 * s.error)


@CLAIM.check(MONTE_CARLO)
def in_the_whole_space(case: Case) -> None:
    """E_pre w = 1 and the value by draws from p_pre in its own space: the weight depends on the reward alone."""
    s, law = setting(case), case.answers.reference
    plain = None if draws_exactly(law) else output_law(case.problem).law
    x = draws(case, law, plain, "f-divergence", case.paths)
    r = Bounded(s.ramp.ambient, s.reward.centre, s.reward.height)(x).to(torch.float64)
    for d, found, _ in solutions(case):
        w = d.library.weight(r, found.multiplier, s.temperature).numpy()
        case.sample(f"E_pre w, {d.name}", Estimate.mean(w), 1.0)
        gain = r.numpy() * w - s.temperature * d.f(w)
        case.sample(f"value by draws, {d.name}", Estimate.mean(gain), found.value, scale=s.reward.height / 2)
