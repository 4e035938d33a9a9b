"""Where the results of the experiments lie, and how they are written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdecontrol.report.atomic import writable_folder, write
from sdecontrol.report.files import to_json

RESULTS = Path(__file__).parent / "results"


def record(name: str, results: dict[str, Any]) -> None:
    """Write results/NAME.json: whole or not at all."""
    write(writable_folder(RESULTS) / f"{name}.json", to_json(results))
    print(f"experiments/results/{name}.json")


def results(name: str) -> dict[str, Any]:
    """The numbers of results/NAME.json."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found
