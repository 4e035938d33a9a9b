"""Matching losses: regress the control on a target made of gradients along its own paths.

A step is a map (x, z) -> x+ of the state and of the whole noise z = xi + sqrt(dt) u, so the vector-Jacobian product of
one call gives both what the adjoint needs (in x) and what the control needs (in z), for every kernel.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.finetune.batch import Batch, Loss, check_differentiable, slope
from sdecontrol.path import Path, inner
from sdecontrol.step import StepView, noise_shift

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


def step_pullback(path: Path, k: int, c: Tensor) -> tuple[Tensor, Tensor]:
    """(J_x' c, J_z' c) of the uncontrolled step x+ = step_k(x, z) at the path's own x_k and z_k; (n, *event) each.

    J_z' c = std' c for Gaussian kernels, zero for a noiseless step.
    """
    assert path.states is not None and path.noises is not None
    transition = path.transitions[k]
    with torch.enable_grad():
        x, z = path.states[k].detach().requires_grad_(), path.noises[k].detach().requires_grad_()
        state = path.process.state(transition.t, x)
        end = transition.finish(path.process, state, transition.mean(state), z)
        in_x, in_z = torch.autograd.grad(end, (x, z), c, allow_unused=True)
    return in_x, torch.zeros_like(z) if in_z is None else in_z


def running_slope(problem: Problem, path: Path, k: int) -> Tensor | float:
    """dt_k grad rho(t_k, x_k) / temperature, 0 without a running reward."""
    if problem.running_reward is None:
        return 0.0
    assert path.states is not None
    t, dt = float(path.times[k]), float(path.grid.dt[k])
    return slope(lambda x: problem.running_rate(t, x), path.states[k]) * (dt / problem.temperature)


def regression(path: Path, control: Any, targets: dict[int, Tensor]) -> Tensor:
    """sum_k |w_k - target_k|^2 / 2 of each path, w_k = sqrt(dt_k) u(x_k): (n,), float64."""
    total: Tensor = torch.zeros(path.n, dtype=torch.float64)
    for k, step in path.views(control.requires_jacobian):
        residual = control(step) * step.dt**0.5 - targets[k]
        total = total + inner(residual, residual) / 2
    return total


class Matching(Loss):
    """Mean over on-policy paths of sum_k |w_k - target_k|^2 / 2, the targets constant."""

    def check(self, problem: Problem, control: Any) -> None:
        check_differentiable(problem)

    @abstractmethod
    def targets(self, problem: Problem, path: Path, control: Any) -> dict[int, Tensor]:
        """target_k (n, *event) of every step that a control acts on, along paths of that control."""

    def forward(self, problem: Problem, control: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            path = batch.paths(problem, control)
            targets = self.targets(problem, path, control)
        return regression(path, control, targets).mean()


def noise_feedback(path: Path, k: int, control: Any) -> Tensor:
    """(dw_k/dx)' xi_k at the path's own x_k, with xi_k = z_k - w_k the noise drawn: its mean given x_k is zero."""
    assert path.states is not None and path.noises is not None
    transition = path.transitions[k]
    if transition.noiseless:
        return torch.zeros_like(path.states[k])
    with torch.enable_grad():
        x = path.states[k].detach().requires_grad_()
        state = path.process.state(transition.t, x, jacobian=control.requires_jacobian)
        w = noise_shift(StepView(path.process, transition, k, state), control)
        (in_x,) = torch.autograd.grad(w, x, path.noises[k] - w.detach(), allow_unused=True)
    return torch.zeros_like(path.states[k]) if in_x is None else in_x


class AdjointMatching(Matching):
    """target_k = J_z' p_{k+1}, p the lean adjoint of the chain: p_K = grad r/T, p_k = J_x' p_{k+1} + dt grad rho/T.

    J_x, J_z are the Jacobians of the *uncontrolled* step, p = -a in the usual sign. The regression at step k is on the
    adjoint *after* the step, k + 1: with p_k the control would be multiplied by the Jacobian of its own step. The best
    mean shift has value W_k = dt rho/T + max_w E W_{k+1}(step(x, xi + w)) - |w|^2/2, hence w = E J_z' grad W_{k+1} and,
    by the envelope theorem, grad W_k = dt grad rho/T + E J_x' grad W_{k+1}: the fixed point is exactly the best mean
    shift of the chain, at any number of steps (derived).
    On policy; needs the gradient of the reward and one vector-Jacobian product of the pretrained model a step. The
    published loss needs no derivative of the control, and its targets keep their noise at the optimum. With `sticking`

        p_k = J_x' p_{k+1} + dt grad rho/T - (dw_k/dx)' xi_k,

    whose last term has mean zero given x_k, so the fixed point stays. At the optimum it cancels the noise that step k
    brings to the adjoint, to first order in dt (dw_k/dx ~ std' Hess W_{k+1} J_x): the targets' noise falls by sqrt(dt),
    and is zero where u* does not depend on x. It costs one vector-Jacobian product of the control a step.
    Source: Adjoint Matching (2409.08861) in continuous time; the chain's version, its index and `sticking` are derived.
    """

    def __init__(self, sticking: bool = False):
        super().__init__()
        self.sticking = sticking

    def extra_repr(self) -> str:
        return f"sticking={self.sticking}"

    def targets(self, problem: Problem, path: Path, control: Any) -> dict[int, Tensor]:
        targets = {}
        p = slope(problem.reward, path.terminal) / problem.temperature
        for k in reversed(range(len(path.transitions))):
            in_x, targets[k] = step_pullback(path, k, p)
            p = in_x + running_slope(problem, path, k)
            if self.sticking:
                p = p - noise_feedback(path, k, control)
        return targets
