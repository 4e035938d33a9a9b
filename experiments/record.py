"""Where the results of the experiments lie, and how they are written and read."""

from __future__ import annotations

import json
from collections.abc import Callable
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


def resumed(name: str, parts: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """results/NAME.json part by part, each written when it is done; those already there are kept."""
    found = results(name) if (RESULTS / f"{name}.json").exists() else {}
    for part, measure in parts.items():
        if part not in found:
            found[part] = measure()
            record(name, found)
            print(f"  {part}", flush=True)
    return found
