"""The density ratio of two Gaussian initial laws, degenerate ones included, and its KL."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm
from sdecontrol.exact.pushforward import gaussian_parameters
from sdecontrol.exact.quadratic import LogQuadratic, symmetric
from sdecontrol.laws import Law
from sdecontrol.laws.divergences import kl


@dataclass(frozen=True, eq=False)
class GaussianRatio:
    """log d first/d second of two Gaussians, a quadratic in y: x = origin + root y, with y ~ N(0, I) under second.

    mean (r,) and covariance (r,r): those of y under first; r is the rank of second's covariance.
    """

    origin: Tensor
    root: Tensor
    log_ratio: LogQuadratic
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, first: Law, second: Law) -> GaussianRatio | None:
        """None where the two laws do not live on the same affine subspace."""
        one, two = gaussian_parameters(first), gaussian_parameters(second)
        if one is None or two is None:
            raise NoClosedForm("the path divergences are closed for Gaussian initial laws only")
        (m1, s1), (m2, s2) = one, two
        values, vectors = torch.linalg.eigh(symmetric(s2))
        keep = values > 1e-13 * values[-1]
        scale, basis = values[keep].sqrt(), vectors[:, keep]
        inverse = (basis / scale).mT
        mean, covariance = inverse @ (m1 - m2), symmetric(inverse @ s1 @ inverse.mT)
        both = torch.cat([s1, (m1 - m2)[:, None]], dim=1)
        off_span = float((both - basis @ (basis.mT @ both)).abs().max())
        spread = torch.linalg.eigvalsh(covariance)
        if off_span > 1e-10 * (1 + float(both.abs().max())) or bool((spread <= 1e-13).any()):
            return None
        precision = torch.linalg.inv(covariance)
        constant = -float(mean @ precision @ mean + spread.log().sum()) / 2
        eye = torch.eye(len(scale), dtype=torch.float64)
        return cls(m2, basis * scale, LogQuadratic(precision - eye, precision @ mean, constant), mean, covariance)

    @property
    def kl(self) -> float:
        """KL(first || second)."""
        return self.log_ratio.mean(self.mean, self.covariance)


def initial_kl(first: Law, second: Law) -> float:
    """KL(first || second); Gaussians, degenerate ones included, here, anything else by `laws.divergences.kl`."""
    if first is second:
        return 0.0
    if gaussian_parameters(first) is None or gaussian_parameters(second) is None:
        return float(kl(first, second))
    ratio = GaussianRatio.of(first, second)
    return math.inf if ratio is None else max(ratio.kl, 0.0)
