"""Learned label likelihoods as rewards: strength log p(y | x), whose tilt at temperature 1 is p^strength p_pre."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from sdecontrol.errors import check

Module = TypeVar("Module", bound=nn.Module)


def frozen(module: Module) -> Module:
    """A copy whose parameters are constants: what a reward or a guidance reads, whatever is trained afterwards."""
    return copy.deepcopy(module).requires_grad_(False)


class LabelReward:
    """x (n, *event) -> strength log p(y | x) (n,), in x's dtype and differentiable in x.

    Rewards of labels that are independent given x add: `a + b` is the joint label. Source: CTRL 2406.12120, (2).
    Raises: BadInput for a strength that is not finite.
    """

    def __init__(self, log_likelihood: Callable[[Tensor], Tensor], strength: float = 1.0, name: str = "label"):
        check(callable(log_likelihood), f"a {type(log_likelihood).__name__}", "a function x -> log p(y | x)")
        check(math.isfinite(strength), f"strength = {strength}", "a finite number")
        self.log_likelihood, self.strength, self.name = log_likelihood, float(strength), name

    def __repr__(self) -> str:
        return f"<{self.name}, strength {self.strength:g}>"

    def __call__(self, x: Tensor) -> Tensor:
        return (self.strength * self.log_likelihood(x)).to(x.dtype)

    def gradient(self, x: Tensor) -> Tensor:
        """strength grad log p(y | x): (n, *event), by automatic differentiation."""
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            return torch.autograd.grad(self(y).sum(), y)[0]

    def __add__(self, other: LabelReward) -> SumReward:
        return SumReward([self, other])


class SumReward(LabelReward):
    """sum_j strength_j log p_j(y_j | x): labels that are independent given x, each learned from its own pairs."""

    def __init__(self, terms: list[LabelReward]):
        check(all(callable(term) for term in terms) and len(terms) >= 1, f"{terms!r}", "rewards x -> (n,)")
        self.terms = list(terms)
        super().__init__(self._total, 1.0, " and ".join(repr(term) for term in terms))

    def _total(self, x: Tensor) -> Tensor:
        return torch.stack([term(x) for term in self.terms]).sum(0)

    def __add__(self, other: LabelReward) -> SumReward:
        return SumReward([*self.terms, other])
