"""What a comparison is about: a problem, the user's own laws, and what its samples are measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sdecontrol import problems
from sdecontrol.errors import BadInput, UnknownName
from sdecontrol.problems.base import Problem
from sdecontrol.problems.builtin import BUILTIN, read_file
from sdecontrol.problems.digit_tasks import TASKS, Expect, Task, task
from sdecontrol.report.numbers import Estimates

DIGITS = "digits"
BENCHMARKS: dict[str, Callable[[], Problem]] = {
    "double-well": problems.double_well,
    "gaussian-mixture": problems.gaussian_mixture,
    "linear-ou": problems.linear_ou,
    "log-quadratic-hjb": problems.log_quadratic_hjb,
    "many-well": problems.many_well,
    "quadratic-ou-easy": problems.quadratic_ou,
    "quadratic-ou-hard": lambda: problems.quadratic_ou("hard"),
    "step-reward": problems.step_reward,
}


@dataclass(frozen=True)
class Question:
    """One problem on which laws are compared.

    ideal: the problem that knows the exact answers (another one when a network stands for the score). own: the laws of
    the problem file. measures: from f -> E f(X) to numbers beside the reward. show: from samples to pictures
    (n, height, width) of ink or (n, height, width, 3) of colour in [0, 1], where a sample can be looked at.
    """

    problem: Problem
    title: str = ""
    ideal: Problem | None = None
    own: Mapping[str, Any] = field(default_factory=dict)
    measures: Callable[[Expect], Estimates] | None = None
    show: Callable[[Tensor], np.ndarray] | None = None

    @property
    def name(self) -> str:
        return self.problem.name

    @property
    def exact(self) -> Problem:
        """The problem that knows the exact answers."""
        return self.ideal or self.problem

    @classmethod
    def of_task(cls, asked: Task, problem: Problem | None = None) -> Question:
        """A task on the digits, under its exact score or another model of it."""
        shape = asked.digits.fitted.event_shape
        return cls(
            problem or asked.problem, asked.title, asked.problem, measures=asked.measures,
            show=lambda x: x.double().reshape(-1, *shape).numpy(),
        )  # fmt: skip


def questions(name: str, reward: str | None = None, temperature: float | None = None) -> list[Question]:
    """The problems behind a name: a built-in or benchmark problem, a Python file, or `digits`, which is several.

    reward: for the digits, one task (see `problems.digit_tasks.task`). temperature: in the place of the problem's own.
    Raises: UnknownName, BadInput as `resolve`; BadInput for a reward elsewhere.
    """
    if name == DIGITS:
        return [Question.of_task(task(asked, temperature)) for asked in ([reward] if reward else TASKS)]
    if reward is not None:
        raise BadInput(
            f"saw --reward {reward} for {name}, which has its own reward; wanted it with --problem digits. Write "
            "another reward into a problem file."
        )
    if name.endswith(".py"):
        problem, names = read_file(Path(name))
        own = names.get("controls", {})
        if not isinstance(own, Mapping):
            raise BadInput(f"saw `controls` of type {type(own).__name__} in {name}; wanted a dictionary name -> law.")
        return [Question(_at(problem, temperature), own=own)]
    if name in BENCHMARKS:
        return [Question(_at(BENCHMARKS[name](), temperature))]
    if name in BUILTIN:
        return [Question(_at(BUILTIN[name].subject().problem, temperature))]
    raise UnknownName("problem", name, [DIGITS, *BENCHMARKS, *BUILTIN])


def _at(problem: Problem, temperature: float | None) -> Problem:
    if temperature is None:
        return problem
    p = problem
    return Problem(p.process, p.reward, temperature, p.running_reward, name=p.name, exact=p.find_exact)
