"""Diffusions in a potential on the line, dX = -V'(X) dt + g dB, by the spectrum of their generator.

With w = e^{-V/g^2}, the square root of the stationary density, phi = w h turns the backward equation of
h(tau, x) = E[f(X_tau) | X_0 = x] into a Schroedinger equation with real spectrum,

    phi_tau = -H phi,   H = -(g^2/2) d^2/dx^2 + V'^2 / (2 g^2) - V''/2,   phi(0) = w f,

and H is a symmetric matrix on the sinc functions of an equidistant grid: exponentially convergent, every tau
from one eigendecomposition (derived; the sinc basis is the discrete-variable one of quantum mechanics).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from sdecontrol.errors import NotDefined, check

Line = Callable[[Tensor], Tensor]
_NODES = 384
_HEIGHT = 80.0  # V/g^2 above its minimum at the ends of the grid: w falls to e^-80 there
_VISIBLE = 1e-9  # of the largest |phi|: where phi is smaller, h = phi/w has lost all but 6 of its digits
_ROWS = 8192  # points interpolated at once


class LineSpectrum:
    """E[f(X_T) | X_t = x] and its logarithmic derivative for dX = -V' dt + g dB and a positive f.

    potential, slope, bend: V, V', V'' on tensors (n,); log_f: log f. The grid is [-reach, reach] with V(reach)/g^2
    80 above the minimum of V. Accuracy: 1e-13 relative where the process goes, falling as 1e-15 max|phi|/|phi(x)|
    further out, and NotDefined beyond 1e-6.
    """

    def __init__(self, potential: Line, slope: Line, bend: Line, log_f: Line, amplitude: float = 1.0):
        self.potential, self.slope, self.log_f, self.g2 = potential, slope, log_f, amplitude**2
        reach = _reach(lambda x: potential(x) / self.g2)
        self.nodes = torch.linspace(-reach, reach, _NODES, dtype=torch.float64)
        self.width = float(self.nodes[1] - self.nodes[0])
        k = torch.arange(_NODES, dtype=torch.float64)
        apart = k[:, None] - k
        sign = 1 - 2 * (apart.abs() % 2)
        kinetic = torch.where(apart == 0, math.pi**2 / 3, 2 * sign / apart.square().clamp(min=1)) / self.width**2
        well = slope(self.nodes).square() / (2 * self.g2) - bend(self.nodes) / 2
        self.energies, self.modes = torch.linalg.eigh(self.g2 / 2 * kinetic + torch.diag(well))
        self.floor = float(potential(self.nodes).min()) / self.g2
        self.log_root = -potential(self.nodes) / self.g2 + self.floor  # log w, largest value 0
        self._wave = lru_cache(maxsize=1024)(self._wave_at)
        self._spline = lru_cache(maxsize=1024)(self._spline_at)

    def _wave_at(self, tau: float, weighted: bool) -> Tensor:
        """phi(tau) at the nodes, from f or, `weighted`, from f log f."""
        start = torch.exp(self.log_root + self.log_f(self.nodes))
        start = start * self.log_f(self.nodes) if weighted else start
        return self.modes @ (torch.exp(-self.energies * tau) * (self.modes.mT @ start))

    def _spline_at(self, tau: float) -> tuple[Tensor, Any, Any]:
        """phi(tau) at the nodes, the spline through it and its derivative."""
        wave = self._wave(tau, False)
        spline = make_interp_spline(self.nodes.numpy(), wave.numpy(), k=7)
        return wave, spline, spline.derivative()

    def log_h(self, tau: float, x: Tensor) -> Tensor:
        """log E[f(X_tau) | X_0 = x]: (n,) -> (n,)."""
        if tau == 0:
            return self.log_f(x)
        wave = self._wave(tau, False)
        phi = torch.cat([torch.sinc(self._offsets(part)) @ wave for part in x.split(_ROWS)])
        return self._log(phi, wave, x) + self.potential(x) / self.g2 - self.floor

    def slope_of_log_h(self, tau: float, x: Tensor) -> Tensor:
        """d/dx log E[f(X_tau) | X_0 = x]: phi'/phi + V'/g^2, (n,) -> (n,).

        phi at the nodes is interpolated by a spline of degree 7, fast and accurate to 1e-9 of the slope's scale.
        tau = 0 is the limit, by automatic differentiation of log f.
        """
        if tau == 0:
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                return torch.autograd.grad(self.log_f(y).sum(), y)[0]
        wave, spline, derivative = self._spline(tau)
        inside = x.abs() <= float(self.nodes[-1])
        phi = torch.where(inside, torch.from_numpy(spline(x.numpy())), 0.0)
        self._log(phi, wave, x)
        return torch.from_numpy(derivative(x.numpy())) / phi + self.slope(x) / self.g2

    def tilted_mean(self, tau: float, x: Tensor) -> Tensor:
        """E[f log f (X_tau)] / E[f(X_tau)] given X_0 = x, tau > 0: the mean of log f under the tilt by f."""
        values = torch.sinc(self._offsets(x))
        return (values @ self._wave(tau, True)) / (values @ self._wave(tau, False))

    def _offsets(self, x: Tensor) -> Tensor:
        return (x[:, None] - self.nodes) / self.width

    def _log(self, phi: Tensor, wave: Tensor, x: Tensor) -> Tensor:
        lost = ~(phi > _VISIBLE * wave.max())
        if bool(lost.any()):
            raise NotDefined(
                f"the spectral solution has lost its digits at x = {float(x[lost][0]):.6g}, where the reference "
                "process hardly ever is; wanted states inside its wells. Out there, solve the equation on a grid."
            )
        return phi.log()


def _reach(potential: Line) -> float:
    """The smallest half-width from which the potential stays 80 above its minimum, for a confining potential."""
    x = torch.linspace(0, 100, 200_001, dtype=torch.float64)
    lowest = torch.minimum(potential(x), potential(-x))
    low = (lowest < lowest.min() + _HEIGHT).nonzero()
    last = int(low[-1])
    check(last < len(x) - 1, "a potential that is not confining within |x| < 100", "V/g^2 growing by 80 within it")
    return float(x[last + 1])
