"""`sdecontrol verify`: check claims on problems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sdecontrol.cli.app import app
from sdecontrol.errors import BadInput, SDEControlError, UnknownName

if TYPE_CHECKING:
    from sdecontrol.report.run import Checking
    from sdecontrol.report.selection import Selection
    from sdecontrol.report.session import Session


@app.command()
def verify(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Claims; all when left out.")] = None,
    problem: Annotated[
        list[str] | None,
        typer.Option(help="A built-in problem, a Python file with `problem`, or a pipeline's FOLDER; repeatable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="digits, a .npy or a .csv file: a law is fitted to its rows.", metavar="FILE")
    ] = None,
    components: Annotated[
        int | None, typer.Option(help="Gaussians in the fitted mixture; 1 is a single Gaussian.", min=1)
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Rank of the principal subspace; keeps 95 % of the variance when left out.", min=1),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html, .md, .json and figures.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random number.", min=0, max=2**64 - 1)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer paths and quadrature points.")] = False,
    mutants: Annotated[
        bool | None,
        typer.Option("--mutants/--no-mutants", help="Try wrong answers on what holds; by default unless --quick."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; as many as there are cores when left out, 1 is this one.", min=1)
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of resuming an interrupted run in the same folder.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")] = False,
) -> None:
    """Check claims on problems.

    Exit code: 0 nothing is violated, 1 something is, 2 bad input, 3 a check failed to run, 130 stopped.
    """
    from sdecontrol.report.run import Checking
    from sdecontrol.report.selection import Selection
    from sdecontrol.report.workers import one_thread

    one_thread()
    try:
        selection = Selection(tuple(problem or ()), data, components, rank, quick, _plugins(problem or []))
        checking = Checking(seed, quick, not quick if mutants is None else mutants)
        session = _prepare(ids or [], selection, checking, out, workers, fresh)
        session.carry_out(as_json)
    except SDEControlError as error:
        Console(stderr=True, style="red").print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    raise typer.Exit(session.run.exit_code)


def _plugins(names: list[str]) -> tuple[str, ...]:
    """The modules that know what to make of these names: one for folders, none for the library's own."""
    folders = [name for name in names if Path(name.partition("?")[0]).is_dir()]
    if folders and len(folders) < len(names):
        raise BadInput(f"saw the folder {folders[0]} beside other problems; wanted folders alone: their claims differ.")
    return ("sdecontrol.backends.verification",) if folders else ()


def _prepare(
    ids: list[str], selection: Selection, checking: Checking, out: Path | None, workers: int | None, fresh: bool
) -> Session:
    """Everything that can be wrong with the input is found here, before any work."""
    from sdecontrol.claims import claims
    from sdecontrol.claims.base import UNLISTED
    from sdecontrol.report.atomic import writable_folder
    from sdecontrol.report.run import Run
    from sdecontrol.report.session import Session

    selection.load_plugins()
    known = list(UNLISTED) if selection.plugins else [claim.id for claim in claims()]
    for claim in ids:
        if claim not in known:
            raise UnknownName("claim", claim, known)
    if out is not None:
        writable_folder(out)
    elif fresh:
        raise BadInput("saw --fresh without --out; wanted the folder in which to start over.")
    subjects = selection.subjects()
    fits = {subject.problem.name: str(subject.fit) for subject in subjects if subject.fit is not None}
    run = Run(list(dict.fromkeys(ids)) or known, [subject.problem.name for subject in subjects], checking, fits)
    return Session(run, selection, subjects, out, workers, fresh)
