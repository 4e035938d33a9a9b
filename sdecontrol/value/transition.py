"""The exact law of Y_T given Y_t: Gaussian for affine dynamics, a mixture for mixture data with their exact score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sdecontrol.errors import NoClosedForm
from sdecontrol.kernels import ExactTransition
from sdecontrol.laws.base import Posterior, SubspacePosterior
from sdecontrol.problems.base import Problem
from sdecontrol.processes import Process, ReverseProcess

_DENSE = 64  # dimensions up to which the dense transition is cheap


@dataclass(frozen=True, eq=False)
class GaussianTransition:
    """Y_T given Y_t = x is N(matrix x + offset, covariance); matrix (d, d), or (d,) when diagonal."""

    matrix: Tensor
    offset: Tensor
    covariance: Tensor

    def centre(self, x: Tensor) -> Tensor:
        """matrix x + offset: (n, d) -> (n, d)."""
        moved = x * self.matrix if self.matrix.ndim == 1 else (self.matrix @ x.mT).mT
        return moved + self.offset


def affine_transition(process: Process, t: float) -> GaussianTransition:
    """The law of Y_T given Y_t = x. Raises NoClosedForm when the process is not affine.

    Dense, by the kernel `ExactTransition`; above 64 dimensions coordinate by coordinate where the drift is diagonal.
    """
    if len(process.event_shape) != 1:
        raise NoClosedForm("the exact transition is known for vectors")
    drift = process.affine_drift(t)[0]
    if process.dim > _DENSE and _is_diagonal(drift):
        return _diagonal_transition(process, t)
    step = ExactTransition().affine_step(process, t, process.horizon)
    return GaussianTransition(step.matrix, step.offset, step.noise @ step.noise.mT)


def _is_diagonal(a: Tensor) -> bool:
    return not bool((a - torch.diag(a.diagonal())).any())


def _diagonal_transition(process: Process, t: float) -> GaussianTransition:
    """log phi' = a, m' = a m + c, V' = 2 a V + amplitude^2 in every coordinate, Runge-Kutta of order 8 at 1e-13."""
    d = process.dim

    def rate(tau: float, y: np.ndarray) -> np.ndarray:
        matrix, offset = process.affine_drift(float(tau))
        if not _is_diagonal(matrix):
            raise NoClosedForm(f"the drift's matrix stops being diagonal at t = {tau:.6g}")
        a = matrix.diagonal().numpy()
        _, m, v = y.reshape(3, d)
        return np.concatenate([a, a * m + offset.numpy(), 2 * a * v + process.amplitude(float(tau)) ** 2])

    y = solve_ivp(rate, (t, process.horizon), np.zeros(3 * d), method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1]
    log_phi, m, v = torch.from_numpy(y.copy()).reshape(3, d)
    return GaussianTransition(log_phi.exp(), m, torch.diag(v))


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Y_T given Y_t = x as sum_i omega_i(x) N(centre_i(x), root_i root_i'), all the roots fed with the same normals.

    log omega (n, k) and the centres (n, k, D) of x (n, D), as functions; roots (k, D, q).
    """

    log_shares: Callable[[Tensor], Tensor]
    centres: Callable[[Tensor], Tensor]
    roots: Tensor

    @cached_property
    def inverses(self) -> Tensor:
        """Pseudo-inverses of the roots: (k, q, D)."""
        return torch.linalg.pinv(self.roots)


def _ordered_root(covariance: Tensor) -> Tensor:
    """V sqrt(Lambda), largest eigenvalue first: the first normals matter most. Rounding below zero is cut at zero."""
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    if not bool(off_diagonal.any()) and bool((covariance.diagonal() == covariance[0, 0]).all()):
        return covariance.sqrt()  # a multiple of the identity needs no rotation
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()).flip(1)


def _of_posterior(posterior: Posterior | SubspacePosterior) -> Gaussians:
    if isinstance(posterior, SubspacePosterior):
        latent, encode, decode = _of_posterior(posterior.latent), posterior.encode, posterior.decode
        origin = decode(torch.zeros(1, latent.roots.shape[1], dtype=torch.float64))
        roots = torch.stack([(decode(root.mT.contiguous()) - origin).mT for root in latent.roots])

        def centres(x: Tensor) -> Tensor:
            inner = latent.centres(encode(x))
            return decode(inner.flatten(0, 1)).reshape(*inner.shape[:2], -1)

        return Gaussians(lambda x: latent.log_shares(encode(x)), centres, roots)
    roots = torch.stack([_ordered_root(covariance) for covariance in posterior.covariances])
    return Gaussians(posterior.reweight, posterior.component_means, roots)


def gaussians(problem: Problem, t: float) -> Gaussians:
    """The law of Y_T given Y_t. Raises NoClosedForm where it is not a known mixture, or with a running reward."""
    process = problem.process
    if problem.running_reward is not None:
        raise NoClosedForm("a running reward depends on the whole path")
    if isinstance(process, ReverseProcess) and process.has_exact_score:
        s = process.noise_level(t)
        return _of_posterior(process.data_law.posterior(process.schedule.alpha(s), process.schedule.h(s)))
    step = affine_transition(process, t)
    return Gaussians(
        lambda x: torch.zeros(len(x), 1, dtype=torch.float64),
        lambda x: step.centre(x)[:, None],
        _ordered_root(step.covariance)[None],
    )
