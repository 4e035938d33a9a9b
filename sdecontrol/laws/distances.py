"""Total variation and Wasserstein-2 between laws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch

import torch
from scipy.special import gammainc, ndtr
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NotDefined, check
from sdecontrol.laws.base import Law
from sdecontrol.laws.discrete import DiscreteLaw
from sdecontrol.laws.gaussian import Gaussian
from sdecontrol.laws.line import Line
from sdecontrol.laws.pairs import Whitened, factors, simplified
from sdecontrol.laws.point import Dirac
from sdecontrol.laws.subspace import Subspace

_EQUAL = 1e-13  # relative difference of covariances that is rounding


@dataclass(frozen=True)
class TotalVariation:
    """lower <= d_TV <= upper, equal where the distance is known; `route` says how."""

    lower: float
    upper: float
    route: str

    @property
    def value(self) -> float:
        """The distance; NotDefined where only bounds are known."""
        if self.upper > self.lower:
            raise NotDefined(
                f"the total variation is only known to lie in [{self.lower:.6g}, {self.upper:.6g}] "
                f"({self.route})"
            )
        return self.lower

    def __float__(self) -> float:
        return self.value


def _exactly(value: float, route: str) -> TotalVariation:
    return TotalVariation(value, value, route)


def tv(p: Law, q: Law) -> TotalVariation:
    """d_TV(p, q) = sup_A |p(A) - q(A)| = 1/2 int |p - q|, in [0, 1].

    Closed for Gaussians on the line (through the roots of the log ratio), of equal covariances, and of equal
    means and proportional covariances; by quadrature for every pair on the line (1e-10); 1 for mutually
    singular laws. Other Gaussian pairs get bounds: 1 - BC and the distance along the best direction from
    below, sqrt(1 - BC^2) and Pinsker from above, BC = int sqrt(p q). Raises: NoClosedForm for other pairs in
    several dimensions.
    """
    pairs = factors(p, q)
    if pairs is None:
        return _exactly(1.0, "mutually singular")
    parts = [_tv(*pair) for pair in pairs]
    differing = [part for part in parts if part.upper > 0]
    if len(differing) <= 1:
        return (differing or [_exactly(0.0, "the same law")])[0]
    upper = 1 - math.prod(1 - part.upper for part in differing)
    return TotalVariation(max(part.lower for part in differing), upper, "independent factors")


def _tv(p: Law, q: Law) -> TotalVariation:
    if p is q:
        return _exactly(0.0, "the same law")
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        return _gaussian_tv(Whitened.of(p, q))
    if isinstance(p, DiscreteLaw) and isinstance(q, DiscreteLaw) and torch.equal(p.points, q.points):
        return _exactly(float((p.weights - q.weights).abs().sum()) / 2, "sum over atoms")
    if p.event_shape != (1,) or isinstance(p, DiscreteLaw) or isinstance(q, DiscreteLaw):
        raise NoClosedForm(
            f"the total variation of {type(p).__name__} and {type(q).__name__} on events {p.event_shape} "
            f"has no "
            "closed form; Gaussian pairs have bounds, pairs on the line a quadrature"
        )

    def integrand(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = p.log_prob(x[:, None]), q.log_prob(x[:, None])
        size = torch.maximum(log_p, log_q)
        gap = torch.where(size == -torch.inf, 0.0, (log_p - log_q).abs())
        return size, -torch.expm1(-gap) / 2

    centres, scales = zip(p.landmarks(), q.landmarks(), strict=True)
    line = Line(lambda x: p.log_prob(x[:, None]), torch.cat(centres), torch.cat(scales))
    return _exactly(line.integrate(integrand), "quadrature")


def _gaussian_tv(pair: Whitened) -> TotalVariation:
    delta, gap, distance = pair.delta, pair.gap, float(pair.gap.norm())
    if float(delta.abs().max()) <= _EQUAL:
        return _exactly(math.erf(distance / math.sqrt(8)), "equal covariances: 2 Phi(gap / 2) - 1")
    if len(delta) == 1:
        return _exactly(_line_tv(float(gap), float(delta)), "roots of the log ratio")
    if distance == 0 and float((delta - delta[0]).abs().max()) <= _EQUAL:
        return _exactly(_ball_tv(len(delta), float(delta[0])), "proportional covariances: chi-squared")
    return _gaussian_bounds(pair)


def _line_tv(m: float, delta: float) -> float:
    """N(m, s^2), s^2 = 1 + delta, against N(0, 1): they cross where delta x^2 + 2 m x = m^2 + s^2 log s^2."""
    s2, log_s2 = 1 + delta, math.log1p(delta)
    product = m * m + s2 * log_s2
    root = math.sqrt(s2 * (m * m + delta * log_s2))
    t = -(
        m + math.copysign(root, m)
    )  # the root without cancellation; the other from the product of the roots
    x1, x2 = t / delta, -product / t
    s = math.sqrt(s2)
    return float(abs((ndtr(x2) - ndtr(x1)) - (ndtr((x2 - m) / s) - ndtr((x1 - m) / s))))


def _ball_tv(dim: int, delta: float) -> float:
    """N(0, s^2 I), s^2 = 1 + delta, against N(0, I): they cross where |x|^2 = d s^2 log(s^2) / delta."""
    radius2 = dim * (1 + delta) * math.log1p(delta) / delta
    return float(abs(gammainc(dim / 2, radius2 / 2) - gammainc(dim / 2, radius2 / (2 * (1 + delta)))))


def _gaussian_bounds(pair: Whitened) -> TotalVariation:
    """From below: projections on each coordinate and on the gap, and 1 - BC; from above: BC and Pinsker."""
    bc = math.exp(-pair.renyi(0.5) / 2)
    reverse_kl = 0.5 * float(
        (pair.gap.square() / (1 + pair.delta) - pair.delta / (1 + pair.delta) + pair.delta.log1p()).sum()
    )
    smaller_kl = min(pair.kl(), reverse_kl)
    upper = min(
        math.sqrt(-math.expm1(2 * math.log(bc))) if bc > 0 else 1.0, math.sqrt(max(smaller_kl, 0.0) / 2), 1.0
    )
    lines = [_line_tv(float(m), float(d)) for m, d in zip(pair.gap, pair.delta, strict=True) if d != 0]
    length = float(pair.gap.norm())
    if length > 0:
        along = float((pair.delta * (pair.gap / length).square()).sum())
        lines.append(_line_tv(length, along) if abs(along) > _EQUAL else math.erf(length / math.sqrt(8)))
    return TotalVariation(
        max([1 - bc, *lines]), upper, "bounds: projections and 1 - BC; sqrt(1 - BC^2) and Pinsker"
    )


def w2(p: Law, q: Law) -> float:
    """Wasserstein-2 distance, (inf E |X - Y|^2)^{1/2} over couplings.

    Gaussians, isotropic laws and Gaussians on any subspaces (Bures): |gap|^2 + |L_p - L_q U|_F^2, Sigma = L
    L', with the best rotation U, so that equal laws give zero to rounding; O(D d^2) on subspaces. A Dirac
    against any law. Densities on the line or on one and the same line of R^D: int (x - T(x))^2 p, T the
    monotone map, by quadrature (1e-8).
    Raises: BadInput for different events; NoClosedForm otherwise.
    """
    check(
        p.event_shape == q.event_shape,
        f"laws on events {p.event_shape} and {q.event_shape}",
        "laws on the same events",
    )
    p, q = simplified(p), simplified(q)
    gap = float((p.mean - q.mean).reshape(-1).norm())
    if isinstance(p, Dirac) or isinstance(q, Dirac):
        return math.hypot(gap, math.sqrt(_total_variance(p) + _total_variance(q)))
    if isinstance(p, Gaussian) and isinstance(q, Gaussian) and p.diagonal and q.diagonal:
        return math.hypot(gap, float((p.eigenvalues.sqrt() - q.eigenvalues.sqrt()).norm()))
    left, right = _root(p), _root(q)
    if left is not None and right is not None:
        return math.hypot(gap, _procrustes(left, right))
    pairs = factors(p, q) if isinstance(p, Subspace) and isinstance(q, Subspace) else None
    if pairs is not None:  # one span: an isometry of the latent spaces
        return w2(*pairs[0])
    if p.event_shape == (1,) and not isinstance(p, DiscreteLaw) and not isinstance(q, DiscreteLaw):
        return _w2_on_line(p, q)
    raise NoClosedForm(
        f"W2 between {type(p).__name__} and {type(q).__name__} on events {p.event_shape} has no closed form; "
        "Gaussians and densities on the line have. Use samples and an assignment solver."
    )


@singledispatch
def _root(law: Law) -> Tensor | None:
    """A factor L (D, d) of a Gaussian's covariance L L'; None for other laws."""
    return None


@_root.register
def _(law: Gaussian) -> Tensor:
    return law.spectrum.whitening().mT * law.eigenvalues


@_root.register
def _(law: Subspace) -> Tensor | None:
    latent = _root(simplified(law.latent))
    return None if latent is None else law.basis @ latent


def _total_variance(law: Law) -> float:
    if isinstance(law, Dirac):
        return 0.0
    if isinstance(law, Gaussian):
        return float(law.eigenvalues.sum())
    return (
        _total_variance(simplified(law.latent))
        if isinstance(law, Subspace)
        else float(law.covariance.trace())
    )


def _procrustes(left: Tensor, right: Tensor) -> float:
    """min over rotations U of |left - right U|_F; the narrower factor is filled with zero columns."""
    width = max(left.shape[1], right.shape[1])
    left, right = (torch.nn.functional.pad(m, (0, width - m.shape[1])) for m in (left, right))
    a, _, b = torch.linalg.svd(right.mT @ left)
    return float((left - right @ (a @ b)).norm())


def _w2_on_line(p: Law, q: Law) -> float:
    """Each half of the line is measured from its own end: the tails of the monotone map are accurate."""
    source, target = _line(p), _line(q)
    mirrored_source, mirrored_target = _line(p, -1.0), _line(q, -1.0)

    def integrand(x: Tensor) -> tuple[Tensor, Tensor]:
        below, above = source.cdf(x), mirrored_source.cdf(-x)
        lower = below < above
        moved = torch.empty_like(x)
        moved[lower] = target.quantile(below[lower])
        moved[~lower] = -mirrored_target.quantile(above[~lower])
        return source.log_density(x) - source.log_normalizer, (x - moved).square()

    spread = float(p.landmarks()[1].amax() + q.landmarks()[1].amax())
    return math.sqrt(source.integrate(integrand, smallest=1e-24 * spread**2))


def _line(law: Law, sign: float = 1.0) -> Line:
    """The quadrature of the law of sign * X."""
    centres, scales = law.landmarks()
    return Line(lambda x: law.log_prob(sign * x[:, None]), sign * centres, scales)
