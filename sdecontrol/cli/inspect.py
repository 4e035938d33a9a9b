"""`sdecontrol list` and `doctor`: what there is, and what is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sdecontrol.cli.app import app


@app.command(name="list")
def list_names() -> None:
    """The claims, the built-in problems and the laws that `compare` knows."""
    from rich.table import Table

    from sdecontrol.claims import claims
    from sdecontrol.methods import METHODS
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
    table = Table("law", "what it is", "its number", title="Laws")
    for method in METHODS.values():
        table.add_row(method.name, method.title, f"{method.unit} {method.number or ''}".strip())
    console.print(table)


@app.command()
def doctor(
    folder: Annotated[Path | None, typer.Argument(help="The folder of a pipeline: what it holds and supports.")] = None,
) -> None:
    """Versions, devices and which extras are installed; what the folder of a model supports.

    Exit code: 0, or 1 for a folder that cannot be used, 2 for one that is not a pipeline's.
    """
    console = Console()
    for name, state in _installation().items():
        console.print(f"{name:14s} {state}", highlight=False, markup=False, soft_wrap=True)
    if folder is not None:
        raise typer.Exit(_describe(console, folder))


def _installation() -> dict[str, str]:
    import os

    import torch

    from sdecontrol.report.run import PACKAGES, versions

    extras = {
        "data": ("scikit-learn",), "sd": ("diffusers", "transformers", "peft", "accelerate"),
        "bench": ("jax", "diffrax"),
    }  # fmt: skip
    lines = versions((*PACKAGES, "matplotlib", "rich", "typer", *extras["sd"]))
    lines["cores"] = f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads"
    lines["cuda"] = "none"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        lines["cuda"] = f"{torch.cuda.get_device_name()}, {free / 2**30:.3g} of {total / 2**30:.3g} GiB free"
    for extra, packages in extras.items():
        missing = [name for name, number in versions(packages).items() if number == "not installed"]
        wanted = f"missing {', '.join(missing)}: pip install 'sdecontrol[{extra}]'"
        lines[f"extra {extra}"] = wanted if missing else "ready"
    return lines


def _describe(console: Console, path: Path) -> int:
    from sdecontrol.backends.loading import Folder
    from sdecontrol.errors import SDEControlError

    try:
        found = Folder.at(path)
    except SDEControlError as error:
        Console(stderr=True, style="red").print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        return 2
    console.print(f"\n{path}", highlight=False, markup=False, soft_wrap=True)
    for name, state in found.describe().items():
        console.print(f"{name:18s} {state}", highlight=False, markup=False, soft_wrap=True)
    for reason in found.refused:
        console.print(f"refused            {reason}", style="red", highlight=False, markup=False, soft_wrap=True)
    if not found.refused:
        console.print("supports           every law, sampler and claim at scale", highlight=False, soft_wrap=True)
    return 1 if found.refused else 0
