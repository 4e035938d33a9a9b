"""The output law p_pre by the second route, from the parameters of the data law, the schedule and the start alone.

With the exact score Y_T given Y_0 is clean given noisy, whatever the start (derived). For a mixture
started from a Gaussian the nodes of a trapezoidal rule stand for the start; given a node the output is a mixture. Other
affine processes are integrated as ordinary differential equations of mean and covariance.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.linalg
from scipy.integrate import solve_ivp

from sdecontrol.claims.base import NotApplicable
from sdecontrol.claims.routes.plain import Cloud, Frame, GaussianSum, latent_data, whole
from sdecontrol.claims.routes.quadrature import SPACING, Array, log_sum_exp, normal_nodes
from sdecontrol.laws import Dirac, Gaussian, Isotropic
from sdecontrol.processes import Process, ReverseProcess

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

ODE_ERROR = 1e-9


class Output(NamedTuple):
    """p_pre on latent coordinates; the relative error of an ODE behind it; whether a rule stands for the start."""

    law: GaussianSum
    frame: Frame
    error: float = 0.0
    by_rule: bool = False


@lru_cache(maxsize=8)
def output_law(problem: Problem, spacing: float = SPACING) -> Output:
    """p_pre from the parameters of the process. Raises NotApplicable where this route knows none."""
    process = problem.process
    if isinstance(process, ReverseProcess) and process.has_exact_score:
        return _reversed(process, spacing)
    return _propagated(process)


def _moments(start: Any) -> tuple[Array, Array]:
    if isinstance(start, Dirac | Gaussian | Isotropic) and len(start.event_shape) == 1:
        return start.mean.numpy(), start.covariance.numpy()
    raise NotApplicable(f"the second route knows Gaussian starts and points, not {type(start).__name__}")


def _reversed(process: ReverseProcess, spacing: float) -> Output:
    """Y_T given Y_0 = y is clean given noisy, sum_i omega_i(y) N(mu_i + J_i (y - a mu_i), P_i), whatever the start."""
    data, frame = latent_data(process.data_law)
    if process.initial == "marginal":
        return Output(data, frame)
    a, h = process.schedule.alpha(process.horizon), process.schedule.h(process.horizon)
    mean, covariance = _moments(process.initial_law())
    mean, covariance = frame.basis.T @ (mean - a * frame.offset), frame.basis.T @ covariance @ frame.basis
    eye = np.eye(data.dim)
    noisy = [Cloud(c.log_weights, a * c.means, a * a * c.covariance + h * eye) for c in data.clouds]
    gains = [a * scipy.linalg.solve(s.covariance, c.covariance).T for c, s in zip(data.clouds, noisy)]
    spreads = [h * scipy.linalg.solve(s.covariance, c.covariance).T for c, s in zip(data.clouds, noisy)]
    if len(data.clouds) == 1:
        gain, cloud = gains[0], data.clouds[0]
        shifted = cloud.means[0] + gain @ (mean - a * cloud.means[0])
        spread = spreads[0] + gain @ covariance @ gain.T
        return Output(GaussianSum((Cloud(np.zeros(1), shifted[None], (spread + spread.T) / 2),)), frame)
    y, weights = _start_nodes(mean, covariance, spacing)
    log_terms = np.hstack([s.log_terms(y) for s in noisy])
    log_joint = log_terms - log_sum_exp(log_terms, axis=1)[:, None] + np.log(weights)[:, None]
    clouds = [
        Cloud(log_joint[:, i], c.means[0] + (y - a * c.means[0]) @ gains[i].T, (spreads[i] + spreads[i].T) / 2)
        for i, c in enumerate(data.clouds)
    ]
    return Output(GaussianSum(tuple(clouds)), frame, by_rule=len(y) > 1)


def _start_nodes(mean: Array, covariance: Array, spacing: float) -> tuple[Array, Array]:
    if not covariance.any():
        return mean[None], np.ones(1)
    if len(mean) > 2:
        raise NotApplicable(
            "a mixture from a start that is not its noised law has no second route beyond two dimensions; "
            'pass initial="marginal"'
        )
    z, weights = normal_nodes(len(mean), spacing)
    return mean + z @ scipy.linalg.cholesky(covariance, lower=True).T, weights


def _propagated(process: Process) -> Output:
    """Mean and covariance of an affine process by m' = A m + c, V' = A V + V A' + g^2 I."""
    mean, covariance = _moments(process.initial_law())
    d = len(mean)

    def rate(t: float, state: Array) -> Array:
        a, c = (part.numpy() for part in process.affine_drift(min(t, process.horizon)))
        m, v = state[:d], state[d:].reshape(d, d)
        dv = a @ v + v @ a.T + process.amplitude(min(t, process.horizon)) ** 2 * np.eye(d)
        return np.concatenate([a @ m + c, dv.ravel()])

    found = solve_ivp(rate, (0.0, process.horizon), np.concatenate([mean, covariance.ravel()]), method="DOP853",
                      rtol=1e-12, atol=1e-13)  # fmt: skip
    end = found.y[:, -1]
    spread = end[d:].reshape(d, d)
    return Output(GaussianSum((Cloud(np.zeros(1), end[None, :d], (spread + spread.T) / 2),)), whole(d), ODE_ERROR)
