"""Experiments in parts: what is done is kept, by one process or several, however the others end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from experiments import record


def surroundings(number: int) -> dict[str, int]:
    return {"number": number, "process": os.getpid(), "threads": torch.get_num_threads()}


def failing() -> None:
    raise ValueError("no such digit")


def sleeping(note: str) -> None:
    Path(note + ".part").write_text(str(os.getpid()))
    os.replace(note + ".part", note)
    time.sleep(300)


def alive(process: int) -> bool:
    asked = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return asked.stdout.strip()[:1] not in ("", "Z")


def soon(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


def kept(folder: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads((folder / "digits.json").read_text())
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_that_are_there_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    (tmp_path / "digits.json").write_text('{"old": {"number": -1}}')
    parts = {"old": failing, **{f"new {i}": partial(surroundings, i) for i in range(3)}}
    found = record.resumed("digits", parts, workers)
    assert found == kept(tmp_path) and found["old"] == {"number": -1}
    assert [found[f"new {i}"]["number"] for i in range(3)] == [0, 1, 2]
    here = {found[f"new {i}"]["process"] == os.getpid() for i in range(3)}
    assert here == {workers == 1}
    assert workers == 1 or {found[f"new {i}"]["threads"] for i in range(3)} == {1}


def test_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    """No part goes on where nobody can write it down."""
    notes = [str(tmp_path / name) for name in "ab"]
    script = f"""
from functools import partial
from tests.test_experiment_records import sleeping
from experiments import record
if __name__ == "__main__":
    record.resumed("killed", {{note: partial(sleeping, note) for note in {notes!r}}}, 2)
"""
    (tmp_path / "run.py").write_text(script)
    root = str(Path(record.__file__).parents[1])
    run = subprocess.Popen([sys.executable, tmp_path / "run.py"], env={**os.environ, "PYTHONPATH": root})
    try:
        assert soon(lambda: all(os.path.exists(note) for note in notes), 60)
    finally:
        run.kill()
        run.wait()
    processes = [int(Path(note).read_text()) for note in notes]
    assert len(set(processes)) == 2 and soon(lambda: not any(map(alive, processes)), 10)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_part_that_fails_is_named_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """In turn, what came before is kept; shared, everything else is."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    parts = {"before": partial(surroundings, 0), "wrong": failing, "after": partial(surroundings, 2)}
    with pytest.raises(ValueError if workers == 1 else ExceptionGroup) as caught:
        record.resumed("digits", parts, workers)
    assert set(kept(tmp_path)) == ({"before"} if workers == 1 else {"before", "after"})
    if workers > 1:
        (error,) = caught.value.exceptions  # type: ignore[attr-defined]
        assert isinstance(error, ValueError) and error.__notes__ == ["in the part 'wrong'"]
