"""Files are whole or absent, JSON is strict, and the markdown carries the verdicts that the rows carry."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sdecontrol.claims import Case, Claim, Report, Row
from sdecontrol.claims.base import MONTE_CARLO, REGISTRY
from sdecontrol.errors import BadInput
from sdecontrol.estimate import Estimate
from sdecontrol.problems.builtin import resolve
from sdecontrol.report import atomic, files, markdown, mutants
from sdecontrol.report.numbers import BIASED_MEANS, agreement
from sdecontrol.report.run import Checking, Results, Run


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
    run = Run(["first", "second"], ["here", "there"], Checking(3))
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


def test_results_come_out_in_the_order_of_the_pairs() -> None:
    run = run_of()
    shown = []
    ready = [run.pairs[i] for i in (2, 1, 0, 3)]
    for result in run.collect(report(*pair, "holds") for pair in ready):
        shown.append((result.claim, result.problem, len(run.reports)))
    assert [(claim, problem) for claim, problem, _ in shown] == run.pairs
    assert [kept for *_, kept in shown] == [1, 2, 3, 4]  # nothing is passed on before it is kept


def test_a_stop_keeps_what_is_done_in_order() -> None:
    run = run_of()

    def results() -> Results:
        yield report(*run.pairs[3], "holds")
        yield report(*run.pairs[2], "holds")
        yield report(*run.pairs[0], "holds")
        raise KeyboardInterrupt

    shown = []
    with pytest.raises(KeyboardInterrupt):
        for result in run.collect(results()):
            shown.append(result)
    assert [(r.claim, r.problem) for r in shown] == run.pairs[:1]
    assert [(r.claim, r.problem) for r in run.reports] == [run.pairs[i] for i in (0, 2, 3)]
    assert not run.complete


def test_run_goes_on_after_a_check_that_fails() -> None:
    run = run_of()

    def verify(claim: str, problem: str, *, quick: bool, seed: int, mutants: bool) -> Report:
        assert (quick, seed, mutants) == (False, 3, False)
        if (claim, problem) == ("second", "here"):
            raise ZeroDivisionError("by nothing")
        return report(claim, problem, "holds")

    results = (run.checking.attempt(pair, lambda name: name, verify) for pair in run.pairs)  # type: ignore[arg-type]
    assert len(list(run.collect(results))) == 4
    assert [str(failure) for failure in run.failures] == ["second on here failed with ZeroDivisionError: by nothing"]
    assert "ZeroDivisionError" in run.failures[0].traceback
    assert (run.complete, run.exit_code) == (True, 3)
    assert "- second on here failed with ZeroDivisionError: by nothing" in markdown.render(run)


def test_z_after_an_allowance_for_bias_is_marked() -> None:
    """The row that `Case.sample` itself makes: 0.3 off, 0.2 of it allowed, standard error 0.1, so z is 1 and not 3."""
    claim = Claim("for-this-test", "", "", "")
    try:
        case = Case(claim, resolve("gaussian-1d-vp").problem)
    finally:
        del REGISTRY["for-this-test"]
    case.rung = MONTE_CARLO
    for bias in (0.0, 0.2, 0.4):
        case.sample("mean", Estimate(1.3, 0.1, 100), 1.0, bias=bias, scale=10.0)
    assert [agreement(row) for row in case.rows] == ["z = +3.00", "z = +1.00 †", "z = +0.00 †"]
    run = run_of("holds")
    assert BIASED_MEANS not in markdown.render(run)
    run.reports[0].rows[:] = case.rows
    assert BIASED_MEANS in markdown.render(run)


def wrong(name: str, rejected: bool = True) -> dict[str, object]:
    return {"name": name, "rejected": rejected, "by": "exact: log C" if rejected else ""}


def test_wrong_answers_are_counted_by_claim() -> None:
    run = run_of("holds", "holds", "inconclusive")
    assert mutants.summary(run.reports) == []
    run.reports[0].mutants = [wrong("sign"), wrong("scale")]
    run.reports[2].mutants = [wrong("sign"), wrong("scale", False), wrong("start", False)]
    assert mutants.summary(run.reports) == ["first: mutants rejected 3 of 5; missed on there: scale, start"]
    table = mutants.tallies(run.reports)
    assert {name: (str(tally), tally.verdict) for name, tally in table["first"].items()} == {
        "sign": ("2 of 2", "caught"),
        "scale": ("1 of 2", "missed"),
        "start": ("0 of 1", "missed"),
    }
    assert "- first: mutants rejected 3 of 5; missed on there: scale, start" in markdown.render(run)


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
    assert (tmp_path / "new" / "report.html").read_text().startswith("<!doctype html>")
