"""The command line: `sdecontrol verify`, `list` and `doctor`. The library is imported inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sdecontrol.errors import BadInput, NoClosedForm, NotDefined, SDEControlError, UnknownName

if TYPE_CHECKING:
    from rich.progress import Progress

    from sdecontrol.problems.fitted import Subject
    from sdecontrol.report.run import Run

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Diffusion guidance and fine-tuning as stochastic control.",
    pretty_exceptions_enable=False,
)  # fmt: skip

EVERY_ROW_UP_TO = 12  # with more claims and problems than this, the terminal shows one row a rung


@app.command()
def verify(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Claims; all when left out.")] = None,
    problem: Annotated[
        list[str] | None, typer.Option(help="A built-in problem or a Python file that defines `problem`; repeatable.")
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
    out: Annotated[Path | None, typer.Option(help="Folder for report.md, report.json and figures.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random number.", min=0, max=2**64 - 1)] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer paths and quadrature points.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")] = False,
) -> None:
    """Check claims on problems.

    Exit code: 0 nothing is violated, 1 something is, 2 bad input, 3 a check failed to run, 130 stopped.
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)  # small matrices: a second thread on busy cores costs ten times what it saves
    threadpool_limits(1)
    try:
        run, subjects = _prepare(ids or [], problem or [], data, components, rank, out, seed, quick)
        _execute(run, subjects, out, as_json)
    except SDEControlError as error:
        Console(stderr=True, style="red").print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    raise typer.Exit(run.exit_code)


@app.command(name="list")
def list_names() -> None:
    """The claims and the built-in problems."""
    from rich.table import Table

    from sdecontrol.claims import claims
    from sdecontrol.problems.builtin import BUILTIN

    console = Console()
    table = Table("claim", "statement", "source", title="Claims")
    for claim in claims():
        table.add_row(claim.id, claim.title, claim.source)
    console.print(table)
    table = Table("problem", "what it is", title="Problems")
    for entry in BUILTIN.values():
        table.add_row(entry.name, entry.description)
    console.print(table)


@app.command()
def doctor() -> None:
    """Versions, threads and which extras are installed."""
    import os

    import torch

    from sdecontrol.report.run import PACKAGES, versions

    extras = {"data": ("scikit-learn",), "sd": ("diffusers", "transformers", "peft"), "bench": ("jax", "diffrax")}
    console = Console()
    for name, number in versions((*PACKAGES, "matplotlib", "rich", "typer")).items():
        console.print(f"{name:14s} {number}", highlight=False)
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    console.print(f"{'cores':14s} {os.cpu_count()}, torch uses {torch.get_num_threads()} threads", highlight=False)
    console.print(f"{'cuda':14s} {cuda}", highlight=False)
    for extra, packages in extras.items():
        missing = [name for name, number in versions(packages).items() if number == "not installed"]
        state = "ready" if not missing else f"missing {', '.join(missing)}: pip install 'sdecontrol[{extra}]'"
        console.print(f"extra {extra:8s} {state}", highlight=False, markup=False, soft_wrap=True)


def _prepare(
    ids: list[str],
    problems: list[str],
    data: str | None,
    components: int | None,
    rank: int | None,
    out: Path | None,
    seed: int,
    quick: bool,
) -> tuple[Run, list[Subject]]:
    """Everything that can be wrong with the input is found here, before any work."""
    from sdecontrol.claims import claims
    from sdecontrol.problems.builtin import BUILTIN, resolve
    from sdecontrol.report.atomic import writable_folder
    from sdecontrol.report.run import Run

    known = [claim.id for claim in claims()]
    for claim in ids:
        if claim not in known:
            raise UnknownName("claim", claim, known)
    if data is None and (components is not None or rank is not None):
        raise BadInput("saw --components or --rank without --data; wanted the data that they speak of.")
    if out is not None:
        writable_folder(out)
    subjects = [resolve(name) for name in problems]
    if data is not None:
        subjects += _fitted(data, components, rank)
    subjects = subjects or [entry.subject() for entry in BUILTIN.values()]
    names = [subject.problem.name for subject in subjects]
    if len(set(names)) < len(names):
        raise BadInput(f"saw the problems {', '.join(names)}; wanted different names. Name them, or give each once.")
    fits = {subject.problem.name: str(subject.fit) for subject in subjects if subject.fit is not None}
    return Run(ids or known, names, seed, quick, fits), subjects


def _fitted(source: str, components: int | None, rank: int | None) -> list[Subject]:
    """Both rewards on the fitted law; the digits, unless told, as one Gaussian and as ten."""
    from sdecontrol.data import read
    from sdecontrol.problems.digits import COMPONENTS
    from sdecontrol.problems.fitted import subjects

    data = read(source)
    families = [components] if components else [1, COMPONENTS] if source == "digits" else [1]
    return [subject for k in families for subject in subjects(data, k, rank)]


def _execute(run: Run, subjects: list[Subject], out: Path | None, as_json: bool) -> None:
    """Rows on standard output, progress on standard error; what is done is written however the run ends."""
    from sdecontrol.report import files, terminal

    console = terminal.console(quiet=as_json)
    for fit in dict.fromkeys(run.fits.values()):
        console.print(fit, soft_wrap=True)
    try:
        with _progress() as bar:
            task = bar.add_task("verifying", total=run.size)
            for report in run.execute(subject.problem for subject in subjects):
                bar.update(task, advance=1, description=f"{report.claim} on {report.problem}")
                terminal.show(console, report, every_row=run.size <= EVERY_ROW_UP_TO)
        if out is not None:
            _draw(run, subjects, out)
    except KeyboardInterrupt:
        run.notes.append(f"Stopped from the keyboard after {len(run.reports)} of {run.size}.")
    finally:
        if out is not None:
            files.save_run(run, out)
    terminal.show_summary(console, run)
    if out is not None:
        console.print(f"report: {out / 'report.md'}", soft_wrap=True)
    if as_json:
        sys.stdout.write(files.to_json(run.to_dict()))


def _progress() -> Progress:
    """A bar with the time left, on standard error and only where that is a terminal."""
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _draw(run: Run, subjects: list[Subject], out: Path) -> None:
    from sdecontrol.report import figures

    for subject in subjects:
        try:
            run.figures += figures.draw(subject, out, run.seed)
        except (NoClosedForm, NotDefined) as reason:
            run.notes.append(f"No figure of {subject.problem.name}: {reason}")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
