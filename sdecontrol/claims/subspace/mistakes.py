"""Mistakes in gradient guidance, put in place of the library's answers: each claim must notice those about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.claims.mutants import mutant
from sdecontrol.claims.subspace.setting import Answers
from sdecontrol.guidance import ascent, doob, g_loss, naive
from sdecontrol.laws import Gaussian, Law, Subspace
from sdecontrol.problems.base import Problem
from sdecontrol.rewards import GaussianLabel

if TYPE_CHECKING:
    from sdecontrol.guidance.ascent.refits import Batch


def _with(**wrong: Any) -> dict[str, Any]:
    return {"gradient_guidance": replace(Answers(), **wrong)}


@mutant("G_loss with the code's weight", "", "guo-lemma-1")
def _code_weight(problem: Problem, e: Any) -> dict[str, Any]:
    return _with(loss=partial(g_loss, beta="code"))


@mutant("label with twice its noise", "guo-lemma-1")
def _wide_label(problem: Problem, e: Any) -> dict[str, Any]:
    def posterior(made: Problem) -> Any:
        label = made.reward
        assert isinstance(label, GaussianLabel)
        wide = GaussianLabel(label.direction, label.target, 2 * label.noise)
        return doob(Problem(made.process, wide, made.temperature), form="score")

    return _with(posterior=posterior)


@mutant("gradient of the reward for that of the lookahead loss", "guo-theorem-1")
def _naive(problem: Problem, e: Any) -> dict[str, Any]:
    return _with(loss=naive)


@mutant("(13) in the metric of the whole space", "guo-theorem-2")
def _flat_metric(problem: Problem, e: Any) -> dict[str, Any]:
    def maximum(law: Law, objective: Any, strength: float = 0.0) -> Tensor:
        inner = law.latent if isinstance(law, Subspace) else law
        flat: Law = Gaussian(inner.mean, torch.ones(len(inner.mean)))
        flat = Subspace.from_frame(law.frame, flat, law.dtype) if isinstance(law, Subspace) else flat
        return ascent.regularised_maximum(flat, objective, strength)

    return _with(maximum=maximum)


@mutant("steps of 1/(2 lambda)", "guo-theorem-2")
def _half_steps(problem: Problem, e: Any) -> dict[str, Any]:
    def mean_field(law: Law, objective: Any, target: Any, **options: Any) -> Any:
        half = ascent.Regularised(2 * target.strength) if isinstance(target, ascent.Regularised) else target
        return ascent.mean_field(law, objective, half, **options)

    return _with(mean_field=mean_field)


class _SpreadForgotten(ascent.MomentMatching):
    """Mixes covariances without the spread between the means of the batches."""

    def law(self, first: Law, batches: Sequence[Batch]) -> Law:
        weights = self.weights(len(batches) - 1).tolist()
        pieces = [(w, *ascent.refits.moments_in(first, b)) for w, b in zip(weights, batches) if w]
        mean = torch.stack([w * m for w, m, _ in pieces]).sum(0)
        matched = Gaussian(mean, torch.stack([w * c for w, _, c in pieces]).sum(0))
        return Subspace.from_frame(first.frame, matched, first.dtype) if isinstance(first, Subspace) else matched


@mutant("spread between the batches forgotten", "guo-theorem-3")
def _no_spread(problem: Problem, e: Any) -> dict[str, Any]:
    return _with(refit=_SpreadForgotten)


@mutant("score never refitted", "guo-theorem-3")
def _no_refit(problem: Problem, e: Any) -> dict[str, Any]:
    def mean_field(law: Law, objective: Any, target: Any, *, refit: Any = None, **options: Any) -> Any:
        return ascent.mean_field(law, objective, target, **options)

    return _with(mean_field=mean_field)


