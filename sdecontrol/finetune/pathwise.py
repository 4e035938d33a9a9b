"""Relative entropy by differentiating the simulation itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.finetune.batch import Batch, Loss, check_differentiable, returns
from sdecontrol.finetune.families import Frozen
from sdecontrol.laws import Law

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


class RelativeEntropy(Loss):
    """E_{Q^u}[log dQ^u/dQ - (r(x_K) + sum dt rho)/temperature] = KL(Q^u || Q*) - log Z, through the simulation.

    The paths x_{k+1} = mean(x_k) + std (xi_k + sqrt(dt) u_theta(x_k)) are differentiated in theta. With `sticking` the
    density ratio is taken with constant parameters along these moving paths,

        log dQ^{stop(theta)}/dQ = sum_k w_k . xi_k + |w_k|^2 / 2,   w_k = sqrt(dt) u_{stop(theta)}(x_k(theta)),

    which drops a term of mean zero, the score of the path law: the mean gradient is the same, and where the optimum is
    attained (u = u* makes the integrand constant on path space) its variance vanishes there. It costs a second pass of
    the control. On policy; needs the gradient of the reward; memory O(n K) for the graph.
    Source: derived (the path derivative estimator of variational inference, for path laws).
    """

    def __init__(self, sticking: bool = True):
        super().__init__()
        self.sticking = sticking

    def extra_repr(self) -> str:
        return f"sticking={self.sticking}"

    def check(self, problem: Problem, control: Any) -> None:
        check_differentiable(problem)

    def forward(self, problem: Problem, control: Any, batch: Batch) -> Tensor:
        path = batch.paths(problem, control, grad=True)
        log_ratio = batch.replay(path, Frozen(control)) if self.sticking else path.weights.log_ratio()
        return (log_ratio - returns(problem, path)).mean()


class TorchsdeAdjoint(Loss):
    """The relative entropy of the continuous process by torchsde's stochastic adjoint: memory O(1) in the steps.

    KL(Q^u || Q) is torchsde's logqp, integrated beside the state by its Euler scheme on the batch's grid, and the
    gradient solves the adjoint SDE backwards on the same Brownian path. Discretise-then-differentiate
    (`RelativeEntropy`) is the exact gradient of the chain; this one carries an error O(dt) of its own. Float64,
    controls of (t, x) only, uniform grids, one Brownian tree a batch: for small problems and as a second route.
    """

    def check(self, problem: Problem, control: Any) -> None:
        check_differentiable(problem)

    def forward(self, problem: Problem, control: Any, batch: Batch) -> Tensor:
        import torchsde

        process = problem.process
        times = torch.tensor(batch.grid_of(process).resolve(process).times, dtype=torch.float64)
        law = batch.initial if isinstance(batch.initial, Law) else process.initial_law(float(times[0]))
        start = law.sample(batch.n, batch.noise, stream="initial").double()
        brownian = torchsde.BrownianInterval(
            float(times[0]), float(times[-1]), size=(batch.n, process.dim + 1), dtype=torch.float64,
            entropy=batch.noise.seed % 2**63,
        )  # fmt: skip  # one coordinate more for logqp, which torchsde appends to the state
        states, log_ratios = torchsde.sdeint_adjoint(
            process.to_torchsde(control), start, times, bm=brownian, method="euler", adjoint_method="euler",
            dt=float(times[1] - times[0]), logqp=True, adjoint_params=tuple(control.parameters()),
        )  # fmt: skip
        gains = problem.reward(states[-1])
        if problem.running_reward is not None:
            rates = [problem.running_rate(float(t), x) for t, x in zip(times[:-1], states)]
            gains = gains + times.diff() @ torch.stack(rates)
        return (log_ratios.sum(0) - gains / problem.temperature).mean()
