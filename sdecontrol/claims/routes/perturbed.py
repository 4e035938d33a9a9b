"""Laws near the tilt, built to see that none does better and that each misses the optimum by its KL to it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sdecontrol.claims.base import Case, NotApplicable
from sdecontrol.claims.routes.plain import Quadric, Tilt
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.static import Static

PAIRS = 3  # perturbed laws of each size


class Perturbed(NamedTuple):
    """p proportional to p_pre e^q, its objective and KL(p || p_ft), both in units of the temperature."""

    tilt: Tilt
    objective: float
    kl_to_optimum: float


def perturbations(case: Case, route: Static, size: float) -> list[Perturbed]:
    """Random laws p_pre e^q with q = r/temperature + d . x - x' E x / 2, d and E a share `size` of p_ft's own scale.

    Gaussians around a Gaussian p_ft, mixtures around a mixture. Objective = E_p r / temperature - KL(p || p_pre).
    """
    if route.tilt is None:
        raise NotApplicable("perturbed laws are built for quadratic rewards")
    rng, tilt, base = case.rng, route.tilt, route.output.law
    precisions = [np.linalg.inv(c.covariance) for c in tilt.law.clouds]
    values, vectors = np.linalg.eigh(np.mean(precisions, axis=0))
    least = min(float(np.linalg.eigvalsh(p)[0]) for p in precisions)
    found = []
    for _ in range(1 if case.quick else PAIRS):
        push = rng.standard_normal(base.dim)
        push = vectors @ (np.sqrt(values) * push) / np.linalg.norm(push)
        bend = rng.standard_normal((base.dim, base.dim))
        bend = 0.4 * (bend + bend.T) / np.linalg.norm(bend + bend.T, 2)
        extra = Quadric(0.0, size * push, size * least * bend)
        other = base.tilt(Quadric(tilt.q.constant, tilt.q.linear + extra.linear, tilt.q.curvature + extra.curvature))
        gain = other.law.mean_of(extra)
        found.append(Perturbed(other, other.mean_q - gain - other.kl, gain - (other.log_mass - tilt.log_mass)))
    return found


def gaussian_kl(m: Array, s: Array, mean: Array, covariance: Array) -> float:
    """KL(N(m, s) || N(mean, covariance))."""
    gap = mean - m
    log_det = np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(s)[1]
    trace = float(np.trace(np.linalg.solve(covariance, s)))
    return float(trace - len(m) + gap @ np.linalg.solve(covariance, gap) + log_det) / 2
