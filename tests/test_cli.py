"""The command line on good and bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sdecontrol.cli import app

FAST = ["verify", "prop-3.6", "--problem", "gaussian-1d-vp", "--quick"]


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error; an exception that the command lets through is raised."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_verify_writes_a_report_and_ends_with_zero(tmp_path: Path) -> None:
    code, out, _ = run(*FAST, "--out", str(tmp_path / "report"))
    assert code == 0
    assert "prop-3.6" in out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["complete"]
    assert report["counts"]["violated"] == 0
    assert {row["rung"] for row in report["reports"][0]["rows"]} >= {"exact", "monte carlo"}
    assert "| prop-3.6 |" in (tmp_path / "report" / "report.md").read_text()
    assert report["figures"] == ["kl-split", "bound-slack", "certificate", "orders", "terminal-gaussian-1d-vp"]
    page = (tmp_path / "report" / "report.html").read_text()
    for name in report["figures"]:
        assert report["captions"][name]
        assert (tmp_path / "report" / f"{name}.pdf").stat().st_size > 5000
        assert b64encode((tmp_path / "report" / f"{name}.png").read_bytes()).decode() in page
    assert not (tmp_path / "report" / ".parts").exists()


def test_json_is_the_only_output() -> None:
    code, out, _ = run(*FAST, "--json")
    assert code == 0
    assert json.loads(out)["reports"][0]["claim"] == "prop-3.6"


@pytest.mark.parametrize(("options", "tried"), [([], False), (["--mutants"], True)])
def test_wrong_answers_are_tried_when_asked(options: list[str], tried: bool) -> None:
    code, out, _ = run("verify", "lemma-3.1", "--problem", "gaussian-1d-vp", "--quick", "--json", *options)
    report = json.loads(out)
    assert (code, report["mutants"], bool(report["reports"][0]["mutants"])) == (0, tried, tried)


def test_same_seed_same_numbers() -> None:
    reports = [json.loads(run(*FAST, "--json", "--seed", seed)[1])["reports"][0] for seed in ("1", "1", "2")]
    first, again, other = ([(row["left"], row["right"]) for row in report["rows"]] for report in reports)
    assert first == again
    assert first != other


def test_a_problem_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import sdecontrol as sc\n"
        "def problem():\n"
        "    process = sc.ReverseProcess(sc.VP(), sc.Gaussian([1.0], [[2.0]]))\n"
        "    return sc.Problem(process, sc.Linear([1.0]), temperature=1.0)\n"
    )
    code, out, _ = run("verify", "prop-3.6", "--problem", str(path), "--quick")
    assert code == 0
    assert "mine" in out


@pytest.mark.parametrize("options", [[], ["--components", "2", "--rank", "2"]])
def test_a_users_array(options: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savetxt(tmp_path / "mine.csv", 100 + rng.normal(size=(300, 3)) * [20, 10, 1], delimiter=",", header="a,b,c")
    code, out, _ = run("verify", "lemma-3.1", "--data", str(tmp_path / "mine.csv"), "--quick", *options)
    assert code == 0
    assert "mine.csv: 300 rows of 3 columns, centred and divided by" in out
    family = "mixture of 2 Gaussians" if options else "Gaussian"
    assert f"{family} on a subspace of rank 2" in out


def test_list_names_claims_and_problems() -> None:
    code, out, _ = run("list")
    assert code == 0
    assert "prop-3.6" in out
    assert "gaussian-1d-vp" in out
    assert "best-of-n" in out


def test_doctor_names_versions_and_extras() -> None:
    code, out, _ = run("doctor")
    assert code == 0
    assert f"python         {sys.version.split()[0]}" in out
    assert "extra data     ready" in out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "nan.npy", np.array([[1.0, np.nan], [0.0, 1.0], [2.0, 3.0]]))
    for name, text in {
        "empty.csv": "",
        "text.csv": "1,2\nthree,4\n",
        "nothing.py": "x = 1\n",
        "broken.py": "1 / 0\n",
        "wrong.py": "problem = 3\n",
        "file": "",
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


BAD = {
    "unknown claim": ("prop-36", "nearest: prop-3.6"),
    "unknown problem": ("--problem gaussian-1d", "nearest: gaussian-1d-v"),
    "problem file missing": ("--problem {}/absent.py", "no file at"),
    "problem file without problem": ("--problem {}/nothing.py", "no `problem`"),
    "problem file that fails": ("--problem {}/broken.py", "ZeroDivisionError"),
    "problem of the wrong type": ("--problem {}/wrong.py", "`problem` of type int"),
    "data missing": ("--data {}/absent.npy", "no file at"),
    "data empty": ("--data {}/empty.csv", "an empty file"),
    "data not numeric": ("--data {}/text.csv", "not a table of numbers"),
    "data with NaN": ("--data {}/nan.npy", "row 0, column 1"),
    "data of unknown kind": ("--data digit", "'digits' or a file"),
    "rank too large": ("--data digits --rank 65", "a rank between 1 and 61"),
    "nowhere to start over": ("--fresh", "--fresh without --out"),
    "components without data": ("--components 3", "without --data"),
    "folder not writable": ("--out {}/file/below", "cannot be written to"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_any_work(case: str, folder: Path) -> None:
    arguments, message = BAD[case]
    start = time.perf_counter()
    code, out, err = run("verify", *arguments.format(folder).split())
    assert (code, out) == (2, "")
    assert message in err
    assert time.perf_counter() - start < 5


def test_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    options = ["--problem", "gaussian-4d-vp", "--problem", "gaussian-4d-ve", "--problem", "mixture-2d-vp"]
    command = [sys.executable, "-m", "sdecontrol.cli", "verify", *options, "--no-mutants", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # the first claim is done
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    report = json.loads((tmp_path / "report.json").read_text())
    assert process.returncode == 130
    assert not report["complete"]
    assert len(report["reports"]) >= 1
