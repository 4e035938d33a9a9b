"""`python -m tests.mutants`: plant every bug, write docs/planted_bugs.md and benchmarks/results/planted_bugs.json.

Takes about a quarter of an hour; stopped, it goes on from where it was. Exit code 1 when a bug is not caught or the
clean copy is not green.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sdecontrol.report.atomic import write

from .harness import PACKAGE, ROOT, hunt_all
from .planted import BUGS
from .table import page


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Plant bugs and see verify turn red.")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="the package to copy (default: this one)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "planted_bugs.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "planted_bugs.md")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description:24s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task("clean", total=len(BUGS))
        table = hunt_all(
            BUGS,
            options.results,
            lambda name, done, total: bar.update(task, completed=done, description=name),
            options.package,
        )
    write(options.page, page(table))
    missed = [bug.name for bug in BUGS if not table["bugs"][bug.name]["caught"]]
    print(f"caught {len(BUGS) - len(missed)} of {len(BUGS)}; clean copy {table['clean']['verdict']}")
    if missed:
        print(f"not caught: {', '.join(missed)}")
    return int(bool(missed) or table["clean"]["exit_code"] != 0)


if __name__ == "__main__":
    raise SystemExit(main())
