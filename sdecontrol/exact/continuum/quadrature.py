"""Integrals over the start in one and two dimensions, by the trapezoidal rule in whitened coordinates.

For integrands that are analytic and decay like Gaussians the rule converges faster than any power of the
spacing. A box grows until what lies on its faces is below rounding; the spacing is halved until two rules
agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm
from sdecontrol.exact.continuum.flow import Function
from sdecontrol.exact.quadratic import covariance_root
from sdecontrol.laws import Dirac, Gaussian, GaussianMixture, Law

LARGEST_DIMENSION = 2
_NEGLIGIBLE = -40.0  # log of what the faces of a box may hold of the largest contribution
_AGREEMENT, _ROUNDING = 1e-13, 1e-15
_FIRST_SPACING, _FIRST_RADIUS = 0.5, 8.0
_LARGEST_GRID, _LARGEST_SHARED_GRID = 2**21, 2**12  # nodes a piece; nodes a row where many rows share a rule


@dataclass(frozen=True, eq=False)
class Piece:
    """One term int e^{log_integrand(y)} f(y) dy, to be looked for around N(centre, root root')."""

    centre: Tensor
    root: Tensor
    log_integrand: Function
    f: Function


@dataclass(frozen=True)
class Integral:
    """log of sum int e^l and the mean of f under e^l; the errors are differences of the last two rules."""

    log_total: float
    log_total_error: float
    mean: float
    mean_error: float


def integrate(pieces: list[Piece]) -> Integral:
    """The sum of the pieces. Raises NoClosedForm above two dimensions, or when 2^21 nodes do not hold one."""
    dim = len(pieces[0].centre)
    if dim > LARGEST_DIMENSION:
        raise NoClosedForm(f"an integral over the start in {dim} dimensions; quadrature is for one and two")
    spacing, previous = _FIRST_SPACING, _sum(pieces, _FIRST_SPACING)
    while True:
        spacing /= 2
        total, mean = _sum(pieces, spacing)
        errors = abs(total - previous[0]), abs(mean - previous[1])
        scale = max(1.0, abs(total)), max(1.0, abs(mean))
        agree = errors[0] <= _AGREEMENT * scale[0] and errors[1] <= _AGREEMENT * scale[1]
        if agree or (6 * _FIRST_RADIUS / spacing) ** dim > _LARGEST_GRID:
            return Integral(total, errors[0], mean, errors[1])
        previous = total, mean


def _sum(pieces: list[Piece], spacing: float) -> tuple[float, float]:
    log_terms, values = zip(*(_terms(piece, spacing) for piece in pieces))
    log_all, f_all = torch.cat(log_terms), torch.cat(values)
    weights = log_all.softmax(0)
    kept = weights > 0
    return float(log_all.logsumexp(0)), float(weights[kept] @ f_all[kept])


def _terms(piece: Piece, spacing: float) -> tuple[Tensor, Tensor]:
    """log of the rule's terms and f at its nodes, in a box whose faces do not matter."""
    dim, radius = len(piece.centre), _FIRST_RADIUS
    log_cell = dim * math.log(spacing) + float(torch.linalg.slogdet(piece.root)[1])
    while True:
        z = box(dim, radius, spacing)
        y = piece.centre + z @ piece.root.mT
        log_terms = piece.log_integrand(y) + log_cell
        faces = z.abs().amax(1) > radius - spacing / 2
        if float(log_terms[faces].max() - log_terms.max()) < _NEGLIGIBLE:
            return log_terms, piece.f(y)
        radius *= 1.5
        if (2 * radius / spacing) ** dim > _LARGEST_GRID:
            raise NoClosedForm("the integrand over the start is too wide, or not where it was looked for")


def box(dim: int, radius: float, spacing: float) -> Tensor:
    """The nodes of a regular grid on [-radius, radius]^dim: (N, dim)."""
    half = round(radius / spacing)
    line = torch.arange(-half, half + 1, dtype=torch.float64) * spacing
    return torch.stack(torch.meshgrid([line] * dim, indexing="ij"), -1).reshape(-1, dim)


def log_integrals(centres: Tensor, roots: Tensor, log_integrand: Function, sizes: Tensor) -> Tensor:
    """log int e^{l_i(y)} dy, each looked for around N(centre_i, root_i root_i'): (n,).

    Shapes: centres (n, d), lower triangular roots (n, d, d); log_integrand maps (n, m, d) to (n, m). One rule
    for all, refined as in `integrate`, to at most 2^12 nodes; `sizes` (n,) is the size of what cancels in
    l_i, whose rounding is not asked to settle.
    """
    dim, radius, spacing = centres.shape[1], _FIRST_RADIUS, _FIRST_SPACING
    log_det = roots.diagonal(dim1=1, dim2=2).log().sum(1)
    previous = torch.full_like(log_det, torch.inf)
    while True:
        z = box(dim, radius, spacing)
        log_terms = log_integrand(centres[:, None] + z @ roots.mT)
        faces = z.abs().amax(1) > radius - spacing / 2
        full = (2 * 1.5 * radius / spacing) ** dim > _LARGEST_SHARED_GRID
        if not full and float((log_terms[:, faces].amax(1) - log_terms.amax(1)).max()) > _NEGLIGIBLE:
            radius *= 1.5
            continue
        found = log_terms.logsumexp(1) + dim * math.log(spacing) + log_det
        agree = (found - previous).abs() <= _AGREEMENT * (1 + found.abs()) + _ROUNDING * sizes
        if bool(agree.all()) or (4 * radius / spacing) ** dim > _LARGEST_SHARED_GRID:
            return found
        previous, spacing = found, spacing / 2


def piece_at(law: Law, log_integrand: Function, f: Function) -> Piece:
    """A piece looked for where `law` lives."""
    return Piece(law.mean, covariance_root(law.covariance), log_integrand, f)


def mean_under(law: Law, f: Function, log_weight: Function | None = None) -> float:
    """E f(X), or E f(X) e^w / E e^w, for X a Gaussian, a mixture or a point; dimensions as in `integrate`."""
    if isinstance(law, Dirac):
        return float(f(law.mean[None]))
    if isinstance(law, GaussianMixture):
        parts = list(zip(law.log_weights.tolist(), law.components))
    elif isinstance(law, Gaussian):
        parts = [(0.0, law)]
    else:
        raise NoClosedForm(
            f"the mean of a function under a {type(law).__name__} has no closed form or stated quadrature"
        )
    weight = log_weight or (lambda y: torch.zeros(len(y), dtype=torch.float64))
    return integrate([piece_at(part, _product(part, w, weight), f) for w, part in parts]).mean


def _product(law: Law, constant: float, weight: Function) -> Function:
    return lambda y: law.log_prob(y) + constant + weight(y)
