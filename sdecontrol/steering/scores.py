"""What can be said of a sampler: its reward, log Z and the distance of its output from the tilt, but no path KL."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NotDefined
from sdecontrol.estimate import Estimate

if TYPE_CHECKING:
    from sdecontrol.problems.base import Discretised
    from sdecontrol.steering.base import Particles

GROUPS = 32  # of populations, for the jackknife
LARGEST = 256  # coordinates up to which covariances are compared


def _undefined(name: str) -> property:
    def raises(self: Any) -> NoReturn:
        raise NotDefined(
            f"{name} of a sampler: the law of what it draws has no density relative to the reference paths, since one "
            "sample depends on many paths; .reward, .log_normalizer, .reward_bias and .distance are defined. A control "
            "has all of them: score the proposal alone."
        )

    return property(raises)


@dataclass(frozen=True)
class SamplerEvaluation:
    """What n samples say about a sampler; a sample is a particle drawn with the weights of its population.

    reward: E r. log_normalizer: log Z by the sampler itself, None where it gives none. optimum: temperature * log Z of
    the chain (closed form, else the shared one, else the sampler's own, or None). reward_bias: E r minus that of the
    tilt, where closed. distance: Wasserstein-2 distance of the Gaussians with the mean and covariance of the samples
    and of the tilt, a lower bound on that of the laws (Gelbrich); exact draws give about sqrt(trace covariance / n).
    ess: sum of the effective sizes of the last weights. kl, objective, gap, excess, certificate and the bounds on the
    total variation raise NotDefined.
    """

    reward: Estimate
    log_normalizer: Estimate | None
    optimum: Estimate | None
    reward_bias: Estimate | None
    distance: Estimate | None
    ess: Estimate

    kl = _undefined("the path KL")
    objective = _undefined("the objective")
    gap = _undefined("the gap")
    excess = _undefined("the excess")
    certificate_mean = _undefined("the certificate")
    certificate_rms = _undefined("the certificate")
    tv_bound = _undefined("the bound on the total variation")
    tv_estimate = _undefined("the estimated total variation")

    def to_dict(self) -> dict[str, Any]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: None if e is None else e.to_dict() for name, e in named.items()}


def evaluate_particles(particles: Particles, chain: Discretised, optimum: Estimate | None) -> SamplerEvaluation:
    """Score a run against the optimum of its own chain; `optimum` is temperature * log Z where somebody knows it."""
    temperature, log_z = chain.problem.temperature, particles.log_normalizer
    reward = particles.expect(lambda x: particles.rewards)
    bias, distance = None, None
    with suppress(NoClosedForm, NotDefined):  # E_tilt r = temperature (KL(P* || P) + log Z), running rewards included
        bias = reward + -temperature * (chain.exact.path_kl + chain.exact.log_normalizer)
    with suppress(NoClosedForm, NotDefined):
        if particles.x[0].numel() <= LARGEST:
            distance = gelbrich(particles, chain.exact.terminal.mean, chain.exact.terminal.covariance)
    return SamplerEvaluation(
        reward, log_z, optimum or (None if log_z is None else log_z * temperature), bias, distance,
        Estimate(float(particles.ess.sum()), 0.0, len(particles.x), "effective samples of n"),
    )  # fmt: skip


def gelbrich(particles: Particles, mean: Tensor, covariance: Tensor) -> Estimate:
    """Distance of the first two moments from (mean, covariance), its standard error by a jackknife over populations."""
    x = particles.x.flatten(1).double() - mean
    groups = min(GROUPS, particles.populations)
    share = torch.arange(particles.populations) * groups // particles.populations
    count = torch.bincount(share).double()
    first = torch.zeros(groups, x.shape[1], dtype=torch.float64).index_add_(0, share, particles.means(x))
    weighted = (x * particles.weights.reshape(-1, 1)).unflatten(0, (particles.populations, -1))
    second = torch.stack([
        torch.einsum("pni,pnj->ij", weighted[share == g], x.unflatten(0, weighted.shape[:2])[share == g])
        for g in range(groups)
    ])  # fmt: skip
    whole = _bures(first.sum(0) / count.sum(), second.sum(0) / count.sum(), covariance)
    if groups == 1:
        return Estimate(whole, math.nan, len(x), "W2 of the first two moments; one population has no standard error")
    kept = (count.sum() - count)[:, None]
    left_out = torch.tensor([
        _bures(m, s, covariance)
        for m, s in zip((first.sum(0) - first) / kept, (second.sum(0) - second) / kept[..., None], strict=True)
    ])  # fmt: skip
    stderr = math.sqrt((groups - 1) / groups * float((left_out - left_out.mean()).square().sum()))
    return Estimate(whole, stderr, len(x), "W2 of the first two moments, a lower bound on that of the laws")


def _bures(gap: Tensor, second: Tensor, covariance: Tensor) -> float:
    """W2 of N(gap, second - gap gap') and N(0, covariance)."""
    a, b = _root(second - torch.outer(gap, gap)), _root(covariance)
    overlap = torch.linalg.svdvals(a @ b).sum()
    squared = gap @ gap + (a * a).sum() + (b * b).sum() - 2 * overlap
    return math.sqrt(max(float(squared), 0.0))  # rounding may leave a negative difference of equal covariances


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
