"""Mixtures at every noise level in plain numpy: the second route of the control claims for exact scores.

A problem is read as the numbers that define it; noised laws, scores and posteriors are computed again by dense inverses
(the library uses spectra), Gaussian integrals by the trapezoidal rule (the library completes squares). A law here is a
`GaussianSum` whose clouds are its components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from sdecontrol.claims.base import NotApplicable
from sdecontrol.claims.routes.plain import Cloud, GaussianSum, Quadric
from sdecontrol.claims.routes.quadrature import LOG_2PI, OTHER_SPACING, SPACING, Array, log_sum_exp, normal_nodes
from sdecontrol.rewards import as_quadratic

_TILTED_RADIUS = 13.0  # standard deviations: room for laws that lie four away
_LARGEST_RULE = 2  # dimensions up to which expectations are taken by a product rule


def exponent(reward: Any, temperature: float) -> Quadric:
    """r/temperature. Raises NotApplicable unless r is quadratic."""
    quadratic = as_quadratic(reward)
    if quadratic is None:
        raise NotApplicable(f"the second route knows quadratic rewards, not {type(reward).__name__}")
    return Quadric(quadratic.constant, quadratic.linear.numpy(), quadratic.curvature.numpy()).times(1 / temperature)


def noised(law: GaussianSum, a: float, h: float) -> GaussianSum:
    """The law of a X + sqrt(h) Z."""
    eye = np.eye(law.dim)
    return GaussianSum(tuple(Cloud(c.log_weights, a * c.means, a * a * c.covariance + h * eye) for c in law.clouds))


def score(law: GaussianSum, x: Array) -> Array:
    """grad log p: (n, d) -> (n, d)."""
    log_terms = np.hstack([c.log_terms(x) for c in law.clouds])
    share = np.exp(log_terms - log_sum_exp(log_terms, axis=1)[:, None])
    total, start = np.zeros_like(x), 0
    for cloud in law.clouds:
        part = share[:, start : start + len(cloud.means)]
        start += len(cloud.means)
        pull = part @ cloud.means - part.sum(1, keepdims=True) * x
        total += scipy.linalg.solve(cloud.covariance, pull.T, assume_a="pos").T
    return total


@dataclass(frozen=True, eq=False)
class Clean:
    """X given a X + sqrt(h) Z = y: component i is N(offset_i + gain_i y, covariance_i), of probability omega_i(y)."""

    noisy: GaussianSum
    offsets: Array
    gains: Array
    covariances: Array

    @classmethod
    def of(cls, law: GaussianSum, a: float, h: float) -> Clean:
        """P_i = (Sigma_i^-1 + a^2/h I)^-1, gain a/h P_i, offset P_i Sigma_i^-1 mu_i; one mean a cloud."""
        inverses = np.stack([scipy.linalg.inv(c.covariance) for c in law.clouds])
        covariances = np.linalg.inv(inverses + a * a / h * np.eye(law.dim))
        means = np.stack([c.means[0] for c in law.clouds])
        offsets = np.einsum("kij,kjl,kl->ki", covariances, inverses, means)
        return cls(noised(law, a, h), offsets, a / h * covariances, covariances)

    def means(self, y: Array) -> Array:
        """(n, d) -> (k, n, d)."""
        return self.offsets[:, None] + np.einsum("kij,nj->kni", self.gains, y)

    def log_omega(self, y: Array) -> Array:
        """(n, d) -> (k, n)."""
        log_terms = np.hstack([c.log_terms(y) for c in self.noisy.clouds]).T
        return log_terms - log_sum_exp(log_terms, axis=0)

    def log_growth(self, rho: Quadric, y: Array) -> Array:
        """log E[e^rho(X) | y]: (n, d) -> (n,), the Gaussian integrals by quadrature."""
        zero = np.zeros(len(y))
        growth = [Cloud(zero, m, c).log_masses(rho, SPACING) for m, c in zip(self.means(y), self.covariances)]
        return log_sum_exp(self.log_omega(y) + np.stack(growth), axis=0)

    def mean(self, rho: Quadric, y: Array) -> Array:
        """E[rho(X) | y]: (n, d) -> (n,)."""
        spread = np.einsum("ij,kji->k", rho.curvature, self.covariances) / 2
        inside = np.stack([rho(m) - c for m, c in zip(self.means(y), spread)])
        return (np.exp(self.log_omega(y)) * inside).sum(0)

    def mean_gradient(self, rho: Quadric, y: Array) -> Array:
        """grad_y E[rho(X) | y]: (n, d) -> (n, d), by the product rule on sum_i omega_i E_i[rho]."""
        omega, means = np.exp(self.log_omega(y)), self.means(y)
        spread = np.einsum("ij,kji->k", rho.curvature, self.covariances) / 2
        inside = np.stack([rho(m) - c for m, c in zip(means, spread)])
        average = (omega * inside).sum(0)
        total = np.zeros_like(y)
        for i, cloud in enumerate(self.noisy.clouds):
            slope = (rho.linear - means[i] @ rho.curvature) @ self.gains[i]
            pull = scipy.linalg.solve(cloud.covariance, (cloud.means[0] - y).T, assume_a="pos").T
            total += omega[i][:, None] * (slope + (inside[i] - average)[:, None] * pull)
        return total

    def draw(self, y: Array, n: int, rng: np.random.Generator) -> Array:
        """n draws of X given one y: (1, d) -> (n, d)."""
        omega = np.exp(self.log_omega(y)[:, 0])
        counts, parts = rng.multinomial(n, omega / omega.sum()), []
        for count, mean, covariance in zip(counts, self.means(y)[:, 0], self.covariances):
            parts.append(mean + rng.standard_normal((count, len(mean))) @ np.linalg.cholesky(covariance).T)
        return rng.permutation(np.concatenate(parts))

    def given(self, nodes: Array, log_weights: Array) -> GaussianSum:
        """The law of X when y is one of the nodes (n, d), of log probabilities (n,)."""
        parts = zip(self.log_omega(nodes), self.means(nodes), self.covariances)
        return GaussianSum(tuple(Cloud(log_weights + w, m, (c + c.T) / 2) for w, m, c in parts))

    def pushed(self, mean: Array, covariance: Array, spacing: float) -> GaussianSum:
        """The law of X when y ~ N(mean, covariance): a Gaussian for one component, else over the nodes of a rule."""
        if len(self.offsets) > 1:
            return self.given(*start_nodes(mean, covariance, spacing))
        gain = self.gains[0]
        spread = self.covariances[0] + gain @ covariance @ gain.T
        return GaussianSum((Cloud(np.zeros(1), (self.offsets[0] + gain @ mean)[None], (spread + spread.T) / 2),))


def start_nodes(mean: Array, covariance: Array, spacing: float) -> tuple[Array, Array]:
    """Nodes and log weights of a rule for N(mean, covariance) in one and two dimensions, wide enough to be tilted."""
    d = len(mean)
    if d > _LARGEST_RULE:
        raise NotApplicable('a mixture started from a Gaussian has a second route in one and two dimensions only; '
                            'pass initial="marginal"')  # fmt: skip
    line = np.arange(-_TILTED_RADIUS, _TILTED_RADIUS + spacing / 2, spacing)
    z = np.stack(np.meshgrid(*[line] * d, indexing="ij"), -1).reshape(-1, d)
    square = (z * z).sum(1)
    z, square = z[square <= _TILTED_RADIUS**2], square[square <= _TILTED_RADIUS**2]
    log_weights = d * (np.log(spacing) - LOG_2PI / 2) - square / 2
    return mean + z @ scipy.linalg.cholesky(covariance, lower=True).T, log_weights


def rule(law: GaussianSum, spacing: float = SPACING) -> tuple[Array, Array]:
    """Nodes (n, d) and weights (n,) for expectations: a product rule a component, in one and two dimensions."""
    if law.dim > _LARGEST_RULE or len(law.weights) > 100:
        raise NotApplicable("expectations by quadrature are for a few components in one and two dimensions")
    z, weights = normal_nodes(law.dim, spacing)
    nodes = [m + z @ scipy.linalg.cholesky(c.covariance, lower=True).T for c in law.clouds for m in c.means]
    return np.concatenate(nodes), np.outer(law.weights, weights).ravel()


def tilted_mass(law: GaussianSum, rho: Quadric) -> tuple[float, float]:
    """log E_law e^rho and the error of its rule."""
    mass = law.log_mass(rho, SPACING)
    return mass, abs(mass - law.log_mass(rho, OTHER_SPACING))


def gaussian(mean: Array, covariance: Array) -> GaussianSum:
    return GaussianSum((Cloud(np.zeros(1), mean[None], covariance),))


def gaussian_kl(first: tuple[Array, Array], second: tuple[Array, Array]) -> float:
    """KL(N(m1, S1) || N(m2, S2)) by Cholesky factors. Raises NotApplicable for singular covariances."""
    (m1, s1), (m2, s2) = first, second
    try:
        l1, l2 = np.linalg.cholesky(s1), np.linalg.cholesky(s2)
    except np.linalg.LinAlgError as error:
        raise NotApplicable("a Gaussian law with a singular covariance has no density") from error
    ratio = scipy.linalg.solve_triangular(l2, l1, lower=True)
    shift = scipy.linalg.solve_triangular(l2, m2 - m1, lower=True)
    return float((np.sum(ratio**2) + shift @ shift - len(m1)) / 2 - np.log(np.diag(ratio)).sum())
