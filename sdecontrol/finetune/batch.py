"""What one iteration of a fit works on: a batch of addressed paths, and losses that read them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdecontrol.errors import NotDefined
from sdecontrol.evaluate import total_reward
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Law
from sdecontrol.noise import Noise
from sdecontrol.path import Path
from sdecontrol.processes import Process
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


@dataclass(frozen=True)
class Batch:
    """n paths of a chain (grid, kernel, initial law), addressed by `noise`; states in `dtype`."""

    n: int
    noise: Noise
    grid: TimeGrid | None = None
    kernel: Kernel | None = None
    initial: Law | Tensor | None = None
    dtype: torch.dtype | None = None

    def paths(self, problem: Problem, control: Any, grad: bool = False) -> Path:
        """The paths under `control`, states kept; with `grad` the graph of parameters and states is kept too."""
        observe = None
        if problem.running_reward is not None:
            observe = lambda k, t, x: problem.running_rate(t, x)  # noqa: E731
        return simulate(
            problem.process, control, self.initial, grid=self.grid, kernel=self.kernel, n=self.n, noise=self.noise,
            observe=observe, grad=grad, dtype=self.dtype,
        )  # fmt: skip

    def grid_of(self, process: Process) -> TimeGrid:
        """The grid of the paths."""
        return self.grid or process.default_grid

    def replay(self, path: Path, control: Any) -> Tensor:
        """log dQ^{u,nu}/dQ of `control` along `path`: (n,); nu is the batch's initial law, p_noise for given states."""
        return path.replay(control, self.initial if isinstance(self.initial, Law) else None)


class Loss(nn.Module):
    """loss(problem, control, batch) -> scalar. What it learns beside the control are its own parameters.

    Every loss is scaled so that near the optimum it is (1/2) E sum_k dt |u - u*|^2 plus a constant. `rate` is the
    default learning rate of the loss's own parameters.
    """

    rate = 1e-2

    def check(self, problem: Problem, control: Any) -> None:
        """Raise, before any work, where this loss is not defined."""

    @abstractmethod
    def forward(self, problem: Problem, control: Any, batch: Batch) -> Tensor:
        """The loss on one batch."""


def returns(problem: Problem, path: Path) -> Tensor:
    """(r(x_K) + sum_k dt_k rho(t_k, x_k)) / temperature of each path: (n,), float64."""
    return total_reward(problem, path) / problem.temperature


def check_differentiable(problem: Problem) -> None:
    """Raise NotDefined when automatic differentiation finds no gradient in the reward or the running reward."""
    rewards = {"reward": problem.reward}
    if problem.running_reward is not None:
        rewards["running reward"] = lambda x: problem.running_rate(0.0, x)
    for name, reward in rewards.items():
        with torch.enable_grad():
            x = torch.zeros(2, *problem.process.event_shape, dtype=problem.process.dtype, requires_grad=True)
            if not reward(x).requires_grad:
                raise NotDefined(
                    f"a loss that differentiates the {name}, which has no gradient here (a step, or a black box); use "
                    "LogVariance, TrajectoryBalance, CrossEntropy or ValueRegression, which need its values only"
                )


def slope(reward: Any, x: Tensor) -> Tensor:
    """Gradient of reward (n, *event) -> (n,) at x, detached."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(reward(x).sum(), x)[0]
