"""`sdecontrol compare`: rows and reasons, the front, interrupted runs, files, a user's own laws."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sdecontrol as sc
from sdecontrol.cli import app
from sdecontrol.evaluate import collect, score
from sdecontrol.methods import METHODS, choose
from sdecontrol.report import comparison
from sdecontrol.report.comparison import Chain, Parts, Trial
from sdecontrol.report.front import CLOSED, FROM_TILT, WEIGHED, _from_tilt, front
from sdecontrol.report.questions import Question, questions
from sdecontrol.report.runs import Cost, metered, restore, store

GRID, KERNEL = sc.TimeGrid.log_snr(20, s_min=1e-2), sc.Ancestral()
FAST = ["--n", "256", "--steps", "20"]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def gaussian(reward: Any = None, temperature: float = 0.8) -> sc.Problem:
    law = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
    return sc.Problem(sc.ReverseProcess(sc.VP(), law), reward or sc.Linear([1.0, 0.5]), temperature, name="g")


# ------------------------------------------------------------------ the command


def test_rows_reasons_and_files(tmp_path: Path) -> None:
    code, out, err = run("compare", "--problem", "gaussian-1d-vp", *FAST, "--out", str(tmp_path))
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "comparison.json").read_text())["problems"]["gaussian-1d-vp"]
    assert found["complete"] and set(found["laws"]) | set(found["not defined"]) == set(METHODS)
    assert set(found["not defined"]) >= {"naive"} and "gloss" in found["laws"]
    assert "unguided samples" in " ".join(found["laws"]["gloss"]["notes"])
    assert "GaussianLabel" in found["not defined"]["naive"] and "naive is not defined here" in out
    exact, none = (found["laws"][name] for name in ("exact", "none"))
    assert exact["score"]["gap"]["value"] < 0.1 * none["score"]["gap"]["value"]
    assert exact["distance"]["value"] < none["distance"]["value"]
    assert len({law["score"]["optimum"]["value"] for law in found["laws"].values()}) == 1
    page = (tmp_path / "comparison.md").read_text()
    assert "| exact |" in page and "naive is not defined here" in page and "gaussian-1d-vp.png" in page
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"gaussian-1d-vp.{suffix}").stat().st_size > 5_000
    assert not (tmp_path / ".parts").exists()


def test_json_is_the_only_output_and_seeds_decide() -> None:
    command = ["compare", "--problem", "gaussian-1d-vp", "--controls", "none,exact", *FAST, "--json"]
    first, again, other = (json.loads(run(*command, "--seed", seed)[1]) for seed in ("1", "1", "2"))
    reward = lambda found: found["problems"]["gaussian-1d-vp"]["laws"]["exact"]["score"]["reward"]["value"]  # noqa: E731
    assert reward(first) == reward(again) != reward(other)


def test_temperature_replaces_the_problems_own() -> None:
    command = ["compare", "--problem", "gaussian-1d-ve", "--controls", "exact", *FAST, "--json"]
    cold, hot = (json.loads(run(*command, "--temperature", t)[1])["problems"]["gaussian-1d-ve"] for t in ("1.5", "4"))
    assert (cold["temperature"], hot["temperature"]) == (1.5, 4.0)
    assert cold["laws"]["exact"]["score"]["kl"]["value"] > hot["laws"]["exact"]["score"]["kl"]["value"]


OWN = """
import sdecontrol as sc
process = sc.ReverseProcess(sc.VP(), sc.Gaussian([1.0], [[2.0]]))
problem = sc.Problem(process, sc.Linear([1.0]), temperature=1.0)
controls = {
    "half": lambda problem: 0.5 * sc.guidance.plug_in(problem),
    "mine": lambda problem: (lambda step: 0.1 + 0 * step.x),
    "broken": lambda problem: 1 / 0,
}
"""


def test_laws_of_a_problem_file_join_and_a_broken_one_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    command = ["compare", "--problem", str(tmp_path / "own.py"), *FAST, "--json"]
    code, out, _ = run(*command, "--controls", "half,mine,exact")
    assert code == 0 and set(json.loads(out)["problems"]["own"]["laws"]) == {"half", "mine", "exact"}
    code, out, _ = run(*command, "--controls", "half,broken")
    found = json.loads(out)["problems"]["own"]
    assert code == 3 and found["failed"] == {"broken": "ZeroDivisionError: division by zero"}
    assert set(found["laws"]) == {"half"}


BAD = {
    "unknown problem": ("--problem gaussian-1d", "nearest: gaussian-1d-v"),
    "unknown law": ("--problem gaussian-1d-vp --controls plugin", "nearest: plug-in"),
    "no law": ("--problem gaussian-1d-vp --controls ,", "names of laws"),
    "a law without number": ("--problem gaussian-1d-vp --controls naive:2", "has no number"),
    "a reward elsewhere": ("--problem gaussian-1d-vp --reward 3", "its own reward"),
    "unknown task": ("--problem digits --reward 10", "task on the digits"),
    "cold": ("--problem gaussian-1d-vp --temperature -1", "temperature = -1"),
    "no temperature": ("--problem digits --temperature 0", "temperature = 0"),
    "controls of another kind": ("--problem {}/list.py", "`controls` of type list"),
    "nowhere to start over": ("--problem gaussian-1d-vp --fresh", "--fresh without --out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_any_work(case: str, tmp_path: Path) -> None:
    (tmp_path / "list.py").write_text(OWN.split("controls")[0] + "controls = [1]\n")
    arguments, message = BAD[case]
    code, out, err = run("compare", *arguments.format(tmp_path).split())
    assert (code, out) == (2, "") and message in err


def test_interrupted_runs_keep_what_is_done_and_go_on(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a law; without that law the others are found again and not run."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import sdecontrol as sc\n"
        "problem = sc.Problem(sc.ReverseProcess(sc.VP(), sc.Gaussian([1.0], [[2.0]])), sc.Linear([1.0]))\n"
        "def endless(problem):\n"
        "    raise KeyboardInterrupt\n"
        "controls = {'endless': endless}\n"
    )
    common = ["compare", "--problem", str(slow), "--out", str(tmp_path / "out"), *FAST]
    assert run(*common, "--controls", "exact,none,fk,endless")[0] == 130
    stopped = json.loads((tmp_path / "out" / "comparison.json").read_text())["problems"]["slow"]
    assert not stopped["complete"] and set(stopped["laws"]) == {"exact", "none", "fk"}
    assert "stopped before 1 of 4 laws" in (tmp_path / "out" / "comparison.md").read_text()
    code, _, _ = run(*common, "--controls", "exact,none,fk")
    again = json.loads((tmp_path / "out" / "comparison.json").read_text())["problems"]["slow"]
    assert code == 0 and again["complete"]
    assert again["laws"] == stopped["laws"]  # seconds too: nothing was run again


# ------------------------------------------------------------------ its parts


@pytest.mark.parametrize("name", ["exact", "none", "plug-in", "fk", "rejection"])
def test_a_stored_run_scores_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    problem = gaussian(sc.GaussianLabel([1.0, 0.5], 2.0, 0.5))
    entry = choose([name])[0].entry(problem)[0]
    with metered(problem, 200) as cost:
        ran = collect(problem, entry, grid=GRID, kernel=KERNEL, n=200)
    store(tmp_path / "run.safetensors", ran, cost, ["a note"])
    back, cost_back, notes = restore(tmp_path / "run.safetensors", problem, lambda: entry, GRID, KERNEL)
    first, second = (score(problem, {name: r}, grid=GRID, kernel=KERNEL)[name] for r in (ran, back))
    assert first.to_dict() == second.to_dict()
    assert (cost_back, notes) == (cost, ["a note"])


def test_a_running_reward_is_stored_with_the_run(tmp_path: Path) -> None:
    problem, grid = sc.problems.quadratic_ou(dim=3), sc.TimeGrid.uniform(10)
    ran = collect(problem, None, grid=grid, n=100)
    store(tmp_path / "run.safetensors", ran, Cost(), [])
    back = restore(tmp_path / "run.safetensors", problem, lambda: None, grid, problem.process.default_kernel)[0]
    assert torch.equal(ran.reward, back.reward)


def test_calls_are_counted_a_sample_whatever_the_blocks() -> None:
    law = sc.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.3, 0.2])
    problem = sc.Problem(sc.ReverseProcess(sc.VP(), law), sc.Linear([1.0, 0.0]))
    for entry, calls, pullbacks in (
        (None, 20, 0),
        (sc.guidance.plug_in(problem), 20, 19),  # the last step has no noise, so no control acts on it
        (sc.steering.svdd(problem, 3), 60, 0),
        (sc.steering.best_of(problem, 2), 40, 0),
    ):
        n = 1_000 if isinstance(entry, sc.Control) or entry is None else 8_192  # the latter fills its blocks of 16 384
        with metered(problem, n) as cost:
            ran = collect(problem, entry, grid=GRID, kernel=KERNEL, n=n)
        cost.discount(ran, n)
        assert (cost.calls, cost.pullbacks) == pytest.approx((calls, pullbacks), rel=1e-9)
    assert "state" not in vars(problem.process) and "score_vjp" not in vars(problem.process.model)


def test_the_front_of_a_gaussian_is_a_root() -> None:
    """N(m, S), r = g . x: E_T r = g . m + g' S g / T and KL = g' S g / (2 T^2), so E r - g . m = sqrt(2 KL g' S g)."""
    law = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
    problem = sc.Problem(sc.ReverseProcess(sc.VP(), law, "marginal"), sc.Linear([1.0, 0.5]), 0.8)
    points = front(problem, GRID, KERNEL, 0)
    spread = 1.0 + 0.3 + 0.125
    assert {point.route for point in points} == {CLOSED}
    for point in points:
        assert point.reward == pytest.approx(0.75 + math.sqrt(2 * point.kl * spread), rel=1e-9)


def test_the_front_without_closed_forms_is_weighed_and_agrees() -> None:
    law = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
    process, linear = sc.ReverseProcess(sc.VP(), law, "marginal"), sc.Linear([1.0, 0.5])
    closed = {p.temperature: p for p in front(sc.Problem(process, linear, 0.8), GRID, KERNEL, 0)}
    black_box = sc.Problem(process, lambda x: linear(x), 0.8)
    weighed = front(black_box, GRID, sc.ExactTransition(), 0)
    assert 8 < len(weighed) < len(closed) and {p.route for p in weighed} == {WEIGHED}
    for point in weighed:
        own = closed[point.temperature]
        assert abs(point.reward - own.reward) < 5 * point.reward_stderr
        assert abs(point.kl - own.kl) < 5 * point.kl_stderr


def test_the_front_of_a_class_has_its_own_temperature_from_the_tilt() -> None:
    """The same classes on the line, where the KL is a quadrature, and in three dimensions, where it is not."""
    for d, route in ((1, CLOSED), (3, FROM_TILT)):
        means = torch.zeros(2, d)
        means[:, 0] = torch.tensor([-1.0, 1.0])
        law = sc.GaussianMixture([0.5, 0.5], means, [0.3, 0.2])
        problem = sc.Problem(sc.ReverseProcess(sc.VP(), law, "marginal"), sc.ClassPosterior(law, 0))
        points = front(problem, GRID, KERNEL, 0)
        found = {p.temperature: p for p in points}
        assert found[1.0].route == route and {p.route for p in points if p.temperature != 1} == {WEIGHED}
        kls = [p.kl for p in points]
        assert kls == sorted(kls) and found[0.5].reward > found[1.0].reward > found[2.0].reward
        if d == 1:
            drawn = _from_tilt(problem, 0)
            assert drawn is not None and abs(drawn.kl - found[1.0].kl) < 5 * drawn.kl_stderr


def test_parts_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, (none, exact) = Chain(GRID, KERNEL, 64, 0), choose(["none", "exact"])
    trial, parts = Trial(Question(gaussian()), chain, [none, exact]), Parts(tmp_path, {})
    other = Trial(Question(gaussian(temperature=0.9)), chain, [none])
    more = Trial(Question(gaussian()), Chain(GRID, KERNEL, 65, 0), [none])
    names = {parts.file(trial, none), parts.file(trial, exact), parts.file(other, none), parts.file(more, none)}
    monkeypatch.setattr(comparison, "sources", lambda: "another version")
    assert len(names | {Parts(tmp_path, {}).file(trial, none)}) == 5


# ------------------------------------------------------------------ the digits


@pytest.fixture(scope="module")
def digits() -> dict[str, Question]:
    return {question.name: question for question in questions("digits")}


def test_the_law_of_the_digits_is_one_gaussian_a_class(digits: dict[str, Question]) -> None:
    from sdecontrol.problems.digit_tasks import labelled_digits

    found = labelled_digits()
    rows = found.fitted.values[found.fitted.labels == 3]
    centred = found.fitted.values - found.fitted.values.mean(0)
    basis = np.linalg.svd(centred, full_matrices=False)[2][: found.law.latent.dim].T
    three, offset = digits["digits-3"].exact.exact.terminal, found.fitted.values.mean(0)
    assert np.abs(three.mean.numpy() - (offset + basis @ (basis.T @ (rows.mean(0) - offset)))).max() < 1e-9
    ridge = 0.02 * float((centred @ basis).var(0).mean())
    expected = np.cov((rows @ basis).T) + ridge * np.eye(basis.shape[1])
    assert np.abs(basis.T @ three.covariance.numpy() @ basis - expected).max() < 1e-9
    assert digits["digits-3"].exact.exact.log_normalizer == pytest.approx(math.log(len(rows) / len(centred)))
    assert not {tuple(row) for row in found.held_out.values} & {tuple(row) for row in found.fitted.values}
    assert float((found.read(torch.tensor(found.fitted.values)).numpy() == found.fitted.labels).mean()) > 0.97


def test_what_samples_of_digits_are_measured_by(digits: dict[str, Question]) -> None:
    question = digits["digits-bold-3"]
    x = question.exact.exact.terminal.sample(2_000, sc.Noise(0))
    assert question.measures is not None
    drawn = question.measures(lambda f: sc.Estimate.mean(f(x).double()))
    moved = question.measures(lambda f: sc.Estimate.mean(f(x + 1.0).double()))
    assert drawn["read as 3"].value > 0.95 and abs(drawn["spread"].z(1.0)) < 5
    assert drawn["off subspace"].value < 1e-25 < 0.1 < moved["off subspace"].value
    assert moved["spread"].value == pytest.approx(drawn["spread"].value)
    assert drawn["ink"].value > 1.0 and moved["ink"].value > drawn["ink"].value + 3


def test_digits_by_the_command(tmp_path: Path) -> None:
    laws = "tilt,exact,none,plug-in,pigdm,fk"
    command = ["compare", "--problem", "digits", "--reward", "bold-3", "--controls", laws, *FAST]
    code, out, _ = run(*command, "--out", str(tmp_path))
    found = json.loads((tmp_path / "comparison.json").read_text())["problems"]["digits-bold-3"]
    assert code == 0 and list(found["not defined"]) == ["pigdm"]
    read = {name: law["measures"]["read as 3"]["value"] for name, law in found["laws"].items()}
    assert min(read["tilt"], read["exact"]) > 0.9 > 0.4 > read["none"]
    assert (tmp_path / "digits-bold-3-samples.png").stat().st_size > 5_000


def test_digits_at_another_temperature_have_no_exact_rows_and_say_why(tmp_path: Path) -> None:
    command = ["compare", "--problem", "digits", "--reward", "7", "--temperature", "0.5", *FAST, "--json"]
    code, out, _ = run(*command, "--controls", "exact,tilt,none,plug-in")
    found = json.loads(out)["problems"]["digits-7"]
    assert code == 0 and set(found["laws"]) == {"none", "plug-in"}
    assert all("strength = temperature" in reason for reason in found["not defined"].values())
    assert found["front"] and all(point["route"] == WEIGHED for point in found["front"])
    assert all(law["distance"] is None for law in found["laws"].values())


@pytest.mark.parametrize("name", ["mixture-2d-vp", "mixture-2d-ve", "subspace-16-in-64-ve", "quadratic-ou-2d"])
def test_built_in_problems_by_the_command(name: str, tmp_path: Path) -> None:
    """A distance where the moments of the tilt are known (not under a reward that saturates), and rows either way."""
    command = ["compare", "--problem", name, "--controls", "none,doob,best-of-n:2", "--n", "128", "--steps", "10"]
    code, out, err = run(*command, "--out", str(tmp_path))
    found = json.loads((tmp_path / "comparison.json").read_text())["problems"][name]
    assert code == 0 and set(found["laws"]) == {"none", "doob", "best-of-n:2"}
    known = name != "mixture-2d-vp"
    assert all((law["distance"] is not None) == known for law in found["laws"].values())
