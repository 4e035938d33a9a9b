"""Statements about a problem: a bound, an identity, a predicate. They hold, fail, or say nothing about it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdecontrol.claims.base import rounding
from sdecontrol.errors import NoClosedForm, NotDefined, NoTilt, ValueBlowUp

Side = Callable[[Any], Any]
UNDEFINED = (NoClosedForm, NotDefined, NoTilt, ValueBlowUp)  # the quantity does not exist, or is not known, there


def tolerance_of(*sides: Any, condition: float = 1.0) -> float:
    """What rounding leaves of an identity: 1 000 eps times the condition and the largest finite magnitude."""
    magnitudes = [np.abs(side[np.isfinite(side)]).max(initial=0.0) for side in map(np.asarray, sides)]
    return rounding(*magnitudes, condition=condition)


@dataclass(frozen=True)
class Judgement:
    """A statement at one problem: `holds` is None where a side is not a number or not defined there."""

    holds: bool | None
    values: tuple[float, ...] = ()


class Statement(ABC):
    """A function of a problem that is true or false; `functions` are its parts by name, `relation` joins them."""

    @property
    @abstractmethod
    def functions(self) -> dict[str, Side]: ...

    @abstractmethod
    def relation(self, *names: str) -> str:
        """The statement as Python source, the parts' values standing under these names."""

    @abstractmethod
    def holds(self, *values: float) -> bool: ...

    def judge(self, problem: Any) -> Judgement:
        """Evaluate every part; NaN, and the library's errors for what does not exist, leave the statement undefined."""
        try:
            with np.errstate(all="ignore"):
                values = tuple(float(f(problem)) for f in self.functions.values())
        except UNDEFINED:
            return Judgement(None)
        except Exception as error:
            error.add_note(f"while evaluating {', '.join(self.functions)} at {problem!r}")
            raise
        undefined = any(math.isnan(value) for value in values)
        return Judgement(None if undefined else self.holds(*values), values)


@dataclass(frozen=True)
class Bound(Statement):
    """left(p) <= right(p) + slack for every problem p; slack None: rounding of the two sides."""

    left: Side
    right: Side
    slack: float | None = None

    @property
    def functions(self) -> dict[str, Side]:
        return {"left": self.left, "right": self.right}

    def relation(self, *names: str) -> str:
        return f"{names[0]} <= {names[1]}"

    def holds(self, *values: float) -> bool:
        left, right = values
        return left <= right + (tolerance_of(left, right) if self.slack is None else self.slack)


@dataclass(frozen=True)
class Identity(Statement):
    """|left(p) - right(p)| <= tolerance for every problem p; tolerance None: rounding of the two sides."""

    left: Side
    right: Side
    tolerance: float | None = None

    @property
    def functions(self) -> dict[str, Side]:
        return {"left": self.left, "right": self.right}

    def relation(self, *names: str) -> str:
        return f"{names[0]} == {names[1]}"

    def holds(self, *values: float) -> bool:
        left, right = values
        tolerance = tolerance_of(left, right) if self.tolerance is None else self.tolerance
        return left == right or abs(left - right) <= tolerance


@dataclass(frozen=True)
class Predicate(Statement):
    """truth(p) is true for every problem p."""

    truth: Side

    @property
    def functions(self) -> dict[str, Side]:
        return {"truth": self.truth}

    def relation(self, *names: str) -> str:
        return f"bool({names[0]})"

    def holds(self, *values: float) -> bool:
        return bool(values[0])


def as_statement(statement: Statement | Side) -> Statement:
    """A statement, or a function of a problem that returns a truth value."""
    return statement if isinstance(statement, Statement) else Predicate(statement)
