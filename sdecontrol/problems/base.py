"""A problem: a reference process, a reward, a temperature, and where its exact answers are found."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.errors import BadInput, NoClosedForm, check
from sdecontrol.exact.continuum.base import ContinuumExact
from sdecontrol.exact.continuum.families import continuum
from sdecontrol.processes import Process
from sdecontrol.rewards import Quadratic, Reward

if TYPE_CHECKING:
    from sdecontrol.exact.chain.base import ChainAnswers
    from sdecontrol.kernels import Kernel
    from sdecontrol.time import TimeGrid

_PROBE_ROWS = 2


class Problem:
    """maximise E[r(Y_T) + int rho(t, Y_t) dt] - temperature KL(Q^{u,nu} || Q) over controls u and starts nu.

    reward: (n, *event) -> (n,), maximised.
    running_reward: a Quadratic or a function (t, x (n, *event)) -> (n,), a rate per unit of time, summed at
    the left end of each step.
    temperature: the price of one nat of KL, in units of the reward.
    exact: how to find the exact answers of this problem; None looks among the families of the library.
    Raises, before any work: BadInput for a temperature that is not positive and finite, for rewards that are
    not callable, of another dimension, or whose answer on two probe points is of a wrong shape or not finite;
    and, where closed forms decide it, ValueBlowUp (the value is infinite before t = 0 is reached; `.time`) or
    NoTilt (C is infinite; `.eigenvalue`, `.largest_curvature`).
    Source: Tang 2403.06279, (3.10)-(3.13).
    """

    def __init__(
        self, process: Process, reward: Callable[[Tensor], Tensor], temperature: float = 1.0,
        running_reward: Quadratic | Callable[[float, Tensor], Tensor] | None = None, name: str = "",
        exact: Callable[[Problem], ContinuumExact] | None = None,
    ):  # fmt: skip
        check(isinstance(process, Process), f"a process of type {type(process).__name__}",
              "a ReverseProcess or a DiffusionProcess")  # fmt: skip
        self.process, self.reward, self.running_reward, self.name = process, reward, running_reward, name
        self.temperature = _temperature(temperature)
        self.find_exact = exact or continuum
        _check_callable("reward", reward)
        _check_dimension("reward", reward, process)
        probe = _probe(process.event_shape).to(process.dtype)
        _check_answer("reward", reward, lambda: reward(probe))
        if running_reward is not None:
            _check_callable("running_reward", running_reward)
            _check_dimension("running_reward", running_reward, process)
            _check_answer("running_reward", running_reward, lambda: self.running_rate(0.0, probe))
        with suppress(NoClosedForm):
            self.exact.check_existence()

    def __repr__(self) -> str:
        title = f" {self.name!r}" if self.name else ""
        on = f"{type(self.process).__name__} on {self.process.event_shape}"
        return f"<Problem{title}: {on}, temperature {self.temperature:g}>"

    @cached_property
    def exact(self) -> ContinuumExact:
        """The exact answers about the continuous problem; NoClosedForm says why where there are none."""
        return self.find_exact(self)

    def running_rate(self, t: float, x: Tensor) -> Tensor:
        """rho(t, x): (n, *event) -> (n,), per unit of time. Only for problems with a running reward."""
        running: Any = self.running_reward
        check(running is not None, "a problem without a running reward", "one with a running reward")
        return running(x) if isinstance(running, Reward) else running(t, x)

    def discretise(self, kernel: Kernel | None = None, grid: TimeGrid | None = None) -> Discretised:
        """The same problem for a chain; None takes the process's default kernel or grid."""
        return Discretised(self, kernel or self.process.default_kernel, grid or self.process.default_grid)


@dataclass(frozen=True, eq=False)
class Discretised:
    """A problem for the chain that a kernel makes of the process on a grid."""

    problem: Problem
    kernel: Kernel
    grid: TimeGrid

    @cached_property
    def exact(self) -> ChainAnswers:
        """The exact answers about the chain."""
        from sdecontrol.exact.chain.optimum import exact_chain

        return exact_chain(self.problem, self.kernel, self.grid)


def _temperature(value: Any) -> float:
    try:
        temperature = float(value)
    except (TypeError, ValueError):
        raise BadInput(f"saw temperature = {value!r}; wanted a positive finite number.") from None
    check(math.isfinite(temperature) and temperature > 0, f"temperature = {temperature}",
          "a positive finite number", "It is the price of one nat of KL in units of the reward.")  # fmt: skip
    return temperature


def _check_callable(name: str, reward: Any) -> None:
    check(callable(reward), f"a {name} of type {type(reward).__name__}", "a function (n, *event) -> (n,)",
          "Pass sc.Linear, sc.Quadratic, sc.Step or any callable.")  # fmt: skip


def _check_dimension(name: str, reward: Any, process: Process) -> None:
    if isinstance(reward, Reward):
        check(process.event_shape == (reward.dim,), f"a {name} on vectors of dimension {reward.dim}",
              f"states of shape {process.event_shape}, those of the process")  # fmt: skip


def _probe(event_shape: tuple[int, ...]) -> Tensor:
    """Two standard normal points, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_PROBE_ROWS, *event_shape, dtype=torch.float64, generator=generator)


def _check_answer(name: str, reward: Any, ask: Callable[[], Any]) -> None:
    answer = ask()
    seen = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
    check(isinstance(answer, Tensor) and answer.shape == (_PROBE_ROWS,),
          f"{seen} from the {name} on a batch of {_PROBE_ROWS}", f"a tensor of shape ({_PROBE_ROWS},)",
          "One number a sample: sum over the event's dimensions only.")  # fmt: skip
    check(bool(torch.isfinite(answer).all()), f"a {name} of {answer.tolist()} on standard normal points",
          "finite numbers")  # fmt: skip
