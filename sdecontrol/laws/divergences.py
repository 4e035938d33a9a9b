"""KL, Renyi and chi-squared divergences; and, from `distances`, total variation and Wasserstein-2."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, check
from sdecontrol.laws.base import Law
from sdecontrol.laws.discrete import DiscreteLaw
from sdecontrol.laws.distances import TotalVariation, tv, w2
from sdecontrol.laws.gaussian import Gaussian
from sdecontrol.laws.line import Line
from sdecontrol.laws.pairs import Whitened, factors

__all__ = ["TotalVariation", "chi2", "kl", "renyi", "tv", "w2"]


def kl(p: Law, q: Law) -> float:
    """KL(p || q) = E_p log(p/q), summed over coordinates.

    Closed for Gaussians, isotropic laws, Diracs, discrete laws on the same points, laws on one subspace and
    noise around one; by quadrature for every pair on the line (1e-10 absolute). Infinite when p is not
    absolutely continuous.
    Raises: BadInput for different events; NoClosedForm otherwise, mixtures in several dimensions included.
    """
    pairs = factors(p, q)
    return math.inf if pairs is None else sum((_kl(*pair) for pair in pairs), 0.0)


def _kl(p: Law, q: Law) -> float:
    if p is q:
        return 0.0
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        return Whitened.of(p, q).kl()
    if isinstance(p, DiscreteLaw) and isinstance(q, DiscreteLaw):
        return _discrete(p, q, lambda a, b: torch.xlogy(a, a / b))

    def integrand(x: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = _log_prob(p, x), _log_prob(q, x)
        # p log(p/q) - p + q has the same integral and is nowhere negative, so nothing cancels between places
        log_ratio = torch.where(log_p == -torch.inf, 0.0, log_p - log_q)
        size = torch.maximum(log_p, log_q)
        return size, (log_p - size).exp() * (log_ratio - 1) + (log_q - size).exp()

    return _on_line(p, q).integrate(integrand)


def renyi(p: Law, q: Law, order: float) -> float:
    """Renyi divergence log(E_q (p/q)^order) / (order - 1), order > 0 and not 1; infinite where the integral
    diverges.

    Closed and by quadrature where `kl` is. Two Gaussians: finite iff order * Sigma_q + (1 - order) * Sigma_p
    is positive.
    """
    check(
        math.isfinite(order) and order > 0 and order != 1,
        f"order = {order}",
        "a positive number other than 1",
        "At order 1 it is kl(p, q).",
    )
    pairs = factors(p, q)
    return math.inf if pairs is None else sum((_renyi(*pair, order) for pair in pairs), 0.0)


def _renyi(p: Law, q: Law, order: float) -> float:
    if p is q:
        return 0.0
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        return Whitened.of(p, q).renyi(order)
    if isinstance(p, DiscreteLaw) and isinstance(q, DiscreteLaw):
        return math.log(_discrete(p, q, lambda a, b: a**order * b ** (1 - order))) / (order - 1)
    total = _on_line(p, q).integrate(lambda x: _power(p, q, x, order))
    return (math.log(total) if total > 0 else -math.inf) / (order - 1)


def _power(p: Law, q: Law, x: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """p^order q^(1 - order) with its logarithm as the size: zero where p is zero."""
    log_p, log_q = _log_prob(p, x), _log_prob(q, x)
    log_size = torch.where(log_p == -torch.inf, -torch.inf, order * log_p + (1 - order) * log_q)
    return log_size, torch.ones_like(x)


def chi2(p: Law, q: Law) -> float:
    """chi^2(p || q) = E_q (p/q)^2 - 1, infinite where it diverges; f = (x - 1)^2, twice the f of "
    "ChiSquare."""
    order_two = renyi(p, q, 2.0)
    return math.inf if order_two > 709 else math.expm1(order_two)


def _on_line(p: Law, q: Law) -> Line:
    """The panels of both laws."""
    if p.event_shape != (1,) or isinstance(p, DiscreteLaw) or isinstance(q, DiscreteLaw):
        raise NoClosedForm(
            f"{type(p).__name__} against {type(q).__name__} on events {p.event_shape} has no closed "
            f"divergence; Gaussian "
            "pairs have, and pairs of densities on the line have a quadrature. Estimate E_p[log p - log "
            "q] from samples."
        )
    centres, scales = zip(p.landmarks(), q.landmarks(), strict=True)
    return Line(lambda x: _log_prob(p, x), torch.cat(centres), torch.cat(scales))


def _log_prob(law: Law, x: Tensor) -> Tensor:
    return law.log_prob(x[:, None])


def _discrete(p: DiscreteLaw, q: DiscreteLaw, term: Callable[[Tensor, Tensor], Tensor]) -> float:
    """sum_i term(p_i, q_i) over common atoms."""
    if not torch.equal(p.points, q.points):
        raise NoClosedForm("discrete laws on different points; wanted the same points in the same order")
    held = p.weights > 0
    return float(term(p.weights[held], q.weights[held]).sum())
