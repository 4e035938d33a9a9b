"""Learning the initial law: with p_noise kept, no control reaches the tilt unless the chain forgets its start.

The objective splits as E_nu[v^u(0, x_0)] - temperature KL(nu || p_noise), v^u the value of the control used, so given u
the best start is p_noise e^{v^u(0, .)/temperature}, and nu* when u is optimal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdecontrol.controls import as_control
from sdecontrol.errors import BadInput, check
from sdecontrol.exact.pushforward import pushforward
from sdecontrol.finetune.batch import Batch, Loss, check_differentiable, returns
from sdecontrol.finetune.checkpoint import FitRecord
from sdecontrol.finetune.families import Frozen
from sdecontrol.finetune.fit import SAVE_EVERY, Decay, Training, cosine
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Dirac, Law
from sdecontrol.noise import Noise
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


@dataclass(frozen=True)
class _Map:
    """x = matrix y + offset, without noise."""

    matrix: Tensor
    offset: Tensor
    noise: Tensor


class AffineStart(nn.Module):
    """The law of L y + m with y ~ base: a Gaussian when the base is one, else an affine flow of it.

    L is lower triangular with a positive diagonal; both start at the identity map, the base itself.
    """

    def __init__(self, base: Law):
        super().__init__()
        check(len(base.event_shape) == 1, f"a law on {base.event_shape}", "a law on vectors (d,)")
        check(not isinstance(base, Dirac), "a point as the initial law", "a law with a density",
              "A fixed start has no other law of finite KL: there is nothing to learn.")  # fmt: skip
        self.base, d = base, base.event_shape[0]
        self.offset = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        self.log_diagonal = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        self.lower = nn.Parameter(torch.zeros(d, d, dtype=torch.float64))

    @property
    def matrix(self) -> Tensor:
        return torch.tril(self.lower, -1) + torch.diag(self.log_diagonal.exp())

    def push(self, y: Tensor) -> Tensor:
        """L y + m: (n, d) -> (n, d)."""
        return y @ self.matrix.mT + self.offset

    def log_prob_frozen(self, x: Tensor) -> Tensor:
        """log density at x with the parameters as constants, so that gradients flow through x alone: (n,)."""
        matrix = self.matrix.detach()
        y = torch.linalg.solve_triangular(matrix, (x - self.offset.detach()).mT, upper=False).mT
        return self.base.log_prob(y) - self.log_diagonal.detach().sum()

    def law(self) -> Law:
        """As a law for `simulate` and `evaluate`. Raises NoClosedForm unless the base is Gaussian or a mixture."""
        matrix = self.matrix.detach()
        return pushforward(self.base, [_Map(matrix, self.offset.detach(), torch.zeros_like(matrix))])


class InitialEntropy(Loss):
    """E[log nu(x_0)/p_noise(x_0) + log dQ^u/dQ(.|x_0) - R] = KL(Q^{u,nu} || Q*) - log Z in the parameters of nu.

    x_0 = L y + m and the path from it are differentiated; the density's own parameters are constants, so the variance
    vanishes where (u, nu) is optimal. Source: derived; ELEGANT (2402.15194) learns the initial law by a second control
    problem, this is its one-step version.
    """

    def __init__(self, start: AffineStart, control: Any):
        super().__init__()
        self.start = start
        self.control = Frozen(control) if isinstance(control, nn.Module) else as_control(control)

    def check(self, problem: Problem, control: Any) -> None:
        check_differentiable(problem)

    def forward(self, problem: Problem, control: Any, batch: Batch) -> Tensor:
        y = self.start.base.sample(batch.n, batch.noise, stream="initial")
        x = self.start.push(y)
        path = replace(batch, initial=x).paths(problem, self.control, grad=True)
        reference = path.reference_initial
        log_initial = self.start.log_prob_frozen(x) - reference.log_prob(x)
        return (log_initial + path.weights.martingale + path.weights.energy - returns(problem, path)).mean()


def fit_initial(
    problem: Problem,
    control: Any = None,
    start: AffineStart | None = None,
    *,
    steps: int = 500,
    n: int = 512,
    rate: float = 2e-2,
    decay: Decay = cosine,
    grid: TimeGrid | None = None,
    kernel: Kernel | None = None,
    noise: Noise | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    save_every: float = SAVE_EVERY,
    progress: bool = True,
) -> tuple[AffineStart, FitRecord]:
    """The law that the paths should start from under `control`: min KL(Q^{u,nu} || Q*) over affine maps of p_noise.

    start: default the family around p_noise. `start.law()` goes to simulate, evaluate and fit as `initial`. With a
    control that is not optimal the answer is the best start for *that* control. Arguments as in `fit`.
    Raises, before work: BadInput for a Dirac start; NotDefined for a reward without gradient.
    """
    chosen_grid = grid or problem.process.default_grid
    times = chosen_grid.resolve(problem.process).times
    start = start or AffineStart(problem.process.initial_law(float(times[0])))
    if tuple(start.base.event_shape) != problem.process.event_shape:
        raise BadInput(f"saw a start on {start.base.event_shape}; wanted {problem.process.event_shape}.")
    loss = InitialEntropy(start, control)
    loss.check(problem, control)
    batch = Batch(n, noise or Noise(0), chosen_grid, kernel or problem.process.default_kernel, None, torch.float64)
    settings = {"loss": "InitialEntropy", "steps": steps, "n": n, "seed": batch.noise.seed, "rate": rate,
                "grid": repr(chosen_grid), "problem": problem.name}  # fmt: skip
    optimiser = torch.optim.Adam(start.parameters(), lr=rate)
    objective = lambda batch: loss(problem, control, batch)  # noqa: E731
    run = Training(start, loss, objective, batch, steps, optimiser, decay, FitRecord(settings))
    return start, run.carry_out(checkpoint, resume, save_every, progress)
