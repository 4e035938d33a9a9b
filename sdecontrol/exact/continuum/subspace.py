"""Data on an affine subspace {offset + B u}: the problem of the latent coordinates z = B'(y - a offset).

v(t, y) = v_latent(t, z), u* = B u*_latent(z), log C and every KL are the latent ones; p_pre and p_ft live on
the subspace, nu* and Q*_t carry on the normal coordinates what Q has there (derived).
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from sdecontrol.controls import Control
from sdecontrol.exact.continuum.base import ContinuumExact
from sdecontrol.exact.continuum.score import GaussianScore, ScoreExact
from sdecontrol.exact.pushforward import gaussian_law, gaussian_parameters
from sdecontrol.exact.quadratic import symmetric
from sdecontrol.laws import Dirac, Gaussian, GaussianMixture, Isotropic, Law, NoisySubspace, Subspace
from sdecontrol.laws.frame import Frame
from sdecontrol.laws.parameters import apply
from sdecontrol.rewards import Quadratic
from sdecontrol.schedules import Schedule
from sdecontrol.step import StepView


class SubspaceControl(Control):
    """u = B u_latent(t, B'(x - a offset)): O(D d) a path."""

    elementwise = True

    def __init__(self, frame: Frame, schedule: Schedule, latent: Control):
        self.frame, self.schedule, self.latent = frame, schedule, latent

    def _scale(self, t: float) -> float:
        return self.schedule.alpha(self.schedule.horizon - t)

    def at(self, t: float, x: Tensor) -> Tensor:
        return apply(self.frame.basis.to(x), self.latent.at(t, self.frame.encode(x, self._scale(t))))

    def shift(self, step: StepView) -> Tensor:
        return self.at(step.t, step.x)

    def affine_at(self, t: float) -> tuple[Tensor, Tensor]:
        gain, offset = self.latent.affine_at(t)
        basis = self.frame.basis
        lifted = basis @ gain @ basis.mT
        return lifted, basis @ offset - self._scale(t) * lifted @ self.frame.offset


class SubspaceScore(ContinuumExact):
    """Lifts the latent answers; `start` is p_noise on R^D, None for the noised data law."""

    def __init__(self, subspace: Subspace, latent: ScoreExact, start: Law | None):
        super().__init__(latent.horizon, latent.temperature, latent.reason)
        self.frame, self.latent, self.start, self.schedule = subspace.frame, latent, start, latent.schedule
        self.dtype = subspace.dtype

    def check_existence(self) -> None:
        self.latent.check_existence()

    def value(self, t: float, x: Tensor) -> Tensor:
        scale = self.schedule.alpha(self.horizon - self._check_time(t))
        return self.latent.value(t, self.frame.encode(x.to(torch.float64), scale))

    @cached_property
    def control(self) -> Control:
        return SubspaceControl(self.frame, self.schedule, self.latent.control).of_the_continuum()

    @property
    def log_normalizer(self) -> float:
        return self.latent.log_normalizer

    @property
    def log_normalizer_error(self) -> float:
        return self.latent.log_normalizer_error

    @property
    def path_kl(self) -> float:
        return self.latent.path_kl

    @property
    def kl_initial(self) -> float:
        return self.latent.kl_initial

    @property
    def objective_untilted(self) -> float:
        return self.latent.objective_untilted

    def _on_subspace(self, latent: Law) -> Law:
        return Subspace.from_frame(self.frame, latent, self.dtype)

    @cached_property
    def reference(self) -> Law:
        return self._on_subspace(self.latent.reference)

    @cached_property
    def untilted_terminal(self) -> Law:
        return self._on_subspace(self.latent.untilted_terminal)

    def marginal(self, t: float) -> Law:
        """Latent Q*_t times the normal part of Q_t for an isotropic p_noise; at t = 0 from any Gaussian."""
        s = self.horizon - self._check_time(t)
        if s == 0:
            return self._on_subspace(self.latent.marginal(t))
        if s == self.horizon and isinstance(self.start, Dirac):
            return self.start
        normal = self._normal(s)
        if normal is not None:
            return self._around(s, self.latent.marginal(t), *normal)
        if s == self.horizon and isinstance(self.latent, GaussianScore) and self.start is not None:
            return self.start.tilt(self._first_growth(self.latent), 1.0)
        raise self._no("the law of Y_t off the subspace, from a start that is not isotropic there,")

    def _around(self, s: float, latent: Law, mean: Tensor, variance: float) -> Law:
        """Coordinates z = B'(y - a offset) with that latent law; normal part N(mean, variance)."""
        basis = self.frame.basis
        centre = self.schedule.alpha(s) * basis @ (basis.mT @ self.frame.offset) + mean
        return NoisySubspace.from_frame(self.frame.through(centre), 1.0, latent, variance, self.dtype)

    def _normal(self, s: float) -> tuple[Tensor, float] | None:
        """Mean (D,) and variance of the normal coordinates of Y_t under Q; None where they are not isotropic.

        There the data is a point: Y_t given Y_0 has the gain ratio h_s/h_T and the variance h_s q/h_T.
        """
        schedule, end = self.schedule, self.schedule.horizon
        off_span = self._off_span(self.frame.offset)
        if self.start is None:
            return schedule.alpha(s) * off_span, schedule.h(s)
        variance = _isotropic_variance(self.start)
        if variance is None:
            return None
        gain = schedule.ratio(end, s) * schedule.h(s) / schedule.h(end)
        own = schedule.h(s) * schedule.transition_variance(end, s) / schedule.h(end)
        surplus = self._off_span(self.start.mean) - schedule.alpha(end) * off_span
        return schedule.alpha(s) * off_span + gain * surplus, own + gain**2 * variance

    def _off_span(self, x: Tensor) -> Tensor:
        return self.frame.normal(x[None])[0]

    def _first_growth(self, latent: GaussianScore) -> Quadratic:
        """v(0, .)/temperature on R^D, as a reward at temperature 1."""
        a, basis = self.schedule.alpha(self.horizon), self.frame.basis
        return latent.first_growth.compose(basis.mT, -a * basis.mT @ self.frame.offset).as_reward()


def latent_start(frame: Frame, start: Law, scale: float) -> Law:
    """The law of B'(Y_0 - scale offset); where that is not closed `start` itself, which no flow knows."""
    basis, variance = frame.basis, _isotropic_variance(start)
    if isinstance(start, GaussianMixture):
        return start.affine(basis.mT, -scale * basis.mT @ frame.offset)
    if variance is not None:
        mean = basis.mT @ (start.mean - scale * frame.offset)
        return Gaussian(mean, torch.full_like(mean, variance)) if variance else Dirac(mean)
    parameters = gaussian_parameters(start)
    if parameters is None:
        return start
    mean, covariance = parameters
    return gaussian_law(basis.mT @ (mean - scale * frame.offset), symmetric(basis.mT @ covariance @ basis))


def _isotropic_variance(law: Law) -> float | None:
    """The variance of an isotropic Gaussian or a point; None for any other law."""
    if isinstance(law, Dirac):
        return 0.0
    if isinstance(law, Isotropic):
        return law.variance
    if isinstance(law, Gaussian) and not bool((law.eigenvalues != law.eigenvalues[0]).any()):
        return float(law.eigenvalues[0])
    return None
