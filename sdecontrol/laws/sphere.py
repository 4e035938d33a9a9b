"""The uniform law on the unit sphere, and the same law with noise around it: a curved data set in closed form."""

from __future__ import annotations

import math

import torch
from scipy import special
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.laws.base import Law, LawWithoutDensity
from sdecontrol.laws.gaussian import LOG_2PI
from sdecontrol.noise import Block

LARGEST = 256  # dimensions up to which the Bessel functions below stay within float64
_NEAR = 1e-4  # kappa^2 / (d (d + 2)) below which the series of A is exact to 1e-12


class Sphere(LawWithoutDensity):
    """x uniform on {|x| = 1} in R^dim, dim from 2 to 256: mean 0, covariance I / dim.

    It has no density (log_prob, score and score_jvp raise NotDefined); noised(a, h) has one. Source: derived.
    """

    def __init__(self, dim: int):
        check(isinstance(dim, int) and 2 <= dim <= LARGEST, f"dim = {dim!r}", f"an integer from 2 to {LARGEST}")
        self.event_shape, self.dtype = (dim,), torch.float64

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self.dim, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        return torch.eye(self.dim, dtype=torch.float64) / self.dim

    def draw(self, block: Block) -> Tensor:
        z = block.normal(self.event_shape, torch.float64)
        return (z / z.norm(dim=1, keepdim=True)).to(self.dtype)

    def noised(self, a: float, h: float) -> Law:
        return NoisySphere(self.dim, a, h)


class NoisySphere(Law):
    """The law of radius u + sqrt(variance) z, u uniform on the unit sphere of R^dim, z standard normal.

    With kappa = radius |y| / variance and nu = dim/2 - 1,
    log p(y) = log[Gamma(nu+1) (2/kappa)^nu I_nu(kappa)] - (|y|^2 + radius^2) / (2 variance) - dim/2 log(2 pi variance),
    score = (radius A(kappa) y/|y| - y) / variance, A = I_{nu+1} / I_nu: E[u | y] = A(kappa) y/|y|, the mean of a von
    Mises-Fisher law. Accuracy: 1e-12. Source: derived.
    """

    def __init__(self, dim: int, radius: float, variance: float):
        check(math.isfinite(variance) and variance > 0, f"variance = {variance}", "a positive number",
              "Without noise it is a Sphere.")  # fmt: skip
        check(math.isfinite(radius) and radius > 0, f"radius = {radius}", "a positive number")
        self.radius, self.variance, self.event_shape, self.dtype = radius, variance, (dim,), torch.float64

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self.dim, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        return (self.radius**2 / self.dim + self.variance) * torch.eye(self.dim, dtype=torch.float64)

    def draw(self, block: Block) -> Tensor:
        u, z = Sphere(self.dim).draw(block), block.normal(self.event_shape, torch.float64)
        return (self.radius * u + math.sqrt(self.variance) * z).to(self.dtype)

    def _polar(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """|x|, x/|x| and A(kappa), in float64: (n, 1), (n, d), (n, 1)."""
        self._check_points(x)
        size = x.to(torch.float64).norm(dim=1, keepdim=True)
        return size, x / size.clamp(min=1e-300), bessel_ratio(self.dim, size * self.radius / self.variance)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_points(x)
        size, nu = x.to(torch.float64).norm(dim=1), self.dim / 2 - 1
        kappa = size * self.radius / self.variance
        bessel = torch.from_numpy(special.ive(nu, kappa.numpy())).log() + kappa
        log_mean = math.lgamma(nu + 1) + nu * (math.log(2) - kappa.log()) + bessel
        log_mean = torch.where(kappa < 1e-8, kappa**2 / (2 * self.dim), log_mean)
        square = (size**2 + self.radius**2) / self.variance
        return log_mean - square / 2 - self.dim / 2 * (LOG_2PI + math.log(self.variance))

    def score(self, x: Tensor) -> Tensor:
        _, n, ratio = self._polar(x)
        return ((self.radius * ratio * n - x) / self.variance).to(x.dtype)

    def score_jvp(self, x: Tensor, c: Tensor) -> Tensor:
        """(p [p A' n n' + A/|x| (I - n n')] - I/variance) c, p = radius/variance, A' = 1 - A^2 - (d-1) A/kappa."""
        size, n, ratio = self._polar(x)
        pull = self.radius / self.variance
        across = pull * bessel_over(self.dim, ratio, size * pull)  # A / |x|
        along = pull * (1 - ratio**2) - (self.dim - 1) * across
        radial = (n * c).sum(1, keepdim=True) * n
        return (pull * (along * radial + across * (c - radial)) - c / self.variance).to(x.dtype)

    def noised(self, a: float, h: float) -> NoisySphere:
        return NoisySphere(self.dim, a * self.radius, a * a * self.variance + h)


def bessel_ratio(dim: int, kappa: Tensor) -> Tensor:
    """A(kappa) = I_{dim/2} / I_{dim/2 - 1}, float64: the length of the mean of a von Mises-Fisher law."""
    near, k = kappa**2 / (dim * (dim + 2)), kappa.numpy()
    series = kappa / dim * (1 - near * (1 - 2 * near * (dim + 2) / (dim + 4)))
    far = torch.from_numpy(special.ive(dim / 2, k) / special.ive(dim / 2 - 1, k).clip(min=1e-300))
    return torch.where(near < _NEAR, series, far)


def bessel_over(dim: int, ratio: Tensor, kappa: Tensor) -> Tensor:
    """A(kappa) / kappa, which is 1/dim at 0."""
    return torch.where(kappa > 1e-150, ratio / kappa.clamp(min=1e-150), torch.full_like(kappa, 1 / dim))
