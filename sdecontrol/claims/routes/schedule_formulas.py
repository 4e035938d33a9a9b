"""alpha and h of a schedule from the numbers it was made with, by its defining formulas in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdecontrol.claims.base import NotApplicable
from sdecontrol.claims.routes.quadrature import Array, legendre_panels
from sdecontrol.schedules import VE, VP, Cosine, SubVP


def log_alpha_and_h(schedule: Any, fractions: Array) -> tuple[Array, Array]:
    """(log alpha, h) at levels fractions * horizon, each (m,); beta is integrated by quadrature.

    VP and SubVP: log alpha = -B/2, B = int_0^s beta, h = 1 - e^-B and (1 - e^-B)^2. VE: sigma(s) goes geometrically
    from sigma_min to sigma_max, h = sigma(s)^2 - sigma_min^2. Cosine: alpha = cos of an angle that is linear in s.
    Raises NotApplicable for other schedules.
    """
    if isinstance(schedule, VE):
        std = schedule.sigma_min ** (1 - fractions) * schedule.sigma_max**fractions
        return np.zeros_like(fractions), std**2 - schedule.sigma_min**2
    if isinstance(schedule, VP | SubVP):
        total = np.array([_integral_of_beta(schedule, fraction) for fraction in fractions])
        noise = 1 - np.exp(-total)
        return -total / 2, noise**2 if isinstance(schedule, SubVP) else noise
    if isinstance(schedule, Cosine):
        first = np.pi / 2 * schedule.offset / (1 + schedule.offset)
        last = np.arccos(np.cos(first) / np.sqrt(1 + np.exp(-schedule.log_snr_min)))
        alpha = np.cos(first + (last - first) * fractions) / np.cos(first)
        return np.log(alpha), 1 - alpha**2
    raise NotApplicable(f"the second route has no formula for a {type(schedule).__name__} schedule")


def _integral_of_beta(schedule: VP | SubVP, fraction: float) -> float:
    """int_0^s beta, beta going linearly from beta_min at level 0 to beta_max at the horizon."""
    u, weights = legendre_panels(np.array([0.0, fraction]), 4)
    return schedule.horizon * float(weights @ (schedule.beta_min * (1 - u) + schedule.beta_max * u))


def prior_variance(schedule: Any) -> float:
    """Of the standard start: 1 where the signal decays, h(horizon) where it does not."""
    log_alpha, h = log_alpha_and_h(schedule, np.ones(1))
    return float(h[0]) if log_alpha[0] == 0 else 1.0
