"""The claims at scale on a random pipeline: they hold, they see planted mistakes, and the command runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sdecontrol as sc
from sdecontrol.backends import verification
from sdecontrol.claims.base import UNLISTED
from sdecontrol.cli import app

DISCRETE = ["scale-scheduler", "scale-cfg-cost", "scale-batch"]
SAMPLED = ["scale-girsanov", "scale-path-kl", "scale-log-z", "scale-certificate"]


@pytest.fixture(scope="module")
def folder(tiny_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("claims") / "tiny"
    tiny_pipe.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def problem(folder: Path) -> sc.Problem:
    found = verification.subject(f"{folder}?prompt=a cat&steps=3&images=32&batch=4")
    assert found is not None
    return found.problem


def test_their_names() -> None:
    assert sorted(UNLISTED) == sorted(DISCRETE + SAMPLED)
    assert not set(UNLISTED) & {claim.id for claim in sc.claims()}


@pytest.mark.parametrize("id", DISCRETE)
def test_identities_hold_and_mistakes_are_seen(id: str, problem: sc.Problem) -> None:
    report = sc.verify(id, problem, quick=True, mutants=True)
    assert report.verdict == "holds", report.reason
    assert report.mutants and all(trial["rejected"] for trial in report.mutants)


@pytest.mark.parametrize("id", SAMPLED)
def test_estimates_are_not_refuted(id: str, problem: sc.Problem) -> None:
    """Few images: "inconclusive" is an honest verdict, with the number that would decide; "violated" is not."""
    report = sc.verify(id, problem, mutants=False)
    assert report.rows and not report.skipped
    assert report.verdict in ("holds", "inconclusive"), report.reason
    assert all("would decide" in row.note for row in report.rows if row.verdict == "inconclusive")


def test_wrong_numbers_are_seen_by_the_estimates_too(problem: sc.Problem) -> None:
    """On 32 images already: a log ratio that forgot its martingale, and one averaged over coordinates."""
    from sdecontrol.claims.base import Case, get_claim
    from sdecontrol.claims.mutants import MUTANTS

    for id, name in [
        ("scale-girsanov", "log ratio without its martingale"),
        ("scale-path-kl", "mean over the latent coordinates for the sum"),
        ("scale-path-kl", "energy of the steps without its half"),
        ("scale-path-kl", "sign of the log ratio"),
    ]:
        mutant = next(m for m in MUTANTS if m.name == name and m.concerns(get_claim(id), problem))
        case = Case(get_claim(id), problem, mutant.replace(problem, problem.exact)["ledger"], False, 0)
        case.answers = type("Wrong", (), {"ledger": case.answers})()
        assert get_claim(id).first_doubt(case) is not None, name


def test_the_command_verifies_a_folder(folder: Path, tmp_path: Path) -> None:
    name = f"{folder}?prompt=a cat&steps=3&images=16&batch=4"
    arguments = ["verify", *DISCRETE, "--problem", name, "--quick", "--json", "--out", str(tmp_path), "--workers", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    reports = json.loads((tmp_path / "report.json").read_text())["reports"]
    assert [report["verdict"] for report in reports] == ["holds"] * 3
    assert (tmp_path / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problem", "FOLDER?color=red"], "options color of"),
        (["--problem", "FOLDER", "--problem", "gaussian-1d-vp"], "folders alone"),
        (["prop-3.6", "--problem", "FOLDER"], "unknown claim 'prop-3.6'"),
        (["--problem", "FOLDER?prompt=a prompt that is longer than it may be"], "a prompt of"),
    ],
)
def test_bad_input_to_the_command(arguments: list[str], message: str, folder: Path) -> None:
    result = CliRunner().invoke(app, ["verify", *(a.replace("FOLDER", str(folder)) for a in arguments)])
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")


def test_claims_about_one_prompt(tiny_pipe: Any) -> None:
    from sdecontrol.backends import StableDiffusionProcess

    process = StableDiffusionProcess(tiny_pipe, ["a cat", "a dog"], steps=3)
    problem = sc.Problem(process, process.on_images(verification.brightness))
    assert sc.verify("scale-batch", problem, quick=True).verdict == "not applicable"
