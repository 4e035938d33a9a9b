"""Natural gradients for families that are linear in their parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.finetune.batch import Loss
from sdecontrol.finetune.linear import LinearFamily
from sdecontrol.step import StepView


class NaturalGradient(torch.optim.Optimizer):
    """theta <- theta - rate (G + ridge tr G)^{-1} gradient, G = E sum_k dt psi psi' along the paths of the loss.

    KL(Q^{u + du} || Q^u) of a chain is E sum_k dt |du|^2 / 2, so on policy G is the Fisher information of the path law.
    It is the Hessian of every loss here near its optimum too, wherever the paths have gone by then: a rate of 1 takes
    Newton's steps, where features that are orthonormal along the model's own paths need a rate that the move of the
    paths decides. A step is shortened to d' G d / 2 <= trust, in nats.
    G is seen as the loss evaluates the family, on the first `paths` paths of each batch, and averaged over iterations
    with weights memory^age. The parameters of `loss` take plain gradient steps of the same rate (the Hessian of the
    constant of `TrajectoryBalance` is 1).
    family: a `LinearFamily`. One solve of its size (m d + m for affine ones) an iteration; ridge decides which
    directions count as unseen. Source: natural gradient (Amari 1998); that G is the Hessian is derived.
    """

    def __init__(
        self, family: LinearFamily, loss: Loss | None = None, *, rate: float = 0.5, ridge: float = 1e-6,
        trust: float = 1.0, memory: float = 0.8, paths: int = 128,
    ):  # fmt: skip
        check(isinstance(family, LinearFamily), f"a {type(family).__name__}", "a family linear in its parameters",
              "Take sc.finetune.adam for networks.")  # fmt: skip
        check(ridge > 0 and trust > 0 and 0 <= memory < 1 and paths >= 1,
              f"ridge = {ridge}, trust = {trust}, memory = {memory}, paths = {paths}",
              "ridge > 0, trust > 0, 0 <= memory < 1 and a path or more")  # fmt: skip
        self.family, self.ridge, self.trust, self.memory, self.paths = family, ridge, trust, memory, paths
        self.seen: dict[int, Tensor] = {}  # Gram matrix of each step since the last update
        own = [] if loss is None else list(loss.parameters())
        super().__init__([{"params": [family.theta]}, *([{"params": own}] if own else [])], {"lr": rate})
        family.observer = self.see

    @torch.no_grad()
    def see(self, step: StepView) -> None:
        """dt psi psi' of a step, the first time that the family acts on it in this iteration."""
        if step.k not in self.seen:
            self.seen[step.k] = self.family.gram(step, self.paths)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the metric, then the parameters."""
        (theta,), rate = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        metric = self._metric(theta)
        damping = self.ridge * metric.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] * torch.eye(theta.shape[1]).to(metric)
        move = -rate * torch.cholesky_solve(theta.grad[..., None], torch.linalg.cholesky(metric + damping))
        nats = float((move.mT @ metric @ move).sum()) / 2
        theta += move[..., 0] * min(1.0, (self.trust / nats) ** 0.5 if nats > 0 else 1.0)
        for group in self.param_groups[1:]:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.grad

    def _metric(self, theta: Tensor) -> Tensor:
        """The average G, in the coordinates of theta: (sets, size, size)."""
        check(len(self.seen) > 0, "a step of NaturalGradient before its family was evaluated with gradients",
              "loss(...).backward() before every step")  # fmt: skip
        state, new = self.state[theta], sum(self.seen.values())
        self.seen.clear()
        weight, before = 1.0 - self.memory, state.get("weight", torch.zeros((), dtype=theta.dtype))
        state["weight"] = before * self.memory + weight
        state["sum"] = new * weight + (state["sum"] * self.memory if "sum" in state else 0.0)
        return state["sum"] / state["weight"]
