"""Files are whole or absent, JSON is strict, and the markdown carries the verdicts that the rows carry."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sdecontrol.claims import Report, Row
from sdecontrol.errors import BadInput
from sdecontrol.report import atomic, files, markdown
from sdecontrol.report.run import Run


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


def report(claim: str, problem: str, verdict: str) -> Report:
    exact = Row(claim, problem, "exact", "P(|x| > 1)", 0.25, 0.25, 1e-12, 13.0, None, verdict, "by quadrature")
    sampled = Row(claim, problem, "monte carlo", "mean", 1.5, 1.0, 0.25, None, 2.0, "holds", "")
    return Report(
        claim, "a title", "a source", problem, [exact, sampled], verdict, "why", 0.5, 3, ["discrete: no chain"]
    )


def run_of(*verdicts: str) -> Run:
    """Two claims on two problems, of which those with a verdict are done."""
    pairs = [(claim, problem) for problem in ("here", "there") for claim in ("first", "second")]
    run = Run(["first", "second"], ["here", "there"], seed=3)
    run.reports += [report(claim, problem, verdict) for (claim, problem), verdict in zip(pairs, verdicts)]
    return run


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (("holds", "holds", "inconclusive", "not applicable"), 0),
        (("holds", "violated", "holds", "holds"), 1),
        (("holds", "holds"), 130),
        (("violated",), 1),
    ],
)
def test_exit_code(verdicts: tuple[str, ...], code: int) -> None:
    assert run_of(*verdicts).exit_code == code


def test_run_keeps_what_is_done_when_it_is_stopped() -> None:
    run = run_of()

    def verify(claim: str, problem: str, *, quick: bool, seed: int) -> Report:
        if problem == "there":
            raise KeyboardInterrupt
        return report(claim, problem, "holds")

    with pytest.raises(KeyboardInterrupt):
        for _ in run.execute(["here", "there"], verify):
            pass
    assert [(r.claim, r.problem) for r in run.reports] == [("first", "here"), ("second", "here")]
    assert not run.complete


def test_run_goes_on_after_a_check_that_fails() -> None:
    run = run_of()

    def verify(claim: str, problem: str, *, quick: bool, seed: int) -> Report:
        if (claim, problem) == ("second", "here"):
            raise ZeroDivisionError("by nothing")
        return report(claim, problem, "holds")

    assert len(list(run.execute(["here", "there"], verify))) == 4
    assert [str(failure) for failure in run.failures] == ["second on here failed with ZeroDivisionError: by nothing"]
    assert "ZeroDivisionError" in run.failures[0].traceback
    assert (run.complete, run.exit_code) == (True, 3)
    assert "- second on here failed with ZeroDivisionError: by nothing" in markdown.render(run)


def test_markdown_carries_verdicts_numbers_and_reasons() -> None:
    text = markdown.render(run_of("holds", "violated", "inconclusive"))
    assert "| first | a title | ✓ | ? |" in text
    assert "| second | a title | ✗ |  |" in text
    assert "Stopped early: 3 of 4 are done." in text
    assert "- second on here: **violated**. why" in text
    assert "| exact | P(\\|x\\| > 1) | 0.25 | 0.25 | ± 1.0e-12 | 13.0 digits | violated | by quadrature |" in text
    assert "| monte carlo | mean | 1.5 | 1 | ± 2.5e-01 | z = +2.00 | holds |  |" in text
    assert "- Not checked: discrete: no chain" in text


def test_reports_made_one_by_one_are_saved(tmp_path: Path) -> None:
    report("first", "here", "holds").save(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "report.json").read_text())
    assert (saved["seed"], saved["complete"], saved["counts"]["holds"]) == (3, True, 1)
    assert "first on here: holds" in (tmp_path / "new" / "report.md").read_text()
