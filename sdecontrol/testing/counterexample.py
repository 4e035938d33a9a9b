"""Search for a problem at which a statement fails, and the simplest one that hypothesis can shrink it to."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample, Unsatisfiable
from hypothesis.strategies import SearchStrategy

from sdecontrol.claims.base import HOLDS, INCONCLUSIVE, VIOLATED
from sdecontrol.errors import check
from sdecontrol.testing.snippet import Definitions, snippet
from sdecontrol.testing.statements import Bound, Identity, Side, Statement, as_statement


@dataclass(frozen=True)
class CounterExample:
    """A problem at which the statement fails; `values` are its parts there, `snippet` a file that shows it."""

    statement: Statement
    problem: Any
    values: tuple[float, ...]

    @property
    def snippet(self) -> str:
        """Runnable Python: the statement, the problem in literal numbers, both sides."""
        return snippet(self.statement, self.problem)

    def __str__(self) -> str:
        parts = list(self.statement.functions)
        shown = ", ".join(f"{part} = {value:.6g}" for part, value in zip(parts, self.values))
        problem = Definitions().source(self.problem)
        return f"counter-example to {self.statement.relation(*parts)}\n  {problem}\n  {shown}\n\n{self.snippet}"


@dataclass
class Search:
    """What a search saw. verdict: "holds" (on every example), "violated", or "inconclusive" (nothing was defined).

    examples: problems tried before the first failure; undefined: those among them at which a side was not a number or
    not known, which say nothing; shrinks: problems tried to simplify the failure; tightest: largest left/right seen of
    a bound with a positive right side.
    """

    statement: Statement
    seed: int
    examples: int = 0
    undefined: int = 0
    shrinks: int = 0
    seconds: float = 0.0
    tightest: float | None = None
    counterexample: CounterExample | None = field(default=None)

    @property
    def verdict(self) -> str:
        if self.counterexample is not None:
            return VIOLATED
        return HOLDS if self.examples > self.undefined else INCONCLUSIVE

    @property
    def holds(self) -> bool:
        return self.verdict == HOLDS

    def fails_at(self, problem: Any) -> bool:
        """Judge the problem and keep count; a failure becomes the counter-example."""
        judgement = self.statement.judge(problem)
        if self.counterexample is None:
            self.examples += 1
            self.undefined += judgement.holds is None
            self._tighten(judgement.values if judgement.holds is not None else ())
        else:
            self.shrinks += 1
        if judgement.holds is False:
            self.counterexample = CounterExample(self.statement, problem, judgement.values)
            return True
        return False

    def _tighten(self, values: tuple[float, ...]) -> None:
        if isinstance(self.statement, Bound) and values and 0 < values[1] < float("inf"):
            self.tightest = max(values[0] / values[1], self.tightest or 0.0)

    def assert_holds(self) -> None:
        """Raise AssertionError with the counter-example unless the verdict is "holds"."""
        if not self.holds:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        relation = self.statement.relation(*self.statement.functions)
        passed_over = f", {self.undefined} of them undefined" if self.undefined else ""
        tightest = f", largest left/right {self.tightest:.6f}" if self.tightest is not None else ""
        seen = f"{self.examples} examples{passed_over}{tightest}, {self.seconds:.1f} s, seed {self.seed}"
        found = f"\n{self.counterexample}" if self.counterexample is not None else ""
        return f"{relation}: {self.verdict} ({seen}){found}"


def find_counterexample(
    statement: Statement | Side, *, problems: SearchStrategy[Any], max_examples: int = 1_000, seed: int = 0
) -> CounterExample | None:
    """The simplest problem found at which the statement fails, or None when `max_examples` problems had none.

    statement: a `Bound`, an `Identity`, or a function of a problem that returns a truth value. problems: a strategy of
    hypothesis; those of this package shrink to the simplest case. The same program with the same seed tries the same
    problems. Print it: it holds a runnable snippet.
    """
    return search(statement, problems=problems, max_examples=max_examples, seed=seed).counterexample


def check_bound(
    left: Side,
    right: Side,
    *,
    problems: SearchStrategy[Any],
    examples: int = 10_000,
    slack: float | None = None,
    seed: int = 0,
) -> Search:
    """Whether left(p) <= right(p) + slack at `examples` problems; slack None: the rounding of the two sides.

    A side that is NaN, or that the library says is not defined or not known (NoTilt, NoClosedForm ...), leaves the
    bound undefined at that problem, which is counted. Print the result, or call its `assert_holds()` in a test.
    """
    return search(Bound(left, right, slack), problems=problems, max_examples=examples, seed=seed)


def check_identity(
    left: Side,
    right: Side,
    *,
    problems: SearchStrategy[Any],
    examples: int = 10_000,
    tolerance: float | None = None,
    seed: int = 0,
) -> Search:
    """Whether |left(p) - right(p)| <= tolerance at `examples` problems; see `check_bound`."""
    return search(Identity(left, right, tolerance), problems=problems, max_examples=examples, seed=seed)


def search(
    statement: Statement | Callable[[Any], Any], *, problems: SearchStrategy[Any], max_examples: int, seed: int
) -> Search:
    """Try problems until one fails or enough have passed, then shrink."""
    check(isinstance(problems, SearchStrategy), f"problems of type {type(problems).__name__}",
          "a strategy of hypothesis, such as sdecontrol.testing.tilts()")  # fmt: skip
    check(max_examples >= 1, f"{max_examples} examples", "one or more")
    found, started = Search(as_statement(statement), seed), time.perf_counter()
    options = settings(
        max_examples=max_examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    try:
        find(problems, found.fails_at, settings=options, random=random.Random(seed))
    except (NoSuchExample, Unsatisfiable):
        pass
    finally:
        found.seconds = time.perf_counter() - started
    return found
