"""SOC matching: regress the control on a gradient of log E e^R that a learned matrix keeps quiet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdecontrol.errors import NotDefined
from sdecontrol.finetune.batch import Batch, Loss, check_differentiable, returns, slope
from sdecontrol.finetune.families import seeded
from sdecontrol.finetune.matching import regression, running_slope, step_pullback
from sdecontrol.kernels import Transition
from sdecontrol.path import Path

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


class Reparametrisation(nn.Module):
    """M(t, s) = I + (1 - e^{-rate (s - t)}) network(t, s) in R^{d x d}: M(t, t) = I, and M = I at first."""

    def __init__(self, dim: int, width: int = 64, rate: float = 2.0, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dim, self.rate, self.dtype = dim, rate, dtype
        with seeded(0):
            leave = nn.Linear(width, dim * dim)
            layers = nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), leave
        nn.init.zeros_(leave.weight)
        nn.init.zeros_(leave.bias)
        self.network = nn.Sequential(*layers).to(dtype)

    def forward(self, times: Tensor) -> Tensor:
        """M(t_i, t_j) for i <= j, zero below: (N, N, d, d)."""
        n, d = len(times), self.dim
        i, j = torch.triu_indices(n, n)
        pairs = torch.stack([times[i], times[j]], 1)
        moved = -torch.expm1(-self.rate * (times[j] - times[i]))[:, None, None] * self.network(pairs).view(-1, d, d)
        matrices = times.new_zeros(n, n, d, d)
        return matrices.index_put((i, j), torch.eye(d, dtype=times.dtype) + moved)


class SOCMatching(Loss):
    """E_{Q*} sum_k |w_k - std' G_{k+1}|^2 / 2 over u and M; on-policy paths with weights softmax(R_u).

    Move a path by delta_i = e, delta_j = M_ij' e for j > i: the noises change, the volume does not, so differentiating
    log E[e^R | x_i] along the moved paths gives an unbiased target for any M,

        G_i = a_i + sum_{i < j <= N} M_ij (a_j - z_{j-1} / std_{j-1}),
        a_j = dt grad rho(x_j) / T + J_j' z_j / std_j for j < N,   a_N = grad r(x_N) / T,

    with J_j the Jacobian of the uncontrolled mean; a last noiseless step is pulled back into a_N. E_{Q*}[std' G_{k+1} |
    x_k] is the mean of the optimal kernel's noise (Stein's identity), as for cross-entropy; M only changes the
    variance, and learning it lowers it. Needs the gradient of the reward; the weights degenerate far from the optimum.
    Source: SOC matching (Domingo-Enrich et al. 2023) in continuous time; this exact version for chains is derived.
    Raises: NotDefined for kernels whose step is not mean + std z.
    """

    def __init__(self, matrices: Reparametrisation):
        super().__init__()
        self.matrices = matrices

    def check(self, problem: Problem, control: Any) -> None:
        check_differentiable(problem)

    def forward(self, problem: Problem, control: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            path = batch.paths(problem, control)
            weights = torch.softmax(returns(problem, path) - path.weights.log_ratio(), 0)
            first, changes = self._pieces(problem, path)
        steps, d = len(changes), self.matrices.dim
        times = torch.tensor(path.times[1 : steps + 1], dtype=self.matrices.dtype)
        matrix = self.matrices(times).to(changes).transpose(1, 2).reshape(steps * d, steps * d)
        moved = (matrix @ changes.mT.reshape(steps * d, -1)).view(steps, d, -1).mT
        targets = {k: path.transitions[k].spread_transposed(first[k] + moved[k]) for k in range(steps)}
        return (weights * regression(path, control, targets)).sum()

    def _pieces(self, problem: Problem, path: Path) -> tuple[Tensor, Tensor]:
        """b_i = z_{i-1}/std_{i-1} and c_i = a_i - b_i, i = 1 .. N, (N, n, d): G_i = b_i + sum_{j >= i} M_ij c_j."""
        assert path.noises is not None
        steps = len(path.transitions)
        end = slope(problem.reward, path.terminal) / problem.temperature
        while path.transitions[steps - 1].noiseless:
            steps -= 1
            end = step_pullback(path, steps, end)[0] + running_slope(problem, path, steps)
        whitened = torch.stack([_whitened(path, k) for k in range(steps)])
        ahead = [step_pullback(path, k, whitened[k])[0] + running_slope(problem, path, k) for k in range(1, steps)]
        return whitened, torch.stack([*ahead, end]) - whitened


def _whitened(path: Path, k: int) -> Tensor:
    """z_k / std_k."""
    transition = path.transitions[k]
    if type(transition).finish is not Transition.finish:
        raise NotDefined(
            f"SOC matching on a {type(transition).__name__}, whose step is not mean + std z; "
            "use EulerMaruyama, Exponential, Ancestral or DDIM"
        )
    assert path.noises is not None
    return transition.unspread(path.noises[k])
