"""`sdecontrol list` and `doctor`: what there is, and what is installed."""

from __future__ import annotations

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
