"""`sdecontrol train-tiny`: a small Stable Diffusion pipeline trained on the digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sdecontrol.cli.app import app
from sdecontrol.errors import BadInput, SDEControlError


@app.command(name="train-tiny")
def train_tiny(
    out: Annotated[Path, typer.Option(help="Folder for the pipeline, in the layout of diffusers.")],
    data: Annotated[str, typer.Option(help="digits, with prompts 'a zero' ... 'a nine'.")] = "digits",
    seed: Annotated[int, typer.Option(help="Seed of the weights and of every minibatch.", min=0)] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads; all cores when left out.", min=1)] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming an interrupted run.")] = False,
) -> None:
    """Train a small text-to-image pipeline: eight minutes on two cores; Ctrl-C keeps what is done.

    Exit code: 0 the pipeline is saved, 2 bad input, 130 stopped; the same command goes on, bit for bit.
    """
    import os

    import torch

    console = Console(stderr=True)
    try:
        if data != "digits":
            raise BadInput(f"saw --data {data!r}; wanted digits, the only data with prompts.")
        from sdecontrol.backends.installed import require

        require("train-tiny", "diffusers", "transformers", "sklearn")
        from sdecontrol.backends.tiny import Plan, train
        from sdecontrol.backends.tiny.picture import draw_picture

        torch.set_num_threads(threads or os.cpu_count() or 1)
        outcome = train(out, Plan(seed), resume=not fresh)
        if outcome.pipeline is None:
            console.print(f"stopped; the same command goes on. Checkpoints are in {out}.", highlight=False)
            raise typer.Exit(130)
        picture = draw_picture(outcome.pipeline, out / "samples.png")
    except SDEControlError as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    took = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in outcome.seconds.items())
    Console().print(f"{took}\npipeline: {out}\nsamples: {picture}", highlight=False, soft_wrap=True)
