"""Learning a value instead of a control: regression on the reward to go, price of control included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.errors import BadInput
from sdecontrol.finetune.batch import Batch, Loss
from sdecontrol.finetune.values import ValueFamily
from sdecontrol.path import Path, half_square, inner

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


def returns_to_go(problem: Problem, path: Path, control: Any) -> Tensor:
    """R_k = r(x_K)/T + sum_{j >= k} [dt rho(x_j)/T - w_j . z_j + |w_j|^2/2], the certificate from k on: (K + 1, n).

    z_j = xi_j + w_j is the whole noise, so E[R_k | x_k] is the reward to go minus the path KL to go.
    """
    assert path.noises is not None
    gains = torch.zeros(len(path.transitions) + 1, path.n, dtype=torch.float64)
    gains[-1] = problem.reward(path.terminal).double() / problem.temperature
    if path.observed is not None:
        gains[:-1] += torch.tensor(path.grid.dt)[:, None] * path.observed[:-1].double() / problem.temperature
    for k, step in path.views(control.requires_jacobian):
        w = control(step) * step.dt**0.5
        gains[k] += half_square(w) - inner(w, path.noises[k])
    return gains.flip(0).cumsum(0).flip(0)


class ValueRegression(Loss):
    """mean over k of E (V_theta(t_k, x_k) - R_k)^2 / 2 along paths of the control that V_theta itself makes.

    R_k is the reward to go minus log dQ^u/dQ to go (`returns_to_go`), in units of the temperature: its conditional mean
    is the value of the present control, so this is policy iteration, u = sigma grad V_theta being the improvement. At
    the optimum R_k = V(t_k, x_k) on every path and the regression has no noise left. On policy; needs values of the
    reward only, so steps and black boxes are admitted; needs a `ValueFamily`. The control is the gradient of a fit,
    which converges more slowly than the fit, and its fixed point differs from the chain's best mean shift by the
    look-ahead of `ValueFamily`. Source: derived.
    """

    def check(self, problem: Problem, control: Any) -> None:
        if not isinstance(control, ValueFamily):
            raise BadInput(
                f"saw a {type(control).__name__}; wanted a value family, whose control is the gradient of the value. "
                "Pass sc.finetune.QuadraticValue(dim) or sc.finetune.NetworkValue(dim)."
            )

    def forward(self, problem: Problem, control: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            path = batch.paths(problem, control)
            target = returns_to_go(problem, path, control)
        assert path.states is not None
        values = [control.value(float(t), x) for t, x in zip(path.times, path.states)]
        return (torch.stack(values).double() - target).square().mean() / 2
