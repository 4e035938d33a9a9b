"""One step of a chain: what a control sees, and the one-step `advance` that every loop shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.errors import check

if TYPE_CHECKING:
    from sdecontrol.kernels import Transition
    from sdecontrol.processes import Process, State


class StepView:
    """The step from (t, x) to t_next as a control sees it, before the noise is drawn.

    x, mean, score, x0_hat: (n, *event); std a number, or (d, d) for kernels with a matrix noise; dt = t_next - t.
    A control returns u, and the step is x+ = mean + std (xi + sqrt(dt) u).
    """

    def __init__(self, process: Process, transition: Transition, k: int, state: State):
        self.process, self.transition, self.k, self.state = process, transition, k, state
        self.t, self.t_next, self.dt = transition.t, transition.t_next, transition.dt
        self.x, self.std = state.x, transition.std

    @cached_property
    def mean(self) -> Tensor:
        """Mean of the uncontrolled step."""
        return self.transition.mean(self.state)

    @property
    def g(self) -> Any:
        """The step's own amplitude std / sqrt(dt)."""
        return self.std / self.dt**0.5

    @property
    def score(self) -> Tensor:
        return self.state.score

    @property
    def x0_hat(self) -> Tensor:
        """E[X_0 | X_s = x] by Tweedie's formula from the call already made."""
        return self.state.x0_hat

    def pullback(self, c: Tensor) -> Tensor:
        """c (n, *event) times the Jacobian of x0_hat."""
        return self.state.pullback(c)

    def reward_gradient(self, reward: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient in x of reward(x0_hat(x)): the pullback of the reward's gradient. A graph of x is kept."""
        gradient = getattr(reward, "gradient", None)
        if gradient is not None:
            return self.pullback(gradient(self.x0_hat))
        graph = self.x0_hat.requires_grad
        with torch.enable_grad():
            x0 = self.x0_hat if graph else self.x0_hat.detach().requires_grad_()
            slope = torch.autograd.grad(reward(x0).sum(), x0, create_graph=graph)[0]
        return self.pullback(slope)

    def from_value(self, gradient: Tensor, temperature: float) -> Tensor:
        """sqrt(dt) u = std' grad / temperature: first-order optimum of the chain for a value with this gradient."""
        return self.transition.spread_transposed(gradient) / (temperature * self.dt**0.5)

    def from_score(self, delta: Tensor) -> Tensor:
        """The control that moves the mean as if the score were score + delta: sqrt(dt) u = c_f delta / std."""
        return self.from_mean(self.transition.field_weight * delta)

    def from_mean(self, delta: Tensor) -> Tensor:
        """The control that moves the mean by delta: sqrt(dt) u = delta / std."""
        return self.transition.unspread(delta) / self.dt**0.5


def advance(
    process: Process, transition: Transition, k: int, x: Tensor, xi: Tensor, control: Any
) -> tuple[Tensor, Tensor | None]:
    """(x+, w): the next state and the shift w = sqrt(dt) u of its noise (None where nothing is controlled).

    x (n, *event), xi standard normals of the same shape. A step without noise is never controlled.
    """
    acts = control is not None and not transition.noiseless
    if acts or transition.calls_model:
        state = process.state(transition.t, x, jacobian=acts and control.requires_jacobian)
    else:
        state = process.silent_state(transition.t, x)
    if not acts:
        return transition.finish(process, state, transition.mean(state), xi), None
    step = StepView(process, transition, k, state)
    w = noise_shift(step, control)
    return transition.finish(process, state, step.mean, xi + w), w


def noise_shift(step: StepView, control: Any) -> Tensor:
    """w = sqrt(dt) u of a control at this step: (n, *event). Raises BadInput for a control of another shape."""
    u = control(step)
    if u.shape != step.x.shape:
        check(
            False,
            f"a control of shape {tuple(u.shape)} at step {step.k} (t = {step.t:.6g})",
            f"{tuple(step.x.shape)}, that of x",
        )
    return u * step.dt**0.5
