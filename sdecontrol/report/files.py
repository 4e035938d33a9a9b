"""The files of a report: report.json with every number, report.md and report.html with the verdicts first."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdecontrol.claims import Report
from sdecontrol.report import html, markdown
from sdecontrol.report.atomic import writable_folder, write
from sdecontrol.report.run import Run


def save_run(run: Run, folder: Path) -> None:
    """Write report.json, report.md and report.html. Raises: BadInput when the folder cannot be written to."""
    writable_folder(folder)
    write(folder / "report.json", to_json(run.to_dict()))
    write(folder / "report.md", markdown.render(run))
    write(folder / "report.html", html.render(run, folder))


def save_reports(reports: Sequence[Report], folder: Path) -> None:
    """The same for reports that were made one by one."""
    save_run(Run.of(reports), folder)


def to_json(value: Any) -> str:
    """Strict JSON; numbers that JSON lacks become the strings "nan", "inf" and "-inf"."""
    return json.dumps(_strict(value), indent=1, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
