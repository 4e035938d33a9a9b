"""Experiments in parts: what is done is kept, by one process or several, however the others end."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from experiments import record


def surroundings(number: int) -> dict[str, int]:
    return {"number": number, "process": os.getpid(), "threads": torch.get_num_threads()}


def failing() -> None:
    raise ValueError("no such digit")


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
