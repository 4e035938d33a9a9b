"""What guidance by a sum of scores samples: sum_j c_j grad log p^j_s with sum_j c_j = 1, for Gaussians on the line.

Classifier-free guidance is c = (1 - w, w); two strengths are c = (1 - w1, w1 - w2, w2); a classifier's drift scaled by
gamma is c = (1 - gamma, gamma) with the posterior of the label. In z = y/a and rho = h/a^2, V_j = S_j + rho and
dz = sum_j c_j (mu_j - z)/V_j drho + dB_rho run from the largest rho to 0, so with F = prod_j V_j^{c_j}

    m(0) = F(0) [m_T / F(rho_T) + int F(rho)^-1 sum_j c_j mu_j / V_j drho],
    w(0) = F(0)^2 [w_T / F(rho_T)^2 + int F(rho)^-2 drho]

(derived: variation of constants). The tilt p_1^{1-gamma} p_c^gamma has precision sum_j c_j / S_j instead: they differ
unless one c_j is 1, as no noised law is the product of powers of the noised ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from sdecontrol.errors import check
from sdecontrol.laws import Dirac, Gaussian
from sdecontrol.schedules import Schedule

_ORDER, _PANELS = 20, 60  # Gauss-Legendre nodes a panel, panels even in log(rho + smallest variance)


def combined_gaussian(
    schedule: Schedule, laws: Sequence[Gaussian], coefficients: Sequence[float], start: Gaussian | Dirac
) -> Gaussian:
    """The law of Y_T under the reverse SDE with the score sum_j c_j grad log p^j_s, started from `start`.

    All laws one-dimensional. Relative accuracy 1e-12 (Gauss-Legendre panels, for |c| up to about 20).
    Raises: BadInput for laws that are not on the line, or coefficients that do not sum to 1.
    Source: CTRL 2406.12120, appendix B, for the two strengths; the law is derived.
    """
    for law in (*laws, start):
        check(law.dim == 1, f"a Gaussian on R^{law.dim}", "Gaussians on the line, a coordinate that decouples")
    c = np.array([float(value) for value in coefficients])
    check(len(c) == len(laws) and abs(c.sum() - 1) < 1e-9, f"coefficients {list(coefficients)} for {len(laws)} laws",
          "one for each law, with sum 1")  # fmt: skip
    mu = np.array([float(law.mean) for law in laws])
    variances = np.array([float(law.covariance) for law in laws])
    a, h = schedule.alpha(schedule.horizon), schedule.h(schedule.horizon)
    last, narrowest = h / a**2, float(variances.min())
    rho, weights = _nodes(last, narrowest)
    spread = variances + rho[:, None]
    log_ratio = c @ np.log(variances) - np.log(spread) @ c  # log F(0)/F(rho)
    end = float(c @ (np.log(variances) - np.log(variances + last)))
    mean = math.exp(end) * float(start.mean) / a + weights @ (np.exp(log_ratio) * ((mu / spread) @ c))
    variance = math.exp(2 * end) * float(start.covariance) / a**2 + weights @ np.exp(2 * log_ratio)
    return Gaussian(torch.tensor([mean]), torch.tensor([[variance]]))


def _nodes(last: float, narrowest: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, last], with panels that grow like narrowest + rho."""
    edges = narrowest * np.expm1(np.linspace(0.0, math.log1p(last / narrowest), _PANELS + 1))
    x, w = np.polynomial.legendre.leggauss(_ORDER)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (1 + x)).ravel(), (half * w).ravel()
