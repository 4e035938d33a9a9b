"""Rounds of infinite size: the recursion of the means in closed form, where it ends and how fast it gets there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdecontrol.errors import NotDefined, check
from sdecontrol.guidance.ascent.refits import Batch, MomentMatching
from sdecontrol.guidance.ascent.rounds import Objective
from sdecontrol.guidance.ascent.targets import Slope, Target
from sdecontrol.guidance.base import gradient_at
from sdecontrol.laws import Law, Subspace
from sdecontrol.laws.base import restricted
from sdecontrol.rewards import GaussianLabel

_NEWTON_STEPS = 200
_SHORTEST = 2.0**-40  # of a Newton step


@dataclass(frozen=True, eq=False)
class MeanField:
    """Means (K + 1, D) and objectives f(mean) (K + 1,) of rounds 0 .. K, and the model after the last."""

    means: Tensor
    values: Tensor
    law: Law


def mean_field(
    law: Law,
    objective: Objective,
    target: Target,
    *,
    rounds: int,
    label_noise: float = 0.1,
    refit: MomentMatching | None = None,
) -> MeanField:
    """`optimise` with exact sampling of p(x | y_k) and infinitely many samples a round, without any sampling.

    Gaussian data: m_{k+1} = m + eta_k S g_k, eta_k = (y_k - g_k . m) / (sigma^2 + g_k' S g_k), m and S the model's.
    Other laws (mixtures): the exact mean of the tilt by the label. Stops early where the gradient is zero.
    Raises: BadInput where a label is so sharp that no variance is left along it in float64 (g' S g > 1e15 sigma^2).
    Source: derived (theory of Guo et al. 2404.14743, Theorems 2 and 3, for exact sampling).
    """
    check(isinstance(rounds, int) and rounds >= 1, f"rounds = {rounds!r}", "a positive integer")
    model, means = law, [law.mean]
    batches: list[Batch] = [law]
    for _ in range(rounds):
        g = gradient_at(objective, means[-1].double())
        if not bool(g.any()):
            break
        y = target(Slope(g, means[-1], model, law), label_noise**2)
        drawn = model.tilt(GaussianLabel(g, y, label_noise), 1.0)
        batches.append(drawn)
        means.append(drawn.mean)
        if refit is not None:
            model = refit.law(law, batches)
    stacked = torch.stack(means)
    return MeanField(stacked, objective(stacked).detach(), model)


def regularised_maximum(law: Law, objective: Objective, strength: float = 0.0) -> Tensor:
    """argmax over the support of f(x) - strength/2 |x - m|^2 in S^{-1}, m and S the moments of the law: (D,).

    On a subspace x stays in it. strength 0: the maximum of f on the support. It is also the mode of the Gaussian of
    these moments tilted by f at temperature `strength` (derived). By Newton's method with halved steps on a concave
    objective; accuracy: gradient at rounding. Raises: NotDefined where f is not concave there or has no maximum.
    Source: Guo et al. 2404.14743, (13).
    """
    check(0 <= strength < float("inf"), f"strength = {strength}", "a number >= 0")
    inner, f, lift = _on_support(law, objective)
    mean, precision = inner.mean, strength * torch.linalg.inv(inner.covariance)

    def merit(u: Tensor) -> Tensor:
        return f(u[None])[0] - (u - mean) @ precision @ (u - mean) / 2

    return lift(_newton(merit, mean)[None])[0]


def _newton(merit: Objective, start: Tensor) -> Tensor:
    """The maximum of a concave function of u (d,), by Newton's method with halved steps."""
    with torch.enable_grad():
        u = start
        for _ in range(_NEWTON_STEPS):
            slope = torch.autograd.functional.jacobian(merit, u)
            bend = -torch.autograd.functional.hessian(merit, u)
            values, vectors = torch.linalg.eigh((bend + bend.mT) / 2)
            if float(values[0]) < -1e-9 * float(values.abs().max()):
                raise NotDefined(f"the objective bends upwards by {-float(values[0]):.3g} at a point of the support; "
                                 "wanted a concave one")  # fmt: skip
            kept = values > 1e-12 * float(values.max())
            along = vectors.mT @ slope
            move = vectors[:, kept] @ (along[kept] / values[kept])
            if float(move.norm()) <= 1e-8 * (1 + float(u.norm())):
                return u + move  # within 1e-16 of it: the steps' lengths square
            here, size = float(merit(u)), 1.0
            while float(merit(u + size * move)) < here and size > _SHORTEST:
                size /= 2
            u = u + size * move
    raise NotDefined("no maximum found on the support; wanted a concave objective with one")


def largest_curvature(law: Law, objective: Objective, x: Tensor | None = None) -> float:
    """L = the largest eigenvalue of -S^{1/2} Hess f S^{1/2} at x (D,), by default the law's mean.

    It is the Lipschitz constant of grad f from |.|_{S^{-1}} to |.|_S for a quadratic f, the local one for others: the
    means of Algorithm 1 contract at the rate L/strength, and not at all for strength < L. Source: derived.
    """
    inner, f, _ = _on_support(law, objective)
    u = inner.mean if x is None else (law.encode(x[None])[0] if isinstance(law, Subspace) else x)
    with torch.enable_grad():
        bend = -torch.autograd.functional.hessian(lambda v: f(v[None])[0], u)
    values, vectors = torch.linalg.eigh(inner.covariance)
    root = vectors * values.clamp(min=0).sqrt()
    return float(torch.linalg.eigvalsh(root.mT @ ((bend + bend.mT) / 2) @ root)[-1])


def _on_support(law: Law, objective: Objective) -> tuple[Law, Objective, Callable[[Tensor], Tensor]]:
    """The law and f in latent coordinates, and the way back; on the whole space they are what they are."""
    if isinstance(law, Subspace):
        return law.latent, restricted(objective, law.basis, law.offset), law.decode
    return law, objective, lambda u: u
