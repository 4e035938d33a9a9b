"""Where the results of the experiments lie, and how they are written and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sdecontrol.report.atomic import writable_folder, write
from sdecontrol.report.files import to_json
from sdecontrol.report.progress import iterations_bar
from sdecontrol.report.workers import as_worker

RESULTS = Path(__file__).parent / "results"


def record(name: str, results: dict[str, Any]) -> None:
    """Write results/NAME.json: whole or not at all."""
    write(writable_folder(RESULTS) / f"{name}.json", to_json(results))
    print(f"experiments/results/{name}.json")


def results(name: str) -> dict[str, Any]:
    """The numbers of results/NAME.json."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def resumed(name: str, parts: dict[str, Callable[[], Any]], workers: int = 1) -> dict[str, Any]:
    """results/NAME.json part by part, each written when it is done; those already there are kept.

    workers: processes, of one thread each, that share the parts; these must then be functions that pickle. A part that
    fails does not stop the others: an ExceptionGroup names the failures at the end.
    """
    found = results(name) if (RESULTS / f"{name}.json").exists() else {}
    left = {part: measure for part, measure in parts.items() if part not in found}
    for part, value in _shared(left, workers) if workers > 1 else _in_turn(left):
        found[part] = value
        record(name, found)
        print(f"  {part}", flush=True)
    return found


def _in_turn(parts: dict[str, Callable[[], Any]]) -> Iterator[tuple[str, Any]]:
    for part, measure in parts.items():
        yield part, measure()


def _shared(parts: dict[str, Callable[[], Any]], workers: int) -> Iterator[tuple[str, Any]]:
    failures: list[BaseException] = []
    spawn = get_context("spawn")
    with (
        iterations_bar() as bar,
        ProcessPoolExecutor(workers, mp_context=spawn, initializer=as_worker) as pool,
    ):
        task = bar.add_task("parts", total=len(parts), note="")
        running = {pool.submit(measure): part for part, measure in parts.items()}
        try:
            for done in as_completed(running):
                if (error := done.exception()) is not None:
                    error.add_note(f"in the part {running[done]!r}")
                    failures.append(error)
                else:
                    yield running[done], done.result()
                bar.update(task, advance=1)
        finally:
            pool.shutdown(cancel_futures=True)
    if failures:
        raise BaseExceptionGroup("parts that failed", failures)
