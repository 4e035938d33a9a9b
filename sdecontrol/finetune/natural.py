"""Natural gradients for families that are linear in their parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.finetune.batch import Loss
from sdecontrol.finetune.linear import LinearFamily
from sdecontrol.step import StepView


class NaturalGradient(torch.optim.Adam):
    """theta <- theta - rate (G + ridge tr G)^{-1} gradient, G = E sum_k dt psi psi' along the paths of the loss.

    KL(Q^{u + du} || Q^u) of a chain is E sum_k dt |du|^2 / 2, so on policy G is the Fisher information of the path law.
    It is the Hessian of every loss here near its optimum too, wherever the paths have gone by then: a rate of 1 takes
    Newton's steps, where features that are orthonormal along the model's own paths need a rate that the move of the
    paths decides. A step is shortened to d' G d / 2 <= trust, in nats.
    G is seen as the loss evaluates the family, on the first `paths` paths of each batch, and averaged over iterations
    with weights memory^age. Few paths and a small ridge leave directions unseen in which a step has no limit.
    What `loss` learns of its own takes Adam's steps with the loss's rate.
    family: a `LinearFamily`. One solve of its size (m (d + 1) for affine ones) an iteration.
    Source: natural gradient (Amari 1998); that G is the Hessian is derived.
    """

    def __init__(
        self, family: LinearFamily, loss: Loss | None = None, *, rate: float = 0.5, ridge: float = 1e-6,
        trust: float = 1.0, memory: float = 0.8, paths: int = 256,
    ):  # fmt: skip
        check(isinstance(family, LinearFamily), f"a {type(family).__name__}", "a family linear in its parameters",
              "Take sc.finetune.adam for networks.")  # fmt: skip
        check(ridge > 0 and trust > 0 and 0 <= memory < 1 and paths >= 1,
              f"ridge = {ridge}, trust = {trust}, memory = {memory}, paths = {paths}",
              "ridge > 0, trust > 0, 0 <= memory < 1 and a path or more")  # fmt: skip
        self.family, self.ridge, self.trust, self.memory, self.paths = family, ridge, trust, memory, paths
        self.seen: dict[int, Tensor] = {}  # Gram matrix of each step since the last update
        groups: list[dict[str, Any]] = [{"params": [family.theta], "lr": rate}]
        learned = [] if loss is None else list(loss.parameters())
        if loss is not None and learned:
            groups.append({"params": learned, "lr": loss.rate})
        super().__init__(groups)
        family.observer = self.see

    @torch.no_grad()
    def see(self, step: StepView) -> None:
        """dt psi psi' of a step, the first time that the family acts on it in this iteration."""
        if step.k not in self.seen:
            x = step.x.detach()[: self.paths]
            state = step.process.state(step.t, x, jacobian=self.family.requires_jacobian)
            self.seen[step.k] = self.family.gram(StepView(step.process, step.transition, step.k, state))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the metric, then the parameters."""
        group, theta = self.param_groups[0], self.family.theta
        assert theta.grad is not None
        metric = self._metric(theta)
        damping = torch.einsum("sii->s", metric)[:, None, None] * torch.eye(theta.shape[1]).to(metric) * self.ridge
        move = -group["lr"] * torch.cholesky_solve(theta.grad[..., None], torch.linalg.cholesky(metric + damping))
        nats = float((move.mT @ metric @ move).sum()) / 2
        theta.add_(move[..., 0], alpha=min(1.0, (self.trust / nats) ** 0.5) if nats > 0 else 1.0)
        theta.grad = None  # Adam leaves it alone then
        return super().step(closure)

    def _metric(self, theta: Tensor) -> Tensor:
        """The average G, in the coordinates of theta: (sets, size, size)."""
        check(len(self.seen) > 0, "a step of NaturalGradient before its family was evaluated with gradients",
              "loss(...).backward() before every step")  # fmt: skip
        state, basis = self.state[theta], self.family.basis
        new = basis @ torch.stack(list(self.seen.values())).sum(0) @ basis.mT * (1 - self.memory)
        self.seen.clear()
        state["sum"] = state.get("sum", torch.zeros_like(new)) * self.memory + new
        state["step"] = state.get("step", torch.zeros(())) + 1
        return state["sum"] / (1 - self.memory ** float(state["step"]))
