"""Quadrature on the real line: adaptive Gauss-Kronrod panels around the landmarks of a law, in logarithms.

An integrand is exp(log_size(x)) * factor(x). Panels are halved where the 15-point and the 7-point rule disagree, so steps,
kinks and narrow peaks cost a few dozen halvings. Nothing is cut off: the panels reach 2e5 scales beyond the landmarks, and
an integrand that has not fallen by e^-60 out there is reported as infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm

_HALF_NODES = [
    0.0, 0.20778495500789847, 0.4058451513773972, 0.5860872354676911,
    0.7415311855993945, 0.8648644233597691, 0.9491079123427585, 0.9914553711208126,
]  # fmt: skip
_HALF_KRONROD = [
    0.20948214108472782, 0.20443294007529889, 0.19035057806478541, 0.1690047266392679,
    0.14065325971552592, 0.10479001032225019, 0.06309209262997856, 0.022935322010529224,
]  # fmt: skip
_HALF_GAUSS = [0.4179591836734694, 0.0, 0.3818300505051189, 0.0, 0.27970539148927664, 0.0, 0.1294849661688697, 0.0]


def _mirrored(half: list[float], sign: float = 1.0) -> Tensor:
    return torch.tensor([sign * v for v in half[:0:-1]] + half, dtype=torch.float64)


NODES, KRONROD, GAUSS = _mirrored(_HALF_NODES, -1.0), _mirrored(_HALF_KRONROD), _mirrored(_HALF_GAUSS)
_TOLERANCE = 1e-12  # summed disagreement of the two rules, relative to the integral of the absolute value
_ROUNDS = 120
_FALLEN = 60.0  # e^-60 is below rounding
_REACH = torch.cat([torch.arange(0.0, 13.0, 2.0), 12 * 2.0 ** torch.arange(1.0, 15.0)]).to(torch.float64)

Integrand = Callable[[Tensor], tuple[Tensor, Tensor]]  # points (m,) -> (log size, factor), each (m,)


@dataclass(frozen=True)
class Integral:
    """The integral is value * exp(log_scale), with an error of at most about error * exp(log_scale)."""

    log_scale: float
    value: float
    error: float

    def __float__(self) -> float:
        return self.value * math.exp(self.log_scale)


@dataclass
class Panels:
    """Panels [a, b] with the two rules' integrals, all (m,), each relative to exp(log_scale)."""

    a: Tensor
    b: Tensor
    log_scale: Tensor
    kronrod: Tensor
    gauss: Tensor
    absolute: Tensor

    @classmethod
    def evaluate(cls, integrand: Integrand, a: Tensor, b: Tensor) -> Panels:
        half = (b - a) / 2
        x = (a + b)[:, None] / 2 + half[:, None] * NODES
        log_size, factor = (t.reshape(x.shape) for t in integrand(x.reshape(-1)))
        if bool(torch.isnan(log_size).any() | torch.isnan(factor).any()):
            raise NoClosedForm("the integrand of a quadrature is NaN; the density or the reward fails somewhere on the line")
        log_scale = log_size.amax(1)
        log_scale = torch.where(log_scale == -torch.inf, 0.0, log_scale)
        values = (log_size - log_scale[:, None]).exp() * factor
        values = torch.where(log_size == -torch.inf, 0.0, values)  # nothing times an infinite factor is nothing
        return cls(a, b, log_scale, half * (values @ KRONROD), half * (values @ GAUSS), half * (values.abs() @ KRONROD))

    def __getitem__(self, rows: Tensor) -> Panels:
        return Panels(*(t[rows] for t in vars(self).values()))

    def joined(self, other: Panels) -> Panels:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Panels(*(torch.cat(pair) for pair in pairs))

    def relative(self) -> tuple[float, Tensor]:
        """The largest log scale and exp(log_scale - it)."""
        peak = float(torch.where(self.absolute > 0, self.log_scale, -torch.inf).max())
        return peak, (self.log_scale - peak).exp() if math.isfinite(peak) else torch.zeros_like(self.log_scale)


def panels_of(integrand: Integrand, edges: Tensor) -> Panels:
    """Panels between sorted edges, halved until the two rules agree."""
    panels = Panels.evaluate(integrand, edges[:-1], edges[1:])
    for _ in range(_ROUNDS):
        _, relative = panels.relative()
        error = (panels.kronrod - panels.gauss).abs() * relative
        size = panels.absolute * relative
        rounding = 1e-14 * size
        middle = (panels.a + panels.b) / 2
        splits = (middle > panels.a) & (middle < panels.b) & (error > rounding)
        splits &= error > _TOLERANCE * size.sum() / len(size)
        if not bool(splits.any()):
            break
        old, keep = panels[splits], panels[~splits]
        a, b, m = old.a, old.b, middle[splits]
        panels = keep.joined(Panels.evaluate(integrand, torch.cat([a, m]), torch.cat([m, b])))
    return panels


