"""A problem in its latent coordinates, in plain numpy: what the control claims compare the library with."""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import NotApplicable
from sdecontrol.claims.routes.ode import Feedback, LinearSDE, check_smooth
from sdecontrol.claims.routes.output import latent_data
from sdecontrol.claims.routes.plain import Cloud, Frame, GaussianSum, Quadric, whole
from sdecontrol.claims.routes.posterior import Clean, exponent, gaussian, noised, tilted_mass
from sdecontrol.claims.routes.quadrature import SPACING, Array
from sdecontrol.controls import AffineControl, Control
from sdecontrol.laws import Dirac, Gaussian, GaussianMixture, Law, NoisySubspace
from sdecontrol.processes import Process, ReverseProcess

FINE, COARSER = 0.3, 0.4  # spacings, in standard deviations, of the rule over the start


class Latent:
    """A problem in the coordinates z = B'(y - alpha(s) o) in which its reward and its control live (derived).

    `data` is the data law there (None when the score is not exact), `rho` the reward over the temperature. Without a
    subspace z is y. Raises NotApplicable for images, and for laws that the second route does not know.
    """

    def __init__(self, problem: Any):
        self.process: Process = problem.process
        if len(self.process.event_shape) != 1:
            raise NotApplicable(f"the second route works on vectors, not on events {self.process.event_shape}")
        self.data: GaussianSum | None = None
        self.frame: Frame = whole(self.process.dim)
        if isinstance(self.process, ReverseProcess) and self.process.has_exact_score:
            self.data, self.frame = latent_data(self.process.data_law)
        self._problem = problem
        self.dim: int = self.frame.basis.shape[1]
        self.codimension = self.process.dim - self.dim

    @staticmethod
    @lru_cache(maxsize=2)
    def of(problem: Any) -> Latent:
        """That of a problem, made once: nothing in it depends on the answers in question."""
        return Latent(problem)

    @cached_property
    def rho(self) -> Quadric:
        return self.frame.restrict(exponent(self._problem.reward, self._problem.temperature))

    @cached_property
    def running(self) -> Quadric | None:
        """The running reward over the temperature. Raises NotApplicable unless it is quadratic."""
        reward = self._problem.running_reward
        return None if reward is None else self.frame.restrict(exponent(reward, self._problem.temperature))

    def rho_mean(self, mean: Array, covariance: Array) -> float:
        """E r / temperature for a law of these two moments."""
        return float(self.rho(mean) - (self.rho.curvature * covariance).sum() / 2)

    def level(self, t: float) -> tuple[float, float]:
        """alpha and h at generation time t; (1, 0) where there is no schedule."""
        if not isinstance(self.process, ReverseProcess):
            return 1.0, 0.0
        s = self.process.noise_level(t)
        return self.process.schedule.alpha(s), self.process.schedule.h(s)

    def noised(self, law: GaussianSum, t: float) -> GaussianSum:
        """A law of clean data noised to the level of time t."""
        return noised(law, *self.level(t))

    def encode(self, t: float, y: Any) -> Array:
        """(n, D) -> (n, d)."""
        return (np.asarray(y) - self.level(t)[0] * self.frame.offset) @ self.frame.basis

    def lift(self, t: float, z: Array) -> Tensor:
        """(n, d) -> (n, D), on the subspace."""
        return torch.as_tensor(self.level(t)[0] * self.frame.offset + z @ self.frame.basis.T)

    def inside(self, vectors: Tensor) -> Array:
        """Directions in latent coordinates: (n, D) -> (n, d)."""
        return vectors.numpy() @ self.frame.basis

    def moments(self, t: float, law: Law) -> tuple[Array, Array]:
        """Mean and covariance of a law at time t in these coordinates."""
        basis = self.frame.basis
        return self.encode(t, law.mean.numpy()), basis.T @ law.covariance.numpy() @ basis

    @cached_property
    def start(self) -> GaussianSum:
        """p_noise in these coordinates. Raises NotApplicable for a point, which cannot be tilted."""
        if self.matched:
            return noised(self.known_data, *self.level(0.0))
        law = self.process.initial_law(0.0)
        if isinstance(law, Dirac):
            raise NotApplicable("the start is a point, so there is no initial law to tilt")
        if isinstance(law, GaussianMixture):
            parts = [(float(w), c) for w, c in zip(law.log_weights, law.components)]
            moved = [(w, *self.moments(0.0, c)) for w, c in parts]
            return GaussianSum(tuple(Cloud(np.array([w]), m[None], c) for w, m, c in moved))
        return gaussian(*self.moments(0.0, law))

    @property
    def matched(self) -> bool:
        """Whether the start is the noised data law, so that Q_t is the data law noised to every level."""
        return isinstance(self.process, ReverseProcess) and self.process.initial == "marginal"

    @property
    def known_data(self) -> GaussianSum:
        if self.data is None:
            raise NotApplicable("the score is not the exact score of a known law")
        return self.data

    def clean(self, t: float) -> Clean:
        """The law of Y_T given Y_t, by the second route."""
        return Clean.of(self.known_data, *self.level(t))

    @property
    def by_rule(self) -> bool:
        """Whether Q_t is a mixture over the nodes of a rule for the start, not exact in itself."""
        return not self.matched and len(self.known_data.clouds) > 1

    def log_normalizer(self) -> tuple[float, float]:
        """log E_{p_pre} e^rho by quadrature, and the error of the rules."""
        return self._log_normalizer

    @cached_property
    def _log_normalizer(self) -> tuple[float, float]:
        mass, error = tilted_mass(self.reference(self.process.horizon), self.rho)
        if self.by_rule:
            error += abs(mass - self.reference(self.process.horizon, COARSER).log_mass(self.rho, SPACING))
        return mass, error

    def reference(self, t: float, spacing: float = FINE) -> GaussianSum:
        """Q_t by the second route: the start, or the nodes of a rule for it, pushed through the posterior of X_s."""
        process, data = self.process, self.known_data
        assert isinstance(process, ReverseProcess)
        if self.matched:
            return noised(self.known_data, *self.level(t))
        if t == 0.0:
            return self.start
        s, end = process.noise_level(t), process.horizon
        ratio, q = process.schedule.ratio(end, s), process.schedule.transition_variance(end, s)
        data = data if s == 0 else self.noised(data, t)
        return Clean.of(data, ratio, q).pushed(*self.gaussian_start, spacing)

    def log_normal(self, t: float, x: Tensor) -> Array:
        """log density under Q_t of the coordinates off the subspace, which no tilt changes: (n,)."""
        process = self.process
        if self.codimension == 0 or t == process.horizon:
            return np.zeros(len(x))
        assert isinstance(process, ReverseProcess)
        law, basis = process.initial_law(0.0), self.frame.basis
        normal = np.eye(process.dim) - basis @ basis.T
        variance = float(np.sum(normal * law.covariance.numpy())) / self.codimension
        shift = normal @ (law.mean.numpy() - self.level(0.0)[0] * self.frame.offset)
        if t > 0:  # off the subspace the data are a point
            s, end = process.noise_level(t), process.horizon
            ratio, q = process.schedule.ratio(end, s), process.schedule.transition_variance(end, s)
            h, total = self.level(t)[1], self.level(0.0)[1]
            gain = ratio * h / total
            variance, shift = q * h / total + gain**2 * variance, gain * shift
        y = (x.numpy() - self.level(t)[0] * self.frame.offset) @ normal - shift
        return -((y**2).sum(1) / variance + self.codimension * math.log(2 * math.pi * variance)) / 2

    @cached_property
    def gaussian_start(self) -> tuple[Array, Array]:
        if len(self.start.weights) > 1:
            raise NotApplicable("the initial law is not Gaussian")
        return self.start.mean, self.start.clouds[0].covariance

    @cached_property
    def sde(self) -> LinearSDE:
        """The reference dynamics of z where they are affine."""
        check_smooth(self.process)
        if self.data is None:
            return LinearSDE(self.dim, self.process.horizon, self._given_drift, self.process.amplitude)
        if len(self.data.clouds) > 1:
            raise NotApplicable("the moment equations close for affine dynamics only, and this score is not affine")
        return LinearSDE(self.dim, self.process.horizon, self._score_drift, self.process.amplitude)

    def _given_drift(self, t: float) -> Feedback:
        matrix, offset = self.process.affine_drift(t)
        return matrix.numpy(), offset.numpy()

    def _score_drift(self, t: float) -> Feedback:
        """-f z - g2 S^-1 (z - a mu)."""
        a, h = self.level(t)
        cloud = self.known_data.clouds[0]
        inverse = np.linalg.inv(a * a * cloud.covariance + h * np.eye(self.dim))
        gain = self.process.field_gain(t)
        return self.process.linear_rate(t) * np.eye(self.dim) - gain * inverse, gain * a * inverse @ cloud.means[0]

    def spread(self, t: float) -> float:
        """Typical standard deviation of a coordinate at time t."""
        a, h = self.level(t)
        return math.sqrt(a * a * self.size + h)

    def narrowest(self, t: float) -> float:
        """The smallest standard deviation of the noised data at time t, over components and directions."""
        if self.data is None:
            return self.spread(t)
        a, h = self.level(t)
        return math.sqrt(a * a * self._smallest + h)

    @cached_property
    def _smallest(self) -> float:
        return min(float(np.linalg.eigvalsh(c.covariance)[0]) for c in self.known_data.clouds)

    def level_at_share(self, share: float) -> float:
        """The noise level at which S h / (a^2 S + h), S the typical variance of the data, is `share` of S itself.

        It is the posterior variance: the clock in which the energy of a control with a smooth reward runs evenly.
        """
        process = self.process
        if not isinstance(process, ReverseProcess):
            raise NotApplicable("the clock of the posterior variance needs a noise schedule")
        return process.schedule.noise_level_at(math.log((1 - share) / (share * self.size)))

    def share(self, t: float) -> float:
        """The share of time t, see `level_at_share`."""
        a, h = self.level(t)
        return h / (a * a * self.size + h)

    @cached_property
    def size(self) -> float:
        """Typical variance of a coordinate of the data, or of the start where no data law is known."""
        law = self.start if self.data is None else self.data
        return float(np.trace(law.covariance)) / self.dim

    def draw(self, t: float, n: int, rng: np.random.Generator, widen: float = 1.0) -> Tensor:
        """n states at time t about where the reference process is, `widen` times as far out: (n, D)."""
        a, h = self.level(t)
        law = noised(self.data, a, h) if self.data is not None else self.start
        z = law.mean + widen * (law.draw(n, rng) - law.mean)
        normal = rng.standard_normal((n, self.process.dim)) * math.sqrt(h)
        normal -= normal @ self.frame.basis @ self.frame.basis.T
        return self.lift(t, z) + torch.as_tensor(normal if self.codimension else 0 * normal)

    def read(self, control: Any, t: float) -> Feedback:
        """(gain, offset) of an affine control in these coordinates, from its values at d + 1 points."""
        points = self.lift(t, np.vstack([np.zeros(self.dim), np.eye(self.dim)]))
        u = control(t, points).numpy() @ self.frame.basis
        return (u[1:] - u[0]).T, u[0]

    def control(self, feedback: Any) -> Control:
        """The library's control u = B (gain z + offset) of a feedback t -> (gain, offset)."""
        basis, offset = self.frame.basis, self.frame.offset

        def gain(t: float) -> Tensor:
            return torch.as_tensor(basis @ feedback(t)[0] @ basis.T)

        def shift(t: float) -> Tensor:
            matrix, push = feedback(t)
            return torch.as_tensor(basis @ (push - matrix @ basis.T @ (self.level(t)[0] * offset)))

        return AffineControl(gain, shift)

    def moved_start(self, scale: float, shift: Array) -> Law:
        """p_noise with its latent coordinates scaled and shifted, on the whole space."""
        law, basis = self.process.initial_law(0.0), self.frame.basis
        if isinstance(law, NoisySubspace):
            mean, covariance = self.gaussian_start
            inner = Gaussian(scale * mean + shift, scale**2 * covariance)
            return NoisySubspace(law.basis, inner, law.variance, law.offset)
        turn = np.eye(self.process.dim) + (scale - 1) * basis @ basis.T
        covariance = turn @ law.covariance.numpy() @ turn.T
        centre = self.level(0.0)[0] * self.frame.offset
        mean = centre + turn @ (law.mean.numpy() - centre) + basis @ shift
        return Gaussian(mean, (covariance + covariance.T) / 2)
