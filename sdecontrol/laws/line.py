"""Quadrature on the real line: adaptive Gauss-Kronrod panels around the landmarks of a law, in logarithms.

An integrand is exp(log_size(x)) * factor(x). Panels are halved where the 15-point and the 7-point rule
disagree, so steps, kinks and narrow peaks cost a few dozen halvings. Nothing is cut off: the panels reach 2e5
scales beyond the landmarks, and an integrand that has not fallen by e^-60 out there is reported as infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NoTilt

_HALF_NODES = [
    0.0,
    0.20778495500789847,
    0.4058451513773972,
    0.5860872354676911,
    0.7415311855993945,
    0.8648644233597691,
    0.9491079123427585,
    0.9914553711208126,
]
_HALF_KRONROD = [
    0.20948214108472782,
    0.20443294007529889,
    0.19035057806478541,
    0.1690047266392679,
    0.14065325971552592,
    0.10479001032225019,
    0.06309209262997856,
    0.022935322010529224,
]
_HALF_GAUSS = [
    0.4179591836734694,
    0.0,
    0.3818300505051189,
    0.0,
    0.27970539148927664,
    0.0,
    0.1294849661688697,
    0.0,
]


def _mirrored(half: list[float], sign: float = 1.0) -> Tensor:
    return torch.tensor([sign * v for v in half[:0:-1]] + half, dtype=torch.float64)


NODES, KRONROD, GAUSS = _mirrored(_HALF_NODES, -1.0), _mirrored(_HALF_KRONROD), _mirrored(_HALF_GAUSS)
_TOLERANCE = 1e-12  # summed disagreement of the two rules, relative to the integral of the absolute value
_ROUNDS = 120
_MOST_PANELS = 100_000
_NOISE = 1e-9  # disagreement of the rules, relative to a panel's integral, that may be rounding
_FALLEN = 60.0  # e^-60 is below rounding
_REACH = torch.cat([torch.arange(0.0, 13.0, 2.0), 12 * 2.0 ** torch.arange(1.0, 15.0)]).to(torch.float64)

Integrand = Callable[[Tensor], tuple[Tensor, Tensor]]  # points (m,) -> (log size, factor), each (m,)


@dataclass
class Panels:
    """Panels [a, b] with the two rules' integrals over exp(log_scale), all (m,); settled ones rest."""

    a: Tensor
    b: Tensor
    log_scale: Tensor
    kronrod: Tensor
    gauss: Tensor
    absolute: Tensor
    rounding: Tensor
    settled: Tensor

    @classmethod
    def evaluate(cls, integrand: Integrand, a: Tensor, b: Tensor) -> Panels:
        half = (b - a) / 2
        x = (a + b)[:, None] / 2 + half[:, None] * NODES
        log_size, factor = (t.reshape(x.shape) for t in integrand(x.reshape(-1)))
        if bool(torch.isnan(log_size).any() | torch.isnan(factor).any()):
            raise NoClosedForm(
                "the integrand of a quadrature is NaN; the density or the reward fails somewhere on the line"
            )
        log_scale = log_size.amax(1)
        log_scale = torch.where(log_scale == -torch.inf, 0.0, log_scale)
        values = (log_size - log_scale[:, None]).exp() * factor
        values = torch.where(
            log_size == -torch.inf, 0.0, values
        )  # nothing times an infinite factor is nothing
        absolute = half * (values.abs() @ KRONROD)
        middle = (a + b) / 2
        return cls(
            a, b, log_scale, half * (values @ KRONROD), half * (values @ GAUSS), absolute,
            rounding=absolute * (1e-14 + 2**-50 * log_scale.abs()), settled=(middle <= a) | (middle >= b),
        )  # fmt: skip

    def __getitem__(self, rows: Tensor) -> Panels:
        return Panels(*(t[rows] for t in vars(self).values()))

    def joined(self, other: Panels) -> Panels:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Panels(*(torch.cat(pair) for pair in pairs))

    @property
    def error(self) -> Tensor:
        return (self.kronrod - self.gauss).abs()

    def relative(self) -> tuple[float, Tensor]:
        """The largest log scale and exp(log_scale - it)."""
        peak = float(torch.where(self.absolute > 0, self.log_scale, -torch.inf).max())
        return peak, (self.log_scale - peak).exp() if math.isfinite(peak) else torch.zeros_like(
            self.log_scale
        )

    def halved(self, integrand: Integrand) -> Panels:
        """Both halves of every panel, settled where the rules all but agree and halving does not help."""
        middle = (self.a + self.b) / 2
        halves = Panels.evaluate(integrand, torch.cat([self.a, middle]), torch.cat([middle, self.b]))
        errors = (halves.error * (halves.log_scale - self.log_scale.repeat(2)).exp()).reshape(2, -1).sum(0)
        noise = (self.error <= _NOISE * self.absolute) & (errors >= 0.3 * self.error)
        halves.settled |= noise.repeat(2)
        return halves


