"""Divergences at both ends of exact scores: of the tilts of p_pre by parts of the reward, and of nu* from p_noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from sdecontrol.claims.base import rounding
from sdecontrol.claims.routes.latent import COARSER, FINE, Latent
from sdecontrol.claims.routes.ode import Measured
from sdecontrol.claims.routes.posterior import start_nodes
from sdecontrol.claims.routes.quadrature import OTHER_SPACING, line_distance, log_sum_exp


@lru_cache(maxsize=4)
def tilted_kl(latent: Latent, share: float = 0.0) -> Measured:
    """KL(p_ft || p'), p' being p_pre tilted by `share` of the reward (0: p_pre itself), and the error of the rules."""

    def divergence(spacing: float) -> float:
        law = latent.reference(latent.process.horizon, spacing)
        tilt = law.tilt(latent.rho)
        return (1 - share) * tilt.mean_q - tilt.log_mass + law.log_mass(latent.rho.times(share), OTHER_SPACING)

    return _with_error(latent, divergence)


@lru_cache(maxsize=4)
def tilted_distance(latent: Latent, share: float = 0.0) -> Measured:
    """Total variation of the same two laws along the gradient of the reward at the mean of p_ft: at most their own."""
    law = latent.reference(latent.process.horizon, COARSER)
    star = law.tilt(latent.rho).law
    other = law.tilt(latent.rho.times(share)).law if share else law
    pull = latent.rho.linear - latent.rho.curvature @ star.mean
    return Measured(*line_distance(star.along(pull), other.along(pull)))


@lru_cache(maxsize=2)
def initial_kl(latent: Latent) -> Measured:
    """KL(nu* || p_noise) by a rule over a Gaussian start in one and two dimensions, and its error."""

    def divergence(spacing: float) -> float:
        nodes, log_weights = start_nodes(*latent.gaussian_start, spacing)
        growth = latent.clean(0.0).log_growth(latent.rho, nodes)
        log_mass = log_sum_exp(log_weights + growth)
        return float(np.exp(log_weights + growth - log_mass) @ growth - log_mass)

    return _with_error(latent, divergence)


def _with_error(latent: Latent, of_spacing: Callable[[float], float]) -> Measured:
    """A number; its error is what a coarser rule over the start changes, with that of log C."""
    found, (log_c, error) = of_spacing(FINE), latent.log_normalizer()
    error += rounding(1.0, found, log_c, condition=100.0, operations=100 * latent.dim)
    return Measured(found, error + (abs(found - of_spacing(COARSER)) if latent.by_rule else 0.0))
