"""Files are whole or absent, JSON is strict, and the markdown carries the verdicts that the rows carry."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sdecontrol.errors import BadInput
from sdecontrol.report import atomic, files


def test_write_replaces_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "report.md"
    atomic.write(target, "old")
    atomic.write(target, "new α")
    assert target.read_text() == "new α"
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


def test_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.md"
    atomic.write(target, "old")

    def full_disk(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        atomic.write(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


def test_json_is_strict() -> None:
    value = {"a": [1.0, float("nan")], "b": (float("inf"), -float("inf")), 3: None}
    assert json.loads(files.to_json(value)) == {"a": [1.0, "nan"], "b": ["inf", "-inf"], "3": None}


def test_output_folder_is_checked(tmp_path: Path) -> None:
    assert atomic.writable_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written to"):
        atomic.writable_folder(tmp_path / "file")
    with pytest.raises(BadInput, match="cannot be written to"):
        atomic.writable_folder(tmp_path / "file" / "below")
    with pytest.raises(BadInput, match="cannot be written to"):
        atomic.writable_folder(Path("/proc/nowhere"))
