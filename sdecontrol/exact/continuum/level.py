"""The value at one noise level, v/temperature = log sum_i omega_i(y) E_i(y), and its gradient.

Component i of the data law, N(mu_i, Sigma_i), has at level (a, h) the noised law N(a mu_i, S_i) with
S_i = a^2 Sigma_i + h I, responsibilities omega_i proportional to w_i N(y; a mu_i, S_i), and clean given noisy
N(mu_i + J_i (y - a mu_i), P_i). E_i is the expectation of e^{r/temperature} under the latter; for a quadratic
reward log E_i is quadratic in y (derived).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdecontrol.exact.quadratic import LogQuadratic, symmetric
from sdecontrol.laws import Gaussian, Law
from sdecontrol.laws.parameters import Coefficients
from sdecontrol.rewards import Quadratic, Reward


class Component:
    """One Gaussian N(mu, Sigma) of the data law; `reward` is f = r(mu + .)/temperature, a quadratic."""

    def __init__(self, law: Gaussian, reward: LogQuadratic):
        self.law, self.spectrum, self.reward = law, law.spectrum, reward

    @classmethod
    def of(cls, law: Gaussian, reward: Quadratic, temperature: float) -> Component:
        eye = torch.eye(law.dim, dtype=torch.float64)
        return cls(law, LogQuadratic.of(reward, 1 / temperature).compose(eye, law.mean))

    def scaled(self, factor: float) -> Component:
        """The same component with `factor` times the reward."""
        return Component(self.law, self.reward * factor)

    def noise(self, a: float, h: float) -> Tensor:
        """N (d, d) with N N' = P, the covariance of clean given noisy."""
        values = self.spectrum.values
        root = (h * values / (a * a * values + h)).sqrt()
        return torch.diag_embed(root) if self.spectrum.vectors is None else self.spectrum.vectors * root

    def gain(self, a: float, h: float) -> Tensor:
        """J = a Sigma S^-1 (d, d): the mean of clean given noisy is mu + J (y - a mu)."""
        values = self.spectrum.values
        return self.spectrum.matrix(a * values / (a * a * values + h))

    def growth(self, a: float, h: float) -> LogQuadratic:
        """log E(y) as a quadratic in y - a mu. Raises NotPositive where E is infinite."""
        f, gain = self.reward, self.gain(a, h)
        return f.expected(f.noise_law(self.noise(a, h))).compose(gain, torch.zeros_like(f.linear))

    def tilted_mean_reward(self, a: float, h: float) -> LogQuadratic:
        """E f under N(m, P) e^f / E = N(Q (m + P gamma), Q P), m = J (y - a mu): quadratic in y - a mu."""
        f, noise = self.reward, self.noise(a, h)
        factor = torch.eye(len(f.linear), dtype=torch.float64) + noise @ noise.mT @ f.curvature
        spread = noise @ f.noise_law(noise).root
        matrix = torch.linalg.solve(factor, self.gain(a, h))
        mean = f.compose(matrix, torch.linalg.solve(factor, noise @ (noise.mT @ f.linear)))
        return replace(mean, constant=mean.constant - float((f.curvature * (spread @ spread.mT)).sum()) / 2)

    def lowest(self, a: float, h: float) -> float:
        """Smallest eigenvalue of I + P^{1/2} K P^{1/2} / temperature: E is finite iff it is positive."""
        noise = self.noise(a, h)
        return 1 + float(torch.linalg.eigvalsh(symmetric(noise.mT @ self.reward.curvature @ noise))[0])


def about(growth: LogQuadratic, centre: Tensor) -> LogQuadratic:
    """The quadratic x -> growth(x - centre)."""
    return growth.compose(torch.eye(len(centre), dtype=torch.float64), -centre)


