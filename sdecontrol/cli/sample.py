"""`sdecontrol sample`: laws of guidance and samplers on a text-to-image pipeline, with images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sdecontrol.cli.app import app
from sdecontrol.errors import SDEControlError, UnknownName, check

if TYPE_CHECKING:
    from sdecontrol.report.comparing import Comparing

BACKENDS = ("stable-diffusion",)
LAWS = "none,plug-in,dps,cfg,fk,twisted,svdd,best-of-n"


@app.command()
def sample(
    model: Annotated[str, typer.Option(help="Folder of a pipeline, or a hub id owner/name (the network is used).")],
    prompt: Annotated[list[str], typer.Option(help="What to draw; repeatable.")],
    reward: Annotated[str, typer.Option(help="brightness, digit:8, clip:SOURCE ... or a Python file.")],
    out: Annotated[Path, typer.Option(help="Folder for images, grid, figures, comparison.md and .json.")],
    control: Annotated[str, typer.Option(help="Laws with commas between, NAME or NAME:NUMBER.")] = LAWS,
    temperature: Annotated[list[float] | None, typer.Option(help="Price of a nat, in units of reward.")] = None,
    backend: Annotated[str, typer.Option(help="stable-diffusion: versions 1, 2 and XL.")] = BACKENDS[0],
    n: Annotated[int, typer.Option(help="Images of each law.", min=2)] = 16,
    steps: Annotated[int, typer.Option(help="Steps of the chain.", min=2)] = 50,
    cfg: Annotated[float, typer.Option(help="Guidance scale of the reference; 1 is the conditional model.")] = 7.5,
    eta: Annotated[float, typer.Option(help="DDIM's stochasticity; below 1 the tilt is out of reach.")] = 1.0,
    scheduler: Annotated[str | None, typer.Option(help="ddim, in the place of the pipeline's own.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a call of the network.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu ...; cuda where there is one.")] = None,
    half: Annotated[bool, typer.Option("--half", help="The network in bfloat16; log ratios stay float32.")] = False,
    revision: Annotated[str | None, typer.Option(help="Commit of a hub id.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random number.", min=0, max=2**64 - 1)] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming an interrupted run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON and nothing else.")] = False,
) -> None:
    """Draw images under laws of guidance and samplers, and say what each costs: reward, path KL, log Z, ESS, time.

    Exit code: 0 done (laws that are not defined here are named), 2 bad input, 3 a law failed, 130 stopped.
    """
    from sdecontrol.backends.installed import require

    try:
        if backend not in BACKENDS:
            raise UnknownName("backend", backend, BACKENDS)
        require("sample", "diffusers", "transformers", "PIL")
        for value in temperature or []:
            check(value > 0, f"--temperature {value}", "a positive number")
        from sdecontrol.backends.sampling import save_images

        options: dict[str, object] = {"cfg": cfg, "steps": steps, "eta": eta, "batch": batch}
        pipeline = _pipeline(model, scheduler, device, half, revision)
        comparing = _prepare(pipeline, prompt, reward, control, temperature or [1.0], out, n, seed, fresh, options)
        comparing.carry_out(as_json)
        for trial in comparing.trials:
            if trial.rows:
                save_images(trial, out / "images" / trial.question.name)
    except SDEControlError as error:
        Console(stderr=True, style="red").print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    if not as_json:
        Console().print(f"images: {out / 'images'}", highlight=False, soft_wrap=True)
    raise typer.Exit(comparing.exit_code)


def _pipeline(model: str, scheduler: str | None, device: str | None, half: bool, revision: str | None):  # type: ignore[no-untyped-def]
    import torch

    from sdecontrol.backends.loading import load_pipeline

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_pipeline(model, dtype=torch.bfloat16 if half else torch.float32, device=chosen, scheduler=scheduler,
                         revision=revision)  # fmt: skip


def _prepare(
    pipeline: object, prompts: list[str], reward: str, control: str, temperatures: list[float], out: Path, n: int,
    seed: int, fresh: bool, options: dict[str, object],
) -> Comparing:  # fmt: skip
    """Everything that can be wrong with the input is found here, before any work."""
    import hashlib

    from sdecontrol.backends.sampling import trials
    from sdecontrol.report.atomic import writable_folder
    from sdecontrol.report.comparing import Comparing

    writable_folder(out)
    laws = [law.strip() for law in control.split(",") if law.strip()]
    check(len(laws) > 0, f"--control {control!r}", "names of laws with commas between")
    asked = trials(pipeline, prompts, reward, laws, temperatures, n, seed, **options)
    files = {reward: hashlib.sha256(Path(reward).read_bytes()).hexdigest()} if reward.endswith(".py") else {}
    return Comparing(asked, out, files, fresh)
