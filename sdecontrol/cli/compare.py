"""`sdecontrol compare`: laws of guidance and samplers on one problem, against its exact tilt."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sdecontrol.cli.app import app
from sdecontrol.errors import BadInput, SDEControlError, check

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem
    from sdecontrol.report.comparing import Comparing
    from sdecontrol.report.comparison import Chain

DEFAULT_STEPS = 100


@app.command()
def compare(
    problem: Annotated[
        str, typer.Option(help="digits, a built-in or benchmark problem, or a Python file that defines `problem`.")
    ],
    controls: Annotated[
        str | None, typer.Option(help="Laws with commas between, NAME or NAME:NUMBER; all when left out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for comparison.md, comparison.json and figures.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="For digits: 0 to 9, bold-0 to bold-9, ink or label; four of them if left out.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="In the place of the problem's own.")] = None,
    n: Annotated[int, typer.Option(help="Samples of each law.", min=64)] = 5_000,
    steps: Annotated[int, typer.Option(help="Steps of the chain.", min=2)] = DEFAULT_STEPS,
    seed: Annotated[int, typer.Option(help="Seed of every random number.", min=0, max=2**64 - 1)] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of resuming an interrupted run in the same folder.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON and nothing else.")] = False,
) -> None:
    """Compare laws of guidance and samplers with the exact tilt: one row a law, same noise, one optimum.

    Exit code: 0 done (laws that are not defined on the problem are named), 2 bad input, 3 a law failed, 130 stopped.
    """
    from sdecontrol.report.workers import one_thread

    one_thread()
    try:
        comparing = _prepare(problem, controls, out, reward, temperature, n, steps, seed, fresh)
        comparing.carry_out(as_json)
    except SDEControlError as error:
        Console(stderr=True, style="red").print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    raise typer.Exit(comparing.exit_code)


def _prepare(
    problem: str, controls: str | None, out: Path | None, reward: str | None, temperature: float | None, n: int,
    steps: int, seed: int, fresh: bool,
) -> Comparing:  # fmt: skip
    """Everything that can be wrong with the input is found here, before any work."""
    from sdecontrol.methods import METHODS, choose
    from sdecontrol.report.atomic import writable_folder
    from sdecontrol.report.comparing import Comparing
    from sdecontrol.report.comparison import Trial
    from sdecontrol.report.questions import questions

    if out is not None:
        writable_folder(out)
    elif fresh:
        raise BadInput("saw --fresh without --out; wanted the folder in which to start over.")
    asked = questions(problem, reward, temperature)
    specs = [spec.strip() for spec in (controls or "").split(",") if spec.strip()]
    check(controls is None or len(specs) > 0, f"--controls {controls!r}", "names of laws with commas between")
    trials = [
        Trial(asked_for, _chain(asked_for.problem, n, steps, seed), choose(specs or [*METHODS, *own], own))
        for asked_for, own in ((question, question.own) for question in asked)
    ]
    is_file = problem.endswith(".py")
    files = {problem: hashlib.sha256(Path(problem).read_bytes()).hexdigest()} if is_file else {}
    return Comparing(trials, out, files, fresh)


def _chain(problem: Problem, n: int, steps: int, seed: int) -> Chain:
    """The process's own kernel on `steps` steps of its own kind of grid."""
    from sdecontrol.processes import ReverseProcess
    from sdecontrol.report.comparison import Chain
    from sdecontrol.time import TimeGrid

    process = problem.process
    grid = TimeGrid.log_snr(steps, s_min=1e-3) if isinstance(process, ReverseProcess) else TimeGrid.uniform(steps)
    return Chain(grid, process.default_kernel, n, seed)
