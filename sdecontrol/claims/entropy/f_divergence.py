"""Beyond KL: the maximiser of E_p r - temperature D_f(p || p_pre), its surrogate reward, and when there is none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.routes.atoms import atoms_of
from sdecontrol.claims.routes.f_problem import (
    DIVERGENCES,
    Divergence,
    level,
    on_line,
    optimised,
    own_weights,
    refused_below,
    setting,
    solutions,
    solve,
)
from sdecontrol.claims.routes.output import output_law
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.schedule_chain import PlainChain, own_chain, vanishing
from sdecontrol.claims.routes.static import DRAWS, draws, draws_exactly
from sdecontrol.estimate import Estimate
from sdecontrol.laws import DiscreteLaw, TiltedLaw, f_tilt

ATOMS = 12  # of the grid on which a general optimiser solves the problem
F_ACCURACY = 1e-12  # to which the library solves for the multiplier
TRIED = (0.01, 0.1, 0.5)  # relative sizes of other weights

CLAIM = Claim(
    "f-divergence",
    "With an f-divergence the best law is p_pre w(r), w = [(f')^{-1}((r - lambda)/temperature)]_+",
    "Tang 2403.06279, remark on f-divergences; statement, existence and surrogate reward: derived",
    r"""max_p E_p r - \alpha D_f(p \| p_pre) has dp/dp_pre = w(r) with E_{pre} w = 1; it is the KL tilt of the surrogate
reward \alpha log w(r). Forward KL and gamma-divergences have a maximiser only for bounded r and temperatures above
\gamma (E_{pre} (sup r - r)^{-1/\gamma})^{-\gamma}. By data processing the same weight is best on path space.""",
)


@CLAIM.check(EXACT)
def weights(case: Case) -> None:
    """E_pre w = 1, the weight and the value, against a second solution of the first-order condition."""
    s = setting(case)
    masses, gaps, errors = [], [], []
    for solution in solutions(case):
        d, found, w = solution
        own = own_weights(s, d)
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
    case.zero("gap / T - E Bregman, worst of twelve", max(misses, key=abs), max(errors), scale=abs(min(gaps)))


@CLAIM.check(DISCRETE)
def brute_force(case: Case) -> None:
    """The problem on a few atoms of the reward's law, against a general convex optimiser that bounds its own gap.

    At half the temperature, where the chi-square weight vanishes on the worst atoms.
    """
    s = setting(case)
    temperature = s.temperature / 2
    levels = (np.arange(ATOMS) + 0.5) / ATOMS
    points = torch.as_tensor(np.array([s.ramp.line.quantile(float(u)) + s.ramp.shift for u in levels]))
    shares = (1 + 0.5 * np.cos(np.arange(ATOMS))) / float((1 + 0.5 * np.cos(np.arange(ATOMS))).sum())
    law, r = DiscreteLaw(points, torch.as_tensor(shares)), s.reward(points[:, None]).numpy() / temperature
    for d in DIVERGENCES:
        found = solve(case, law, s.reward, temperature, d, None).value / temperature
        value, gap = optimised(r, shares, d)
        case.identity(f"value / T on {ATOMS} atoms by SLSQP, {d.name}", found, value, gap + rounding(value, 1.0),
                      note="error: the optimiser's duality gap")  # fmt: skip


@CLAIM.check(DISCRETE)
def atoms(case: Case) -> None:
    """The problem's own reward on atoms of p_pre: the library's tilt, its value, and that other weights do worse."""
    found = atoms_of(case)
    rho, shares = found.rho - found.rho.max(), found.shares
    off, missed, gaps = [], [], []
    tilt: Any = getattr(case.answers, "f_tilt", f_tilt)
    for d in DIVERGENCES:
        w = d.inverse(rho - level(rho, shares, d))
        weights = tilt(found.law, case.problem.reward, case.problem.temperature, d.library).weights.numpy()
        size = float(w.max()) ** d.steepness
        off.append(float(np.abs(weights - shares * w).max()) / size)
        best = _objective(d, rho, shares, weights / shares)
        missed.append((best - _objective(d, rho, shares, w)) / size)
        for other in found.others(case.rng)[:-1]:
            gaps.append(best - _objective(d, rho, shares, other / shares))
    error = 100 * found.error + F_ACCURACY
    case.zero("weights of the f-tilt of atoms, worst of four", max(off), error)
    case.zero("value of the f-tilt of atoms / T, worst of four", max(missed, key=abs), error)
    case.bound(f"0 <= gap / T of {len(gaps)} other weights of atoms", 0.0, min(gaps), error)


def _objective(d: Divergence, rho: Array, shares: Array, w: Array) -> float:
    """E r w / temperature - E f(w), over atoms; f(0) is its limit."""
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(w > 0, d.f(w), d.library.f(torch.zeros(1, dtype=torch.float64)).item())
    return float(shares @ (w * rho - cost))


@CLAIM.check(DISCRETE)
def chain(case: Case) -> None:
    """The problem for the chain's own p_pre, along the gradient of the reward: the value, both routes."""
    s, own = setting(case), own_chain(case)
    line = on_line(s, own.plain.law.along(s.ramp.direction))
    base, error = own.exact.reference.along(s.ramp.ambient), max(s.error, own.error)
    for d in (DIVERGENCES[0], DIVERGENCES[-1]) if case.quick else DIVERGENCES:
        found, w = solve(case, base, s.reward, s.temperature, d, s.reward.height), own_weights(line, d)
        tolerance = 10 * error * float(w.max()) ** d.steepness
        value = line.objective(d, w) / s.temperature
        case.identity(f"chain: value / T, both routes, {d.name}", found.value / s.temperature, value, tolerance)


@CLAIM.check(DISCRETE)
def finer_chains(case: Case) -> None:
    """The values of ever finer chains against the continuum's."""
    s = setting(case)
    for d, found, w in solutions(case):

        def value(chain: PlainChain, d: Divergence = d) -> float:
            line = on_line(s, chain.law.along(s.ramp.direction))
            return line.objective(d, own_weights(line, d)) / s.temperature

        limit, error = vanishing(case, value)
        known = found.value / s.temperature
        case.identity(f"value / T as the steps vanish, {d.name}", limit, known, error + 10 * s.error * float(w.max()))


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
    """E_pre w = 1 by draws from p_pre in its own space: the weight depends on the reward alone."""
    s, law = setting(case), case.answers.reference
    plain = None if draws_exactly(law) else output_law(case.problem).law
    x = draws(case, law, plain, "p_pre", DRAWS)
    r = s.ambient(x).to(torch.float64)
    for d, found, _ in solutions(case):
        w = d.library.weight(r, found.multiplier, s.temperature)
        case.sample(f"E_pre w, {d.name}", Estimate.mean(w), 1.0)


@CLAIM.check(MONTE_CARLO)
def draws_of_the_tilt(case: Case) -> None:
    """E_ft 1/(1 + w) = E_pre w/(1 + w), bounded on both sides, by draws from p_pre w(r) in the whole space."""
    s, law = setting(case), case.answers.reference
    if not draws_exactly(law):
        raise NotApplicable("p_pre is drawn from by importance resampling only")
    for d, found, w in solutions(case):
        aimed = replace(found, reward=s.ambient)
        tilt = TiltedLaw(law, aimed.log_weight, log_normalizer=0.0, log_bound=found.log_bound)
        tilted = aimed.weight(tilt.sample(case.paths, case.noise, d.name)).numpy()
        case.sample(f"E_ft 1/(1+w), {d.name}", Estimate.mean(1 / (1 + tilted)), s.mean(w / (1 + w)))
