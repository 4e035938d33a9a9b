"""Processes change nothing but the time; what an interrupted run has done is not done again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdecontrol.claims import Report, Row
from sdecontrol.cli import app
from sdecontrol.problems.builtin import resolve
from sdecontrol.report import figures, parts, workers
from sdecontrol.report.parts import Parts
from sdecontrol.report.run import Checking, Failure, Pair
from sdecontrol.report.selection import Selection, fingerprint

CLAIMS = ["lemma-3.1", "prop-3.2", "prop-3.3", "prop-3.6"]
RUN = ["verify", *CLAIMS, "--problem", "gaussian-1d-vp", "--problem", "gaussian-1d-ve", "--quick"]


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error; an exception that the command lets through is raised."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    """The whole report without the seconds."""
    reports = [{key: value for key, value in one.items() if key != "seconds"} for one in report["reports"]]
    return {**{key: value for key, value in report.items() if key != "seconds"}, "reports": reports}


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The report of a run in one process that nothing interrupts."""
    code, out, err = run(*RUN, "--workers", "1", "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "drawings", lambda *arguments: [])


def test_numbers_do_not_depend_on_the_number_of_processes(whole: dict[str, Any]) -> None:
    code, out, _ = run(*RUN, "--workers", "2", "--json")
    report = json.loads(out)
    assert code == 0
    assert numbers(report) == numbers(whole)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_is_resumed(kind: signal.Signals, whole: dict[str, Any], tmp_path: Path) -> None:
    """Killed when the first pairs are done: its workers end with it, and the next run only does what is left."""
    process, folder = killed(kind, tmp_path), tmp_path / parts.FOLDER
    while process.returncode == 0:  # it was done before the signal came, which a busy machine may do
        shutil.rmtree(tmp_path)
        process = killed(kind, tmp_path)
    done = sum(path.suffix == ".json" for path in folder.iterdir())
    assert 1 <= done < 8
    if kind == signal.SIGINT:
        report = json.loads((tmp_path / "report.json").read_text())
        assert (process.returncode, report["complete"], len(report["reports"])) == (130, False, done)
    else:
        assert (process.returncode, (tmp_path / "report.json").exists()) == (-signal.SIGKILL, False)

    code, _, err = run(*RUN, "--workers", "1", "--out", str(tmp_path))
    assert (code, err.strip()) == (0, f"resumed: {done} of 8")
    assert numbers(json.loads((tmp_path / "report.json").read_text())) == numbers(whole)
    assert not folder.exists()  # a complete run is not resumed


def killed(kind: signal.Signals, out: Path) -> subprocess.Popen[bytes]:
    """A run by two workers that got the signal when its first pairs were done, and has ended with its whole group."""
    command = [sys.executable, "-m", "sdecontrol", *RUN, "--workers", "2", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    folder = out / parts.FOLDER
    wait_until(lambda: process.poll() == 0 or (folder.exists() and any(folder.glob("*.json"))), 60)
    process.send_signal(kind)
    process.communicate(timeout=60)
    wait_until(lambda: not alive(process.pid), 20)
    return process


def wait_until(true: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


PROBLEM = """
import multiprocessing, os, random, signal
import sdecontrol as sc
elsewhere = multiprocessing.parent_process() is not None

def problem():
    process = sc.ReverseProcess(sc.VP(), sc.Gaussian([1.0], [[2.0]]))
    {body}
"""
DEADLY = """
    if elsewhere:
        os.kill(os.getpid(), signal.SIGKILL)
    return sc.Problem(process, sc.Linear([1.0]))
"""
UNSEEDED = "return sc.Problem(process, sc.Linear([random.random()]))"


def test_a_worker_that_cannot_go_on_leaves_a_failure(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text(PROBLEM.format(body=DEADLY))
    (tmp_path / "unseeded.py").write_text(PROBLEM.format(body=UNSEEDED))
    problems = [str(tmp_path / "deadly.py"), str(tmp_path / "unseeded.py"), "gaussian-1d-vp"]
    options = [argument for problem in problems for argument in ("--problem", problem)]
    code, out, _ = run("verify", "lemma-3.1", *options, "--quick", "--json", "--workers", "2")
    report = json.loads(out)
    assert code == 3
    deadly, unseeded = report["failures"]
    assert deadly["problem"] == "deadly" and "a dead process: exit code -9" in deadly["error"]
    assert unseeded["problem"] == "unseeded" and "turn out different when it was built again" in unseeded["error"]
    assert [(done["problem"], done["verdict"]) for done in report["reports"]] == [("gaussian-1d-vp", "holds")]


def some_report(claim: str, problem: str) -> Report:
    row = Row(claim, problem, "exact", "π", 0.1 + 0.2, float("nan"), 5e-324, None, float("inf"), "holds", "")
    return Report(
        claim,
        "title",
        "source",
        problem,
        [row],
        "holds",
        "",
        0.5,
        3,
        ["skipped"],
        [],
        [{"name": "sign", "rejected": True, "by": "exact: π"}],
    )


def test_parts_give_back_the_same_bits_for_the_same_question_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [Pair("lemma-3.1", "here"), Pair("prop-3.2", "here")]
    question: dict[str, Any] = {"checking": Checking(3), "fingerprints": {"here": "a"}, "files": {"mine.py": "b"}}
    made = some_report(*pairs[0])
    results = [made, Failure(*pairs[1], "MemoryError: none left", "")]
    assert list(Parts(tmp_path, **question).keeping(results)) == results
    assert [repr(kept) for kept in Parts(tmp_path, **question).kept(pairs)] == [repr(made)]

    others: list[dict[str, Any]] = [
        {"checking": replace(Checking(3), **{name: value})} for name, value in
        (("seed", 4), ("quick", True), ("mutants", True))
    ]  # fmt: skip
    others += [{"fingerprints": {"here": "c"}}, {"files": {"mine.py": "d"}}]
    for other in others:
        assert Parts(tmp_path, **{**question, **other}).kept(pairs) == []
    monkeypatch.setattr(parts, "sources", lambda: "edited")
    assert Parts(tmp_path, **question).kept(pairs) == []
    Parts(tmp_path, **question).discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_figures")
def test_fresh_starts_over(tmp_path: Path) -> None:
    selection = Selection(("gaussian-1d-vp",))
    fingerprints = {"gaussian-1d-vp": fingerprint(selection.subjects()[0].problem)}
    stored = Parts(tmp_path, Checking(0, quick=True), fingerprints, selection.files)
    planted = replace(some_report("lemma-3.1", "gaussian-1d-vp"), seed=12345)
    list(stored.keeping([planted]))
    command = ["verify", "lemma-3.1", "--problem", "gaussian-1d-vp", "--quick", "--out", str(tmp_path)]
    assert "resumed" not in run(*command, "--fresh")[2]
    assert json.loads((tmp_path / "report.json").read_text())["reports"][0]["seed"] == 0
    list(stored.keeping([planted]))
    assert "resumed: 1 of 1" in run(*command)[2]
    assert json.loads((tmp_path / "report.json").read_text())["reports"][0]["seed"] == 12345


def test_fingerprints_tell_problems_apart() -> None:
    names = ["gaussian-1d-vp", "gaussian-1d-ve", "mixture-2d-vp", "digits-gaussian", "digits-mixture"]
    found = [fingerprint(resolve(name).problem) for name in names]
    assert len(set(found)) == len(names)
    assert found == [fingerprint(resolve(name).problem) for name in names]
    problem = resolve("gaussian-1d-vp").problem
    warmer = type(problem)(problem.process, problem.reward, problem.temperature * (1 + 1e-12))
    steeper = type(problem)(problem.process, lambda x: problem.reward(x) + 1e-12, problem.temperature)
    assert len({found[0], fingerprint(warmer), fingerprint(steeper)}) == 3


def test_long_claims_start_first_and_few_pairs_stay_here() -> None:
    pairs = [Pair(claim, problem) for problem in ("here", "there") for claim in ("first", "second", "third")]
    agenda = workers._Agenda(pairs)
    assert [agenda.next(None) for _ in range(1)] + [agenda.next(pairs[0]) for _ in range(2)] == pairs[:3]
    for claim, seconds in (("first", 1.0), ("third", 3.0)):
        agenda.learn(replace(some_report(claim, "here"), seconds=seconds))
    assert [agenda.next(pairs[2]) for _ in range(4)] == [pairs[5], pairs[3], pairs[4], None]
    assert workers.default_workers(workers.FEW - 1) == 1
    assert 1 <= workers.default_workers(1000) <= (os.cpu_count() or 1)


def test_each_worker_has_a_problem_of_its_own_and_helps_when_none_is_left():
    pairs = [Pair(claim, problem) for problem in ("here", "there") for claim in ("a", "b", "c")]
    agenda = workers._Agenda(pairs)
    one, other = agenda.next(None), agenda.next(None)
    assert (one.problem, other.problem) == ("here", "there")
    assert agenda.next(one).problem == "here" and agenda.next(other).problem == "there"
    assert agenda.next(one).problem == "here"
    assert agenda.next(one) == Pair("c", "there")  # helps
    assert agenda.next(other) is None
