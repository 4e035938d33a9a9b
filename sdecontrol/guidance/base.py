"""What the laws of guidance share: a control that remembers its problem, and the label that some of them need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdecontrol.controls import Control
from sdecontrol.errors import NotDefined, check
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import GaussianLabel, Reward, Step
from sdecontrol.step import StepView

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem


class Guidance(Control):
    """A control made for one problem; `evaluate` refuses it on another."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.temperature, self.reward = problem.temperature, problem.reward
        self.elementwise = problem.process.elementwise and isinstance(problem.reward, Reward)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self.problem!r}>"


class ReverseGuidance(Guidance):
    """Guidance by x0_hat, which only a reverse diffusion has. Raises NotDefined for other processes."""

    requires_jacobian = True

    def __init__(self, problem: Problem):
        process = problem.process
        if not isinstance(process, ReverseProcess):
            raise NotDefined(
                f"{type(self).__name__} needs x0_hat, the posterior mean of a ReverseProcess; saw a "
                f"{type(process).__name__}. Use sc.guidance.doob with a value."
            )
        super().__init__(problem)
        self.process: ReverseProcess = process

    def level(self, step: StepView) -> tuple[float, float]:
        """(alpha, h) at the level that the step leaves."""
        s = self.process.noise_level(step.t)
        return self.process.schedule.alpha(s), self.process.schedule.h(s)


def check_gradient(problem: Problem) -> None:
    """Raises NotDefined for a reward whose gradient is zero almost everywhere, or that automatic differentiation does
    not see."""
    if isinstance(problem.reward, Step):
        raise NotDefined(
            "a step reward has no gradient that points anywhere; use sc.guidance.pigdm, which smooths it over the "
            "posterior, or sc.guidance.doob"
        )
    if not hasattr(problem.reward, "gradient"):
        with torch.enable_grad():
            x = torch.zeros(2, *problem.process.event_shape, dtype=problem.process.dtype, requires_grad=True)
            seen = problem.reward(x).requires_grad
        if not seen:
            raise NotDefined(
                "a reward without gradient: its answer does not depend on x for torch (detached, numpy, or a count). "
                "Write it in torch operations, give it a method gradient(x), or use sc.steering.fk, which needs its "
                "values only"
            )


@dataclass(frozen=True)
class Label:
    """A tilt as a label: proportional to N(target; direction . x, variance); direction has the shape of an event."""

    direction: Tensor
    target: float
    variance: float

    def along(self, x: Tensor) -> Tensor:
        """direction . x: (n, *event) -> (n,)."""
        return x.flatten(1) @ self.direction.flatten().to(x)

    def residual(self, x: Tensor) -> Tensor:
        """target - direction . x: (n,)."""
        return self.target - self.along(x)


def label_of(problem: Problem, name: str) -> Label:
    """The label of a GaussianLabel reward, of variance noise^2 temperature / strength. Raises NotDefined for others."""
    reward = problem.reward
    if not isinstance(reward, GaussianLabel):
        raise NotDefined(
            f"{name} is defined for a label y = direction . x + noise; saw a reward of type {type(reward).__name__}, "
            "wanted sc.GaussianLabel. Use sc.guidance.exact_variance for quadratic rewards, plug_in for any."
        )
    check(reward.strength > 0, f"a label of strength {reward.strength:g}", "a positive strength")
    return Label(reward.direction, reward.target, reward.noise**2 * problem.temperature / reward.strength)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the event: (n, *event), (*event) or (n, *event) -> (n,)."""
    return torch.sum((a * b).flatten(1), dim=1)


def rows(values: Tensor, like: Tensor) -> Tensor:
    """(n,) -> (n, 1, ..., 1), one number for each row of `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def gradient_at(objective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """grad f at one point (*event). Raises BadInput for a gradient that is not finite."""
    known = getattr(objective, "gradient", None)
    with torch.enable_grad():
        point = x[None].detach().requires_grad_()
        g = known(point) if known is not None else torch.autograd.grad(objective(point).sum(), point)[0]
    check(bool(torch.isfinite(g).all()), "a gradient of the objective with NaN or infinite entries", "finite numbers")
    return g[0].detach()
