"""Twisted sampling: guidance by the plug-in gradient proposes, and the weights correct it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.guidance.base import ReverseGuidance, check_gradient
from sdecontrol.guidance.reconstruction import PlugIn
from sdecontrol.laws import Law
from sdecontrol.steering.fk import FeynmanKac, fk
from sdecontrol.step import StepView

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


class PlugInScore(ReverseGuidance):
    """The step's mean as if the score were score + grad_x r(x0_hat(x)) / temperature."""

    def shift(self, step: StepView) -> Tensor:
        return step.from_score(step.reward_gradient(self.reward) / self.temperature)


FORMS: dict[str, type[ReverseGuidance]] = {"value": PlugIn, "score": PlugInScore}


def twisted(
    problem: Problem, particles: int, *, form: str = "value", initial: Law | None = None, threshold: float = 0.5,
    every: int = 1,
) -> FeynmanKac:  # fmt: skip
    """`fk` with the difference potential e^{r(x0_hat)/temperature} as twist and the twist's own gradient as proposal.

    form "value": sqrt(dt) u = std' grad r(x0_hat)/temperature, the chain's first-order optimum for that value; "score":
    the mean of the kernel with score + grad r(x0_hat)/temperature, as published. They agree as dt -> 0; on coarse grids
    the second overshoots, and its weights can be so uneven that no affordable number of particles corrects them.
    Cost: one model call and one pullback a step and particle. Exactness and bias as in `fk`.
    Raises: as `fk`; NotDefined without x0_hat or for a step reward, which has no gradient.
    Source: the twisted diffusion sampler (2306.17775), form "score"; "value" derived.
    """
    check_gradient(problem)
    check(form in FORMS, f"form={form!r}", ", ".join(f'"{name}"' for name in FORMS))
    proposal = FORMS[form](problem)
    return fk(problem, particles, proposal=proposal, initial=initial, threshold=threshold, every=every)
