"""The application to which every command adds itself."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Diffusion guidance and fine-tuning as stochastic control.",
    pretty_exceptions_enable=False,
)  # fmt: skip
