"""A comparison carried out: progress on standard error, tables on standard output, files written however it ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sdecontrol.report import comparison_tables as tables
from sdecontrol.report import terminal
from sdecontrol.report.atomic import write
from sdecontrol.report.comparison import Parts, Trial
from sdecontrol.report.files import to_json
from sdecontrol.report.progress import iterations_bar
from sdecontrol.report.run import versions

WIDTH = 150


@dataclass
class Comparing:
    """Trials one after another; with `out` each finished law is kept at once, and the same command goes on."""

    trials: Sequence[Trial]
    out: Path | None = None
    files: dict[str, str] = field(default_factory=dict)
    fresh: bool = False
    stopped: bool = False

    @property
    def exit_code(self) -> int:
        """130 when it was stopped, else 3 when a law failed, else 0."""
        if self.stopped:
            return 130
        return 3 if any(trial.failures for trial in self.trials) else 0

    def carry_out(self, as_json: bool = False) -> None:
        console, parts = terminal.console(as_json, WIDTH), None if self.out is None else Parts(self.out, self.files)
        if parts is not None and self.fresh:
            parts.discard()
        try:
            self._run(console, parts)
        except KeyboardInterrupt:
            self.stopped = True
            for trial in self.trials:
                if trial.rows and trial.rows[0].score is None:
                    self._finish(trial, console)
        finished = [trial for trial in self.trials if trial.rows or trial.reasons or trial.failures]
        if self.out is not None:
            self._write(finished, self.out)
            console.print(f"report: {self.out / 'comparison.md'}", soft_wrap=True)
        if parts is not None and self.exit_code == 0:
            parts.discard()
        if as_json:
            sys.stdout.write(to_json(tables.payload(finished, versions())))

    def _run(self, console: Console, parts: Parts | None) -> None:
        with iterations_bar() as bar:
            task = bar.add_task("comparing", total=sum(len(trial.choices) for trial in self.trials), note="")
            for trial in self.trials:
                for choice in trial.choices:
                    bar.update(task, description=f"{choice.spec} on {trial.question.name}")
                    trial.attempt(choice, parts)
                    bar.update(task, advance=1)
                self._finish(trial, console)

    def _finish(self, trial: Trial, console: Console) -> None:
        if trial.rows:
            trial.finish()
            console.print(tables.terminal(trial))
        for line in tables.remarks(trial):
            console.print(Text(line, style="dim"), soft_wrap=True)

    def _write(self, trials: Sequence[Trial], out: Path) -> None:
        from sdecontrol.report.comparison_figures import draw

        drawn = {trial.question.name: draw(trial, out) for trial in trials}
        write(out / "comparison.json", to_json(tables.payload(trials, versions())))
        write(out / "comparison.md", tables.markdown(trials, lambda trial: drawn[trial.question.name]))
