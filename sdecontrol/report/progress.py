"""A bar with the time left, for work that is a known number of iterations."""

from __future__ import annotations

import sys
from multiprocessing import parent_process

from rich import progress
from rich.console import Console


def iterations_bar(show: bool = True) -> progress.Progress:
    """On standard error, only where that is a terminal; tasks have a field `note` for the latest numbers.

    Worker processes draw none: they share the terminal with the bar of the process that started them.
    """
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}", style="dim"),
        console=Console(stderr=True),
        transient=True,
        disable=not (show and sys.stderr.isatty() and parent_process() is None),
    )