def panels_of(integrand: Integrand, edges: Tensor, smallest: float = 0.0) -> Panels:
    """Panels between sorted edges, halved until the two rules agree, or differ by less than `smallest`."""
    panels = Panels.evaluate(integrand, edges[:-1], edges[1:])
    for _ in range(_ROUNDS):
        peak, relative = panels.relative()
        allowed = _TOLERANCE * (panels.absolute * relative).sum() / len(relative) + smallest * math.exp(
            min(-peak, 700.0)
        )
        splits = (panels.error * relative > allowed) & (panels.error > panels.rounding) & ~panels.settled
        if not bool(splits.any()):
            break
        if len(relative) > _MOST_PANELS:
            raise NoClosedForm(
                "a quadrature did not settle within 100 000 panels; the integrand is too rough"
            )
        panels = panels[~splits].joined(panels[splits].halved(integrand))
    return panels


def escapes(integrand: Integrand, edges: Tensor) -> bool:
    """Whether the integrand has not fallen by e^-60 at the outermost edges: its integral is infinite."""
    log_size, factor = integrand(edges)
    log_value = torch.where(factor == 0, -torch.inf, log_size + factor.abs().log())
    ends, peak = float(log_value[[0, -1]].max()), float(log_value.max())
    return ends > -math.inf and ends > peak - _FALLEN


