"""Brownian motion dY = sqrt(2) dB from a point and the reward r(x) = -log((1 + |x|^2)/2), in any dimension.

At strength lam = 1/temperature and with tau = T - t, e^{r/temperature} = (2/(1+|Y_T|^2))^lam is a mixture of Gaussian
functions, 1/(1+rho)^lam = int_0^inf s^{lam-1} e^{-s(1+rho)} ds / Gamma(lam), and E e^{-s rho} of the noncentral
chi-square rho = |x + sqrt(2 tau) Z|^2 is closed. So with q = 1 + 4 tau s

    h(t, x) = (2^lam / Gamma(lam)) int s^{lam-1} e^{-s} q^{-d/2} e^{-s |x|^2 / q} ds,
    grad v  = -(2/lam) x E_s[s/q],     E_{p_ft} r = log 2 - psi(lam) + E_s[log s],

E_s being the mean under the integrand (derived). The problem is the log-quadratic HJB equation of Han, Jentzen and E.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from scipy.special import digamma, gammaln
from torch import Tensor

from sdecontrol.exact.continuum.from_point import FromPoint
from sdecontrol.laws import Dirac, Gaussian, Law, TiltedLaw

AMPLITUDE = math.sqrt(2.0)
_ROWS = 1024  # points handled at once


class LogQuadraticReward:
    """r(x) = -log((1 + |x|^2) / 2): (n, d) -> (n,)."""

    def __call__(self, x: Tensor) -> Tensor:
        return math.log(2) - torch.log1p(x.square().sum(-1))


class LogQuadraticExact(FromPoint):
    """Every answer by one trapezoidal rule in y = log s, exponentially convergent: about 1e-14 relative."""

    def __init__(self, dim: int, strength: float, horizon: float = 1.0):
        super().__init__(horizon, 1 / strength, "the law has no closed moments")
        self.dim, self.strength = dim, strength
        self.start = Dirac(torch.zeros(dim, dtype=torch.float64))

    def _rule(self, tau: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes y = log s (m,) and log integrand in y (n, m); s^lam e^{-s} falls by e^-45 beyond both ends."""
        lam, square = self.strength, x.square().sum(1, keepdim=True)
        slowest = lam / (1 + 2 * tau * self.dim + float(square.max()))
        low, high = math.log(slowest) - 45 / lam - 5, math.log(2 * lam + 800)
        nodes = 1 + math.ceil((high - low) * math.sqrt(max(lam, 1.0)) / 0.15)
        y = torch.linspace(low, high, nodes, dtype=torch.float64)
        s = y.exp()
        q = 1 + 4 * tau * s
        return y, lam * y - s - self.dim / 2 * q.log() - s / q * square

    def log_growth(self, t: float, x: Tensor) -> Tensor:
        """v/temperature: (n, d) -> (n,)."""
        tau, lam = self.horizon - self._check_time(t), self.strength
        parts = []
        for part in x.to(torch.float64).split(_ROWS):
            y, log_f = self._rule(tau, part)
            parts.append(torch.logsumexp(log_f, 1) + torch.log(y[1] - y[0]))
        return torch.cat(parts) + lam * math.log(2) - float(gammaln(lam))

    def _control(self, t: float, x: Tensor) -> Tensor:
        """u* = sqrt(2) grad v / temperature = -2 sqrt(2) x E_s[s / (1 + 4 tau s)]."""
        tau, parts = self.horizon - self._check_time(t), []
        for part in x.to(torch.float64).split(_ROWS):
            y, log_f = self._rule(tau, part)
            s = y.exp()
            parts.append((torch.softmax(log_f, 1) @ (s / (1 + 4 * tau * s)))[:, None] * part)
        return (-2 * AMPLITUDE * torch.cat(parts)).to(x.dtype)

    @cached_property
    def path_kl(self) -> float:
        """lam E_{p_ft} r - log C."""
        y, log_f = self._rule(self.horizon, self.start.mean[None])
        mean = math.log(2) - float(digamma(self.strength)) + float(torch.softmax(log_f, 1)[0] @ y)
        return self.strength * mean - self.log_normalizer

    def _reference(self, t: float) -> Law:
        origin = self.start.mean
        return Gaussian(origin, torch.full_like(origin, AMPLITUDE**2 * t)) if t else self.start

    def marginal(self, t: float) -> Law:
        """N(0, 2 t) tilted by e^{v(t, .)/temperature}, which is at most 2^strength."""
        law = self._reference(self._check_time(t))
        if isinstance(law, Dirac):
            return law
        bound = self.strength * math.log(2)
        return TiltedLaw(law, lambda x: self.log_growth(t, x), self.log_normalizer, log_bound=bound)

    @property
    def reference(self) -> Law:
        return self._reference(self.horizon)

    @property
    def untilted_terminal(self) -> Law:
        return self.terminal