class Level(ABC):
    """v/temperature and its gradient at one noise level."""

    @abstractmethod
    def log_growth(self, x: Tensor) -> Tensor:
        """v/temperature = log E[e^{r/temperature} | Y = x]: (n, d) -> (n,)."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """grad v / temperature: (n, d) -> (n, d)."""


class DataLevel(Level):
    """The level of the data, s = 0, where v is the reward itself."""

    def __init__(self, reward: Reward, temperature: float):
        self.reward, self.temperature = reward, temperature

    def log_growth(self, x: Tensor) -> Tensor:
        return self.reward(x) / self.temperature

    def gradient(self, x: Tensor) -> Tensor:
        return self.reward.gradient(x) / self.temperature


class AffineLevel(Level):
    """A Gaussian data law and a quadratic reward: one quadratic in x - centre, its gradient affine."""

    def __init__(self, growth: LogQuadratic, centre: Tensor):
        self.growth, self.curvature = growth, growth.curvature
        self.slope = growth.linear + growth.curvature @ centre  # the gradient at 0
        self._terms = Coefficients(lambda: (centre, growth.curvature, growth.linear))

    def log_growth(self, x: Tensor) -> Tensor:
        centre, curvature, linear = self._terms.like(x)
        shifted = x - centre
        return self.growth.constant + shifted @ linear - ((shifted @ curvature) * shifted).sum(1) / 2

    def gradient(self, x: Tensor) -> Tensor:
        centre, curvature, linear = self._terms.like(x)
        return linear - (x - centre) @ curvature


class QuadraticLevel(Level):
    """A mixture and a quadratic reward: a difference of two logs of sums of exponentials of quadratics.

    In z_i = W_i (y - a mu_i), where W_i whitens the noised component and diagonalises log E_i,
    log omega_i = -|z_i|^2/2 + log w_i + log det W_i + ..., log E_i = c_i + l_i . z_i - sum_j n_ij z_ij^2 / 2,
    so the value costs one product with the stacked W (k d, d), the gradient one more with its transpose.
    """

    def __init__(self, log_weights: Tensor, components: list[Component], a: float, h: float):
        self._components, self._log_weights, self._a, self._h = components, log_weights, a, h
        self._terms = Coefficients(self._build)

    def _build(self) -> tuple[Tensor, ...]:
        rows = [self._whitened(component) for component in self._components]
        whitening, centre, masses, constants, linear, curvature = map(torch.stack, zip(*rows))
        stacked = whitening.flatten(0, 1)
        return stacked, -centre.flatten()[:, None], self._log_weights + masses, constants, linear, curvature

    def _whitened(self, component: Component) -> tuple[Tensor, ...]:
        growth, noised = component.growth(self._a, self._h), component.spectrum.noised(self._a, self._h)
        whitening = noised.whitening()
        inverse = whitening.mT * noised.values
        bent = growth.compose(inverse, torch.zeros_like(growth.linear))
        curvature, rotation = torch.linalg.eigh(bent.curvature)
        whitening = rotation.mT @ whitening
        constant = torch.tensor(growth.constant, dtype=torch.float64)
        centre = whitening @ (self._a * component.law.mean)
        return whitening, centre, -noised.log_det() / 2, constant, rotation.mT @ bent.linear, curvature

    def _expand(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (k, d, n), log of w_i N_i up to a shared constant (k, n), log E_i (k, n)."""
        stacked, shift, masses, constants, linear, curvature = self._terms.like(x)
        k, d = linear.shape
        z = torch.addmm(shift, stacked, x.mT).view(k, d, len(x))
        squares = torch.bmm(torch.stack([torch.ones_like(curvature), curvature], 1), z.square()) / -2
        tilt = torch.bmm(linear[:, None], z)[:, 0]
        return z, masses[:, None] + squares[:, 0], constants[:, None] + tilt + squares[:, 1]

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log omega_i(x) and log E_i(x): (n, d) -> (k, n) each."""
        _, density, growth = self._expand(x)
        return density.log_softmax(0), growth

    def log_growth(self, x: Tensor) -> Tensor:
        log_omega, growth = self.terms(x)
        return (log_omega + growth).logsumexp(0)

    def gradient(self, x: Tensor) -> Tensor:
        """sum_i W_i' [tilted omega_i (l_i - n_i z_i) - (tilted omega_i - omega_i) z_i]."""
        stacked, _, _, _, linear, curvature = self._terms.like(x)
        z, density, growth = self._expand(x)
        plain, tilted = density.softmax(0), (density + growth).softmax(0)
        pull = (
            tilted[:, None] * (linear[:, :, None] - curvature[:, :, None] * z) - (tilted - plain)[:, None] * z
        )
        return (stacked.mT @ pull.flatten(0, 1)).mT


class PosteriorLevel(Level):
    """Any reward that knows its Gaussian exponential moment; the gradient by reverse mode."""

    def __init__(self, law: Law, reward: Reward, temperature: float, a: float, h: float):
        self._posterior: Any = law.posterior(a, h)
        self._reward, self._temperature = reward, temperature

    def log_growth(self, x: Tensor) -> Tensor:
        y, p = x.to(torch.float64), self._posterior
        means = p.component_means(y)
        growth = [
            self._reward.log_expectation(means[:, i], covariance, self._temperature)
            for i, covariance in enumerate(p.covariances)
        ]
        return (p.reweight(y) + torch.stack(growth, 1)).logsumexp(1)

    def gradient(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().to(torch.float64).requires_grad_()
            return torch.autograd.grad(self.log_growth(y).sum(), y)[0].to(x.dtype)
