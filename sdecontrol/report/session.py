"""From a prepared run to its report: resume, check, show, draw, save, whatever stops it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sdecontrol.problems.fitted import Subject
from sdecontrol.report import files, terminal
from sdecontrol.report.parts import Parts
from sdecontrol.report.progress import iterations_bar
from sdecontrol.report.run import Result, Results, Run
from sdecontrol.report.selection import Selection, fingerprint
from sdecontrol.report.workers import Job, default_workers, spread

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

EVERY_ROW_UP_TO = 12  # with more claims and problems than this, the terminal shows one row a rung


@dataclass
class Session:
    """A run, what it is about in words and built, and where and how to carry it out. workers None: as many as pay."""

    run: Run
    selection: Selection
    subjects: Sequence[Subject]
    out: Path | None = None
    workers: int | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        problems = {subject.problem.name: subject.problem for subject in self.subjects}
        fingerprints = {name: fingerprint(problem) for name, problem in problems.items()}
        sources = dict(zip(problems, self.selection.named))
        self.problems, self.job = problems, Job(self.selection, sources, fingerprints, self.run.checking)
        self.parts = None if self.out is None else Parts(
            self.out, self.run.checking, fingerprints, self.selection.files
        )  # fmt: skip

    def carry_out(self, as_json: bool = False) -> None:
        """Rows on standard output, progress on standard error; what is done is written however the run ends."""
        run, console = self.run, terminal.console(quiet=as_json)
        for fit in dict.fromkeys(run.fits.values()):
            console.print(fit, soft_wrap=True)
        drawn = False
        try:
            with (
                iterations_bar() as bar,
                closing(self._results(bar)) as results,
                closing(run.collect(results)) as reports,
            ):
                for report in reports:
                    terminal.show(console, report, every_row=run.size <= EVERY_ROW_UP_TO)
            if self.out is not None:
                self._draw(self.out)
            drawn = True
        except KeyboardInterrupt:
            run.notes.append(f"Stopped from the keyboard after {len(run.reports)} of {run.size}.")
        finally:
            if self.out is not None:
                files.save_run(run, self.out)
        if self.parts is not None and drawn and not run.failures:
            self.parts.discard()
        terminal.show_summary(console, run)
        if self.out is not None:
            console.print(f"report: {self.out / 'report.html'}", soft_wrap=True)
        if as_json:
            sys.stdout.write(files.to_json(run.to_dict()))

    def _results(self, bar: Progress) -> Results:
        """Those of an interrupted run first, then the others as they come, each stored before it is passed on."""
        kept = self._kept()
        done = {(result.claim, result.problem) for result in kept}
        pairs = [pair for pair in self.run.pairs if pair not in done]
        task = bar.add_task("verifying", total=self.run.size, completed=len(kept), note="")
        workers = min(self.workers or default_workers(len(pairs)), max(1, len(pairs)))
        if workers == 1:
            results = self.run.checking.each(pairs, self.problems.__getitem__)
        else:
            results = spread(pairs, self.job, workers)
        with closing(results):
            stored = results if self.parts is None else self.parts.keeping(results)
            yield from chain(kept, _watched(bar, task, stored))

    def _kept(self) -> list[Result]:
        if self.parts is None:
            return []
        if self.fresh:
            self.parts.discard()
        kept = self.parts.kept(self.run.pairs)
        if kept:
            Console(stderr=True).print(f"resumed: {len(kept)} of {self.run.size}", highlight=False)
        return kept

    def _draw(self, out: Path) -> None:
        from sdecontrol.report import figures

        self.run.figures += figures.drawings(self.run, self.subjects, out)


def _watched(bar: Progress, task: TaskID, results: Iterable[Result]) -> Results:
    for result in results:
        bar.update(task, advance=1, description=f"{result.claim} on {result.problem}")
        yield result
