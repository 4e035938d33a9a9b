"""A comparison of laws on one problem after another: run, kept, scored against one optimum, and written."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sdecontrol.errors import NoClosedForm, NotDefined, SDEControlError
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import collect, free_rewards, score
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Law
from sdecontrol.methods import PILOT, Choice
from sdecontrol.report.atomic import writable_folder
from sdecontrol.report.front import Point, front
from sdecontrol.report.numbers import Estimates
from sdecontrol.report.parts import FOLDER, sources
from sdecontrol.report.questions import Question
from sdecontrol.report.run import versions
from sdecontrol.report.runs import Cost, Run, metered, particles, restore, store
from sdecontrol.report.selection import fingerprint
from sdecontrol.steering.scores import LARGEST, gelbrich
from sdecontrol.time import TimeGrid


@dataclass(frozen=True)
class Chain:
    """How every law is run: on which chain, how many samples, from which seed."""

    grid: TimeGrid
    kernel: Kernel
    n: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return {"grid": repr(self.grid), "kernel": repr(self.kernel), "n": self.n, "seed": self.seed}


@dataclass(frozen=True)
class Row:
    """A law that ran: its score (None until all have run), moment distance to the exact tilt, measures and cost."""

    name: str
    run: Run
    cost: Cost
    notes: list[str]
    score: Any = None
    distance: Estimate | None = None
    measures: Estimates = field(default_factory=dict)

    @property
    def rank(self) -> float:
        """Distance of moments to the exact tilt; where that is not known the gap, infinite for samplers."""
        with suppress(NotDefined):
            return float((self.distance or self.score.gap).value)
        return math.inf

    def to_dict(self) -> dict[str, Any]:
        plain = lambda e: None if e is None else e.to_dict()  # noqa: E731
        return {
            "name": self.name, "notes": self.notes, **vars(self.cost), "distance": plain(self.distance),
            "log_normalizer": plain(self.run.log_normalizer),
            "measures": {name: e.to_dict() for name, e in self.measures.items()}, "score": self.score.to_dict(),
        }  # fmt: skip


@dataclass
class Trial:
    """One question with its laws; `rows` and `reasons` grow while it is carried out."""

    question: Question
    chain: Chain
    choices: Sequence[Choice]
    rows: list[Row] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    front: list[Point] = field(default_factory=list)

    @property
    def ranked(self) -> list[Row]:
        """Rows from the nearest to the farthest from the exact tilt: by distance of moments, else by KL to Q*."""
        return sorted(self.rows, key=lambda row: row.rank)

    @property
    def complete(self) -> bool:
        return len(self.rows) + len(self.reasons) + len(self.failures) == len(self.choices)

    def attempt(self, choice: Choice, parts: Parts | None) -> None:
        """Run one law, or find what an earlier run kept; a law that is not defined here leaves its reason."""
        try:
            self.rows.append(self._kept(choice, parts) or self._run(choice, parts))
        except SDEControlError as error:
            self.reasons[choice.spec] = str(error)
        except Exception as error:
            self.failures[choice.spec] = f"{type(error).__name__}: {error}"

    def _entry(self, choice: Choice) -> tuple[Any, list[str]]:
        chain = self.chain
        return choice.entry(
            self.question.problem, self.question.exact, grid=chain.grid, kernel=chain.kernel,
            pilot=min(PILOT, chain.n),
        )  # fmt: skip

    def _kept(self, choice: Choice, parts: Parts | None) -> Row | None:
        file = None if parts is None else parts.file(self, choice)
        if file is None or not file.exists():
            return None
        entry = lambda: self._entry(choice)[0]  # noqa: E731
        return Row(choice.spec, *restore(file, self.question.problem, entry, self.chain.grid, self.chain.kernel))

    def _run(self, choice: Choice, parts: Parts | None) -> Row:
        chain, problem = self.chain, self.question.problem
        entry, notes = self._entry(choice)
        with metered(problem, chain.n) as cost:
            run: Any = collect(
                problem, entry, grid=chain.grid, kernel=chain.kernel, n=chain.n,
                noise=replace(problem.process.default_noise, seed=chain.seed),
            )  # fmt: skip
        cost.discount(run, chain.n)
        if parts is not None:
            store(parts.file(self, choice), run, cost, notes)
        return Row(choice.spec, run, cost, notes)

    def finish(self) -> None:
        """Score what has run against one optimum, measure it, and find the front."""
        chain, problem = self.chain, self.question.problem
        scores = score(problem, {row.name: row.run for row in self.rows}, grid=chain.grid, kernel=chain.kernel)
        target = self._target()
        self.rows = [self._finished(row, scores[row.name], target) for row in self.rows]
        free = free_rewards(row.run for row in self.rows)
        self.front = front(self.question.exact, chain.grid, chain.kernel, chain.seed, free)

    def _finished(self, row: Row, scored: Any, target: Law | None) -> Row:
        drawn, measure = particles(row.run), self.question.measures
        distance = None
        if target is not None:
            distance = gelbrich(drawn, target.mean, target.covariance)
        measures = {} if measure is None else measure(drawn.expect)
        return Row(row.name, row.run, row.cost, row.notes, scored, distance, measures)

    def _target(self) -> Law | None:
        """The exact tilt, in continuous time, where its moments are known."""
        with suppress(NoClosedForm, NotDefined):
            law: Law = self.question.exact.exact.terminal
            law.mean, law.covariance  # noqa: B018  asks whether they are known
            return law if law.dim <= LARGEST else None
        return None

    def to_dict(self) -> dict[str, Any]:
        return {
            "problem": self.question.name, "title": self.question.title,
            "temperature": self.question.problem.temperature, "complete": self.complete, **self.chain.to_dict(),
            "front": [point.to_dict() for point in self.front], "laws": {row.name: row.to_dict() for row in self.rows},
            "not defined": self.reasons, "failed": self.failures,
        }  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """Runs that are done, in OUT/.parts, each under a hash of all that decides it."""

    out: Path
    files: dict[str, str]

    @cached_property
    def _common(self) -> dict[str, Any]:
        return {"files": self.files, "versions": versions(), "sources": sources()}

    def file(self, trial: Trial, choice: Choice) -> Path:
        is_ = fingerprint(trial.question.problem)
        key = {**self._common, **trial.chain.to_dict(), "law": choice.spec, "is": is_}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return writable_folder(self.out / FOLDER) / f"{name}.safetensors"

    def discard(self) -> None:
        shutil.rmtree(self.out / FOLDER, ignore_errors=True)
