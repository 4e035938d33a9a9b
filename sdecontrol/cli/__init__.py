"""The command line, one command a file. The library is imported inside the commands, so that help is instant."""

from sdecontrol.cli import (  # isort: skip  (the order in which help lists them)
    verify,
    compare,
    sample,
    train_tiny,
    inspect,
)
from sdecontrol.cli.app import app

__all__ = ["app", "compare", "inspect", "main", "sample", "train_tiny", "verify"]


def main() -> None:
    app()
