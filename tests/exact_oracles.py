"""Routes to the optimum that share no formula with the library: quadrature on the line, ordinary differential
equations.

Only the definitions enter: X_s | X_0 = x ~ N(a x, h), the score of the noised data law, v = temperature log E
e^{r/temperature}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.special import logsumexp


def vp(s, low, high):
    """(alpha, h, beta) for beta linear in s on [0, 1]."""
    a = math.exp(-(low * s + (high - low) * s * s / 2) / 2)
    return a, 1 - a * a, low + (high - low) * s


def ve(s, low, high):
    """(alpha, h, dh/ds) for h = low^2 ((high/low)^{2s} - 1)."""
    grown = low**2 * (high / low) ** (2 * s)
    return 1.0, grown - low**2, grown * 2 * math.log(high / low)


def panels(edges, order=40):
    """Gauss-Legendre nodes and log weights on consecutive panels."""
    x, w = np.polynomial.legendre.leggauss(order)
    left, right = np.asarray(edges[:-1])[:, None], np.asarray(edges[1:])[:, None]
    nodes = (left + right) / 2 + (right - left) / 2 * x
    return nodes.ravel(), np.log(((right - left) / 2 * w).ravel())


def log_normal(y, mean, variance):
    return -((y - mean) ** 2) / (2 * variance) - 0.5 * np.log(2 * math.pi * variance)


@dataclass
class Line:
    """A one-dimensional problem on grids: log p_data on x, log p_noise on y, reward r(x)."""

    x: np.ndarray
    log_wx: np.ndarray
    y: np.ndarray
    log_wy: np.ndarray
    log_data: np.ndarray
    log_noise: np.ndarray
    reward: np.ndarray
    end: tuple
    temperature: float

    def value(self, y, a, h):
        kernel = self.log_wx + self.log_data + log_normal(np.asarray(y)[:, None], a * self.x, h)
        return self.temperature * (
            logsumexp(kernel + self.reward / self.temperature, axis=1) - logsumexp(kernel, axis=1)
        )

    def solve(self):
        """Everything about the optimum: a dict of numbers and of densities on the grids."""
        a, h = self.end[:2]
        joint = self.log_wx + self.log_data + log_normal(self.y[:, None], a * self.x, h)
        log_p_end = logsumexp(joint, axis=1)
        log_v0 = self.value(self.y, a, h) / self.temperature
        kernel = log_normal(self.y[:, None], a * self.x, h) - log_p_end[:, None]
        log_pre = self.log_data + logsumexp((self.log_wy + self.log_noise)[:, None] + kernel, axis=0)
        log_c = logsumexp(self.log_wx + log_pre + self.reward / self.temperature)
        log_ft = log_pre + self.reward / self.temperature - log_c
        log_nu = self.log_noise + log_v0 - log_c
        ft, nu = np.exp(self.log_wx + log_ft), np.exp(self.log_wy + log_nu)
        return {
            "log_c": log_c,
            "log_c_start": logsumexp(self.log_wy + self.log_noise + log_v0),
            "path_kl": float(ft @ self.reward) / self.temperature - log_c,
            "kl_initial": float(nu @ log_v0) - log_c,
            "objective_untilted": self.temperature * float(np.exp(self.log_wy + self.log_noise) @ log_v0),
            "log_pre": log_pre,
            "log_ft": log_ft,
            "log_nu": log_nu,
            "mean": float(ft @ self.x),
            "variance": float(ft @ self.x**2 - (ft @ self.x) ** 2),
        }


def riccati(drift, amplitude, curvature, linear, constant, temperature, horizon=1.0):
    """t -> (K, g, c): v = c + g.x - x'Kx/2 for dY = (A Y + b) dt + amplitude dB, no running reward; backwards
    from T.
    """
    d = len(linear)

    def rate(t, z):
        k, g = z[: d * d].reshape(d, d), z[d * d : -1]
        a, b = drift(t)
        s2 = amplitude(t) ** 2
        dk = -a.T @ k - k @ a + s2 * k @ k / temperature
        dg = -a.T @ g + k @ b + s2 * k @ g / temperature
        dc = -b @ g + s2 * np.trace(k) / 2 - s2 * g @ g / (2 * temperature)
        return np.concatenate([dk.ravel(), dg, [dc]])

    end = np.concatenate([np.ravel(curvature), linear, [constant]])
    sol = solve_ivp(rate, (horizon, 0.0), end, method="DOP853", rtol=1e-12, atol=1e-13, dense_output=True).sol

    def at(t):
        z = sol(t)
        return z[: d * d].reshape(d, d), z[d * d : -1], z[-1]

    return at


def moments(drift, control, amplitude, mean, covariance, horizon=1.0):
    """Mean and covariance at T and the energy E int |u|^2/2 of dY = (A Y + b + amplitude u) dt + amplitude
    dB, u = B y + c.
    """
    d = len(mean)

    def rate(t, z):
        m, v = z[:d], z[d:-1].reshape(d, d)
        (a, b), (gain, offset), g = drift(t), control(t), amplitude(t)
        f, u = a + g * gain, gain @ m + offset
        dv = f @ v + v @ f.T + g * g * np.eye(d)
        energy = (u @ u + np.trace(gain @ v @ gain.T)) / 2
        return np.concatenate([a @ m + b + g * u, dv.ravel(), [energy]])

    start = np.concatenate([mean, np.ravel(covariance), [0.0]])
    z = solve_ivp(rate, (0.0, horizon), start, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    return z[:d], z[d:-1].reshape(d, d), z[-1]


def gaussian_kl(m1, s1, m2, s2):
    """KL(N(m1, s1) || N(m2, s2))."""
    p = np.linalg.inv(s2)
    logdet = np.linalg.slogdet(s2)[1] - np.linalg.slogdet(s1)[1]
    return 0.5 * (np.trace(p @ s1) - len(m1) + (m2 - m1) @ p @ (m2 - m1) + logdet)


def hjb_residual(problem, x, times=(0.15, 0.6, 0.85), step=2e-3):
    """Relative residual of v_t + b.grad v + g^2 lap v / 2 + g^2 |grad v|^2 / (2 temperature) = 0, differences
    of order 4.
    """
    v, worst = problem.exact.value, 0.0
    weights = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    second = {-2: -1 / 12, -1: 4 / 3, 0: -5 / 2, 1: 4 / 3, 2: -1 / 12}
    for t in times:
        drift, g2 = problem.process.state(t, x).drift, problem.process.amplitude(t) ** 2
        v_t = sum(w * v(t + j * step / 4, x) for j, w in weights.items()) / (step / 4)
        terms, gradient = [v_t], []
        laplacian = torch.zeros(len(x), dtype=torch.float64)
        for i in range(x.shape[1]):
            e = torch.zeros(x.shape[1], dtype=torch.float64)
            e[i] = 5 * step
            gradient.append(sum(w * v(t, x + j * e) for j, w in weights.items()) / (5 * step))
            laplacian = laplacian + sum(w * v(t, x + j * e) for j, w in second.items()) / (5 * step) ** 2
        slope = torch.stack(gradient, 1)
        assert torch.allclose(
            problem.exact.control(t, x), slope * g2**0.5 / problem.temperature, rtol=1e-5, atol=1e-6
        )
        terms += [
            (drift * slope).sum(1),
            g2 * laplacian / 2,
            g2 * slope.square().sum(1) / (2 * problem.temperature),
        ]
        size = torch.stack([term.abs() for term in terms]).sum(0)
        worst = max(worst, float((sum(terms).abs() / size.clamp(min=1e-3)).max()))
    return worst
