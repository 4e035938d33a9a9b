"""Finitely many starts: Prop. 3.4 and Prop. 3.7 with the empirical law of draws of p_noise in its place.

Both hold for every start, so for m atoms y_j of equal weight, from which the process runs on as it does. With an exact
score Y_T given y_j is sum_i omega_i(y_j) N(m_i(y_j), P_i), tilted component by component: all that the statements
compare are sums over j and i, without steps and without sampling error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from sdecontrol.claims.base import Case, rounding
from sdecontrol.claims.routes.plain import Cloud
from sdecontrol.claims.routes.quadrature import SPACING, Array, log_sum_exp
from sdecontrol.claims.routes.workbench import Workbench

STARTS = 16


class Starts(NamedTuple):
    """Atoms y (m, D); by numpy: growth = v(0, y)/temperature (m,), E_{Q*_y} r/temperature (m,), and labels.

    labels (k, m) and tilted_labels: the probability of each component of the data given y, under Q_y and Q*_y.
    """

    y: Tensor
    growth: Array
    mean_rho: Array
    labels: Array
    tilted_labels: Array
    error: float

    @property
    def log_c(self) -> float:
        return float(log_sum_exp(self.growth)) - float(np.log(len(self.growth)))

    @property
    def weights(self) -> Array:
        """nu* at the atoms."""
        return np.exp(self.growth - log_sum_exp(self.growth))


def starts_of(case: Case) -> Starts:
    """The atoms of a case, drawn from about p_noise. Raises NotApplicable unless the score is exact."""
    latent = Workbench.of(case).latent
    latent.start  # noqa: B018  raises NotApplicable for a point, at which there is nothing to tilt
    clean, y = latent.clean(0.0), latent.draw(0.0, STARTS, case.rng)
    z = latent.encode(0.0, y)
    omega, zero = clean.log_omega(z), np.zeros(STARTS)
    parts = [Cloud(zero, m, c).tilted(latent.rho, SPACING) for m, c in zip(clean.means(z), clean.covariances)]
    logs = omega + np.stack([cloud.log_weights for cloud, _ in parts])
    growth = log_sum_exp(logs, axis=0)
    tilted = np.exp(logs - growth)
    mean_rho = (tilted * np.stack([mean for _, mean in parts])).sum(0)
    condition = max(10.0, *(float(np.linalg.cond(c)) for c in clean.covariances))
    size = float(max(np.abs(omega).max(), np.abs(latent.rho(clean.means(z))).max(), np.abs(growth).max()))
    return Starts(y, growth, mean_rho, np.exp(omega), tilted, rounding(size, 1.0, condition=condition))