class Line:
    """A law on R given by landmarks and a log density up to a constant, which is normalised by quadrature.

    log_density maps points (m,) to (m,), float64. Relative accuracy 1e-11 for piecewise smooth densities.
    """

    def __init__(self, log_density: Callable[[Tensor], Tensor], centres: Tensor, scales: Tensor):
        self.log_density = log_density
        reach = torch.cat([-_REACH.flip(0)[:-1], _REACH])
        self.edges = (centres[:, None] + scales[:, None] * reach).reshape(-1).unique()
        found = panels_of(lambda x: (log_density(x), torch.ones_like(x)), self.edges)
        peak, relative = found.relative()
        order = found.a.argsort()
        mass = (found.kronrod * relative)[order]
        self.log_normalizer = self._log_total(peak, float(mass.sum()))
        held = mass.nonzero()[:, 0]
        support = slice(int(held[0]), int(held[-1]) + 1) if len(held) else slice(None)
        self.panels, mass = found[order[support]], mass[support]
        self._below = torch.cat([torch.zeros(1, dtype=torch.float64), mass.cumsum(0)]) / mass.sum()

    def _log_total(self, peak: float, mass: float) -> float:
        ends = float(self.log_density(self.edges[[0, -1]]).max())
        if not mass > 0 or ends > peak - _FALLEN:
            return math.inf if mass > 0 else -math.inf
        return peak + math.log(mass)

    @property
    def infinite(self) -> bool:
        """Whether the density has no finite integral: its mass escapes to infinity."""
        return self.log_normalizer == math.inf

    def expect(self, function: Callable[[Tensor], Tensor], points: tuple[float, ...] = ()) -> float:
        """E function(X); `points` are places where the function is singular or jumps, if known."""
        return self.integrate(lambda x: (self.log_density(x) - self.log_normalizer, function(x)), points)

    def integrate(self, integrand: Integrand, points: tuple[float, ...] = ()) -> float:
        """The integral over R; infinite when the integrand does not fall off."""
        extra = torch.tensor(points, dtype=torch.float64)
        panels = panels_of(integrand, torch.cat([self.edges, extra]).unique())
        peak, relative = panels.relative()
        log_size, factor = integrand(self.edges[[0, -1]])
        ends = float(torch.where(factor == 0, -torch.inf, log_size + factor.abs().log()).max())
        if math.isfinite(ends) and ends > peak - _FALLEN:
            return math.inf
        return float((panels.kronrod * relative).sum()) * math.exp(peak) if math.isfinite(peak) else 0.0

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x): (m,) -> (m,)."""
        index = (torch.searchsorted(self.panels.a, x.contiguous(), right=True) - 1).clamp(0, len(self.panels.a) - 1)
        return self._below[index] + self._partial(self.panels.a[index], x.clamp(self.panels.a[0], self.panels.b[-1]))

    def _partial(self, a: Tensor, x: Tensor) -> Tensor:
        """P(a < X <= x) within one panel."""
        half = (x - a) / 2
        nodes = (a + x)[:, None] / 2 + half[:, None] * NODES
        density = (self.log_density(nodes.reshape(-1)) - self.log_normalizer).exp()
        return half * (density.reshape(nodes.shape) @ KRONROD)

    def quantile(self, u: Tensor) -> Tensor:
        """The x with P(X <= x) = u, by safeguarded Newton steps from the panel that holds it: (m,) -> (m,)."""
        last = len(self.panels.a) - 1
        index = (torch.searchsorted(self._below, u.contiguous(), right=True) - 1).clamp(0, last)
        start, target = self.panels.a[index], u - self._below[index]
        low, high = start.clone(), self.panels.b[index].clone()
        share = target / (self._below[index + 1] - self._below[index])
        x = low + (high - low) * torch.where(torch.isfinite(share), share, 0.5).clamp(0, 1)
        for _ in range(60):
            excess = self._partial(start, x) - target
            low, high = torch.where(excess <= 0, x, low), torch.where(excess > 0, x, high)
            step = x - excess / (self.log_density(x) - self.log_normalizer).exp()
            inside = (step > low) & (step < high)
            moved = torch.where(inside, step, (low + high) / 2)
            done = bool(((moved - x).abs() <= 1e-15 * (1 + x.abs())).all())
            x = moved
            if done:
                break
        return x
