"""Finitely many atoms of p_pre: there every statement about a tilt is a sum, exact whatever the problem.

Lemma 3.1 and Prop. 3.2 hold for every reference law, so also for unequally likely atoms drawn from p_pre; what the
library says of such a law is compared with sums in numpy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import Case, rounding
from sdecontrol.claims.routes.output import output_law
from sdecontrol.claims.routes.quadrature import Array, log_sum_exp
from sdecontrol.claims.routes.static import check_static, exponent
from sdecontrol.laws import DiscreteLaw
from sdecontrol.rewards import as_quadratic

ATOMS = 24
OTHERS = 6  # laws that are not the tilt


class Atoms(NamedTuple):
    """Atoms (m, D) of p_pre with unequal shares, the library's law of them and its tilt; rho = r / temperature."""

    points: Tensor
    shares: Array
    rho: Array
    law: DiscreteLaw
    tilted: DiscreteLaw
    log_c: float
    weights: Array
    error: float

    @property
    def divergence(self) -> float:
        """D = (E_ft r - E_pre r) / temperature."""
        return float((self.weights - self.shares) @ self.rho)

    @property
    def kl(self) -> float:
        return float(self.weights @ self.rho) - self.log_c

    def others(self, rng: np.random.Generator) -> list[Array]:
        """Weights around the tilt's, ever farther away; the last is the single best atom."""
        noise = rng.standard_normal((OTHERS - 1, len(self.rho)))
        logs = np.log(self.weights) + noise * np.geomspace(0.01, 3.0, OTHERS - 1)[:, None]
        return [*np.exp(logs - log_sum_exp(logs, axis=1)[:, None]), np.eye(len(self.rho))[np.argmax(self.rho)]]


def atoms_of(case: Case) -> Atoms:
    """The atoms of a case. Raises NotApplicable with a running reward, or where p_pre has no second route."""
    check_static(case.problem)
    problem, output = case.problem, output_law(case.problem)
    u = output.law.draw(ATOMS, case.rng)
    points, quadratic = output.frame.lift(u), as_quadratic(problem.reward)
    shares = 1 + 0.5 * np.cos(np.arange(ATOMS))
    shares = shares / shares.sum()
    if quadratic is None:
        rho = problem.reward(points).double().numpy() / problem.temperature
        size = float(np.abs(rho).max())
    else:
        q = exponent(output, quadratic, problem.temperature)
        rho, size = q(u), float(np.abs(q(u) - q.constant).max()) + abs(q.constant)
    law: DiscreteLaw = getattr(case.answers, "atoms", DiscreteLaw)(points, torch.as_tensor(shares))
    log_c = float(log_sum_exp(np.log(shares) + rho))
    weights = np.exp(np.log(shares) + rho - log_c)
    tilted = law.tilt(problem.reward, problem.temperature)
    error = rounding(size, 1.0, operations=100 * problem.process.dim)
    return Atoms(points, shares, rho, law, tilted, log_c, weights, error)


def relative_entropy(p: Array, q: Array) -> float:
    """KL(p || q) of weights, 0 log 0 = 0."""
    held = p > 0
    return float(p[held] @ np.log(p[held] / q[held]))