class Line:
    """A law on R given by landmarks and a log density up to a constant, which is normalised by quadrature.

    log_density maps points (m,) to (m,), float64. Relative accuracy 1e-11 for piecewise smooth densities.
    Raises: NoTilt when the density has no finite, positive integral.
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor], centres: Tensor, scales: Tensor):
        self.log_density = log_density
        reach = torch.cat([-_REACH.flip(0)[:-1], _REACH])
        self.edges = (centres[:, None] + scales[:, None] * reach).reshape(-1).unique()

        def density(x: Tensor) -> tuple[Tensor, Tensor]:
            return log_density(x), torch.ones_like(x)

        if escapes(density, self.edges):
            raise NoTilt(
                "the density has an infinite integral: its weight outgrows the tails of the law it tilts; "
                "wanted "
                "a weight with a finite mean. Raise the temperature or bound the reward."
            )
        found = panels_of(density, self.edges)
        peak, relative = found.relative()
        order = found.a.argsort()
        mass = (found.kronrod * relative)[order]
        if not float(mass.sum()) > 0:
            raise NoTilt(
                "the density vanishes everywhere; wanted a weight that is positive somewhere on the law's "
                "support"
            )
        self.log_normalizer = peak + math.log(float(mass.sum()))
        held = mass.nonzero()[:, 0]
        support = slice(int(held[0]), int(held[-1]) + 1)
        self.panels, mass = found[order[support]], mass[support]
        self._below = torch.cat([torch.zeros(1, dtype=torch.float64), mass.cumsum(0)]) / mass.sum()

    def expect(self, function: Callable[[Tensor], Tensor], points: tuple[float, ...] = ()) -> float:
        """E function(X); `points` are places where the function is singular or jumps, if known."""
        return self.integrate(
            lambda x: (self.log_density(x), function(x)), points, log_unit=self.log_normalizer
        )

    def integrate(
        self,
        integrand: Integrand,
        points: tuple[float, ...] = (),
        smallest: float = 0.0,
        log_unit: float = 0.0,
    ) -> float:
        """The integral over R in units of exp(log_unit); infinite when the integrand does not fall off.

        `smallest`: see `panels_of`.
        """
        if escapes(integrand, self.edges):
            return math.inf
        extra = torch.tensor(points, dtype=torch.float64)
        panels = panels_of(integrand, torch.cat([self.edges, extra]).unique(), smallest)
        peak, relative = panels.relative()
        total = float((panels.kronrod * relative).sum())
        return total * math.exp(peak - log_unit) if math.isfinite(peak) else 0.0

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x): (m,) -> (m,), to 1e-14; relative accuracy is lost in tails lighter than about 1e-10."""
        index = (torch.searchsorted(self.panels.a, x.contiguous(), right=True) - 1).clamp(
            0, len(self.panels.a) - 1
        )
        return self._below[index] + self._partial(
            self.panels.a[index], x.clamp(self.panels.a[0], self.panels.b[-1])
        )

    def _partial(self, a: Tensor, x: Tensor) -> Tensor:
        """P(a < X <= x) within one panel."""
        half = (x - a) / 2
        nodes = (a + x)[:, None] / 2 + half[:, None] * NODES
        density = (self.log_density(nodes.reshape(-1)) - self.log_normalizer).exp()
        return half * (density.reshape(nodes.shape) @ KRONROD)

    @cached_property
    def _masses(self) -> tuple[Tensor, Tensor]:
        """Legendre coefficients, one column a panel, of the density on [-1, 1] and of its integral from -1."""
        a, b = self.panels.a, self.panels.b
        nodes = (a + b)[:, None] / 2 + ((b - a) / 2)[:, None] * NODES
        log_density = self.log_density(nodes.reshape(-1)).reshape(nodes.shape) - self.log_normalizer
        values = (log_density.exp() * ((b - a) / 2)[:, None]).numpy()
        slopes = np.linalg.solve(legendre.legvander(NODES.numpy(), len(NODES) - 1), values.T)
        return torch.from_numpy(slopes), torch.from_numpy(legendre.legint(slopes, lbnd=-1))

    def draw(self, u: Tensor) -> Tensor:
        """The x with P(X <= x) = u for many u at once, to 1e-9 in u: (m,) -> (m,).

        Newton's steps, kept between bounds, on the polynomials through the nodes of each panel.
        """
        index = (torch.searchsorted(self._below, u.contiguous(), right=True) - 1).clamp(0, len(self.panels.a) - 1)
        target = (u - self._below[index]).numpy()
        slopes, masses = (coefficients[:, index].numpy() for coefficients in self._masses)
        low, high = -np.ones_like(target), np.ones_like(target)
        z = np.zeros_like(target)
        for _ in range(60):
            excess = legendre.legval(z, masses, tensor=False) - target
            low, high = np.where(excess <= 0, z, low), np.where(excess > 0, z, high)
            with np.errstate(divide="ignore", invalid="ignore"):
                step = z - excess / legendre.legval(z, slopes, tensor=False)
            moved = np.where((step > low) & (step < high), step, (low + high) / 2)
            settled = np.abs(moved - z).max() < 1e-12
            z = moved
            if settled:
                break
        a, b = self.panels.a[index], self.panels.b[index]
        return (a + b) / 2 + (b - a) / 2 * torch.from_numpy(z)

    def quantile(self, u: Tensor) -> Tensor:
        """The x with P(X <= x) = u, by safeguarded Newton steps within its panel: (m,) -> (m,)."""
        last = len(self.panels.a) - 1
        index = (torch.searchsorted(self._below, u.contiguous(), right=True) - 1).clamp(0, last)
        start, target = self.panels.a[index], u - self._below[index]
        low, high = start.clone(), self.panels.b[index].clone()
        share = target / (self._below[index + 1] - self._below[index])
        x = low + (high - low) * torch.where(torch.isfinite(share), share, 0.5).clamp(0, 1)
        active = torch.arange(len(u))
        for _ in range(60):
            y, a, b = x[active], low[active], high[active]
            mass, wanted = self._partial(start[active], y), target[active]
            a, b = torch.where(mass <= wanted, y, a), torch.where(mass > wanted, y, b)
            density = (self.log_density(y) - self.log_normalizer).exp()
            step = (
                y + (wanted / mass).log() * mass / density
            )  # Newton on log mass, which is concave in most tails
            moved = torch.where((step > a) & (step < b), step, (a + b) / 2)
            x[active], low[active], high[active] = moved, a, b
            active = active[(moved - y).abs() > 1e-15 * (1 + y.abs())]
            if len(active) == 0:
                break
        return x
