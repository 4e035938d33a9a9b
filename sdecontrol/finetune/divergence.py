"""Divergences of path laws from their density ratio alone: no gradient of the reward, nor of the dynamics.

With the certificate R_u = (r(x_K) + sum dt rho)/temperature - log dQ^u/dQ of a path, Q^u = Q* iff R_u = log Z on every
path, whatever law v the paths come from. `behaviour` is the control that makes the paths; None means the current one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdecontrol.controls import require_control
from sdecontrol.finetune.batch import Batch, Loss, returns
from sdecontrol.path import Path

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


class CertificateLoss(Loss):
    """A loss of R_u along paths of the law v; gradients go through u along fixed paths."""

    def __init__(self, behaviour: Any = None):
        super().__init__()
        self.behaviour = None if behaviour is None else require_control(behaviour)

    def _paths(self, problem: Problem, control: Any, batch: Batch) -> Path:
        with torch.no_grad():
            return batch.paths(problem, control if self.behaviour is None else self.behaviour)


class LogVariance(CertificateLoss):
    """Var_v(R_u) / 2, the log-variance divergence.

    Zero iff u is optimal and the start is the optimal one; the variance of its gradient vanishes there too. On policy
    its mean gradient is that of the relative entropy. Source: derived (the variance of the certificate R).
    """

    def forward(self, problem: Problem, control: Any, batch: Batch) -> Tensor:
        path = self._paths(problem, control, batch)
        return (returns(problem, path) - batch.replay(path, control)).var() / 2


class TrajectoryBalance(CertificateLoss):
    """E_v (R_u - c)^2 / 2 with log Z = c learned: trajectory balance, also called the moment loss.

    Its minimum over c is the log-variance; a learned c is a baseline that remembers earlier batches. c starts
    at the mean of R over the first batch.
    Source: derived (the second moment of the certificate R).
    """

    rate = 0.1

    def __init__(self, behaviour: Any = None):
        super().__init__(behaviour)
        self.log_z = nn.Parameter(torch.tensor(torch.nan, dtype=torch.float64))

    def forward(self, problem: Problem, control: Any, batch: Batch) -> Tensor:
        path = self._paths(problem, control, batch)
        residual = returns(problem, path) - batch.replay(path, control)
        if self.log_z.isnan():
            self.log_z.data.copy_(residual.detach().mean())
        return (residual - self.log_z).square().mean() / 2


class CrossEntropy(CertificateLoss):
    """-E_{Q*} log dQ^u/dQ = KL(Q* || Q^u) + constant, from paths of v with weights softmax(R_v).

    Convex in u; its fixed point on a chain is the mean of the optimal kernel. The weights degenerate when v is far from
    the optimum: with few effective samples it copies the best path of the batch. Weights normalised over the batch
    bias it by O(1/n). Source: derived (importance sampling of the forward KL).
    """

    def forward(self, problem: Problem, control: Any, batch: Batch) -> Tensor:
        path = self._paths(problem, control, batch)
        weights = torch.softmax(returns(problem, path) - path.weights.log_ratio(), 0)
        return -(weights * batch.replay(path, control)).sum()
