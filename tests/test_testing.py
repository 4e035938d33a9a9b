"""The tools for users' own tests: they must fail on planted errors, and shrink what they find to something to run."""

from __future__ import annotations

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import sdecontrol as sc
import sdecontrol.testing
import sdecontrol_pytest
from sdecontrol.errors import BadInput
from sdecontrol.testing import (
    Bound,
    Inconclusive,
    StaticTilt,
    assert_bound,
    assert_identity,
    assert_unbiased,
    check_bound,
    check_identity,
    find_counterexample,
    literal,
    problems,
    snippet,
    spd_matrices,
    tilts,
)
from sdecontrol.testing.ledger import RECORDS
from sdecontrol.testing.problem_strategies import widest_output

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def python(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**clean, **extra}, cwd=ROOT, check=False)


def simplest(strategy: st.SearchStrategy) -> object:
    return find(strategy, lambda drawn: True, settings=settings(phases=(Phase.generate, Phase.shrink)))


@pytest.fixture
def ledger() -> object:
    """What the test adds to the session's records is taken back: planted failures are no part of the session."""
    kept = list(RECORDS)
    yield RECORDS
    RECORDS[:] = kept


# ---------------------------------------------------------------------- bounds and counter-examples


def unnormalised(p: StaticTilt) -> float:
    x = p.reward / p.temperature
    return np.sqrt(p.reference @ (x * np.exp(x)) / 2)


def test_the_false_bound_is_refuted_by_two_points(record_property: pytest.RecordProperty) -> None:
    found = check_bound(lambda p: p.tv, unnormalised, problems=tilts(), examples=10_000)
    record_property("seconds", found.seconds)
    assert found.verdict == "violated"
    example = found.counterexample
    assert example is not None and len(example.problem.reward) == 2, "minimal: one point has no tilt to speak of"
    left, right = example.values
    assert left > right >= 0
    values = [*example.problem.reward, *example.problem.weights, example.problem.temperature]
    assert sum(len(f"{value:g}") for value in values) <= 15, "minimal: short numbers"
    with pytest.raises(AssertionError, match="StaticTilt"):
        found.assert_holds()


def test_no_part_of_the_counterexample_can_be_made_simpler() -> None:
    found = find_counterexample(Bound(lambda p: p.tv, unnormalised), problems=tilts(), seed=3)
    assert found is not None
    p, statement = found.problem, found.statement
    for i in range(2):
        reward, weights = p.reward.copy(), p.weights.copy()
        reward[i] = 0.0
        assert statement.judge(StaticTilt(reward, p.weights, p.temperature)).holds is not False
        if weights[i] > 1:
            weights[i] -= 1
            assert statement.judge(StaticTilt(p.reward, weights, p.temperature)).holds is not False


def test_the_same_seed_finds_the_same_counterexample() -> None:
    first, second = (
        find_counterexample(Bound(lambda p: p.tv, unnormalised), problems=tilts(), seed=5) for _ in range(2)
    )
    assert literal(first.problem) == literal(second.problem)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (lambda p: p.tv, lambda p: np.sqrt(p.jeffreys) / 2),  # Prop. 3.2, sharp
        (lambda p: p.tv, lambda p: np.tanh(p.oscillation / 4)),  # bounded rewards, sharp
        (lambda p: p.kl, lambda p: p.oscillation**2 / 8),
    ],
)
def test_true_bounds_survive_and_their_sharpness_is_seen(left: object, right: object) -> None:
    found = check_bound(left, right, problems=tilts(), examples=500)
    assert found.holds and found.examples >= 500 and found.undefined == 0
    assert 0.99 < found.tightest <= 1 + 1e-12


def test_a_constant_that_is_one_percent_too_small_is_found() -> None:
    assert not check_bound(lambda p: p.tv, lambda p: 0.495 * np.sqrt(p.jeffreys), problems=tilts()).holds


def test_an_identity_is_searched_too() -> None:
    assert check_identity(lambda p: p.kl + p.reverse_kl, lambda p: p.jeffreys, problems=tilts(), examples=300,
                          tolerance=1e-10).holds  # fmt: skip
    found = check_identity(lambda p: p.kl, lambda p: p.reverse_kl, problems=tilts(), examples=300)
    assert found.verdict == "violated"


def test_what_is_nowhere_defined_is_inconclusive() -> None:
    found = check_bound(lambda p: float("nan"), lambda p: 1.0, problems=tilts(), examples=20)
    assert found.verdict == "inconclusive" and found.undefined == found.examples
    with pytest.raises(AssertionError, match="20 of them undefined"):
        found.assert_holds()
    on_problems = find_counterexample(lambda p: p.exact.untilted_terminal is not None, problems=problems(dims=(2,)),
                                      max_examples=20)  # fmt: skip
    assert on_problems is None, "NoClosedForm is no counter-example"


def test_an_error_in_a_side_is_raised_with_the_problem() -> None:
    def broken(p: StaticTilt) -> float:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError) as caught:
        check_bound(broken, broken, problems=tilts(), examples=10)
    assert any("StaticTilt(" in note for note in caught.value.__notes__)
    with pytest.raises(BadInput, match="strategy"):
        check_bound(broken, broken, problems=[1, 2])


def test_the_snippet_runs_and_shows_the_violation(tmp_path: Path) -> None:
    found = find_counterexample(Bound(lambda p: p.tv, unnormalised), problems=tilts(), seed=0)
    file = tmp_path / "snippet.py"
    file.write_text(found.snippet)
    shown = python(file)
    assert shown.returncode == 0, shown.stderr
    left, right = found.values
    assert shown.stdout == f"left = {left}, right = {right}; left <= right is False\n"


FACTOR = 0.5


def half(x: float) -> float:
    return FACTOR * x


def path_kl(p: sc.Problem) -> float:
    return p.exact.path_kl


def test_the_snippet_of_a_problem_brings_helpers_and_laws(tmp_path: Path) -> None:
    """KL(p_ft || p_pre) <= half of it, at a drawn problem: every name that the sides use comes along."""
    shift = 0.0

    def right(p: sc.Problem) -> float:
        return half(sc.laws.kl(p.exact.terminal, p.exact.reference)) + shift

    found = find_counterexample(Bound(path_kl, right), problems=problems(), max_examples=100)
    assert found.problem.process.dim == 1, "shrunk to the line"
    assert "sc.Gaussian([0.0], [1.0])" in found.snippet and "sc.VP(beta_min=1.0, beta_max=1.0" in found.snippet
    space: dict[str, object] = {}
    exec(compile(found.snippet, "snippet", "exec"), space)  # noqa: S102  our own text
    assert space["left_value"] == pytest.approx(found.values[0], rel=1e-12)
    assert space["right_value"] == pytest.approx(found.values[1], rel=1e-12)


def test_what_cannot_be_written_is_left_to_the_reader() -> None:
    text = snippet(lambda p: p > 0, object())
    assert "problem = ...  # <object" in text and "lambda p: p > 0" in text


@settings(max_examples=40)
@given(problems(initial=("standard", "marginal", "gaussian", "point")))
def test_the_literal_of_a_problem_makes_it_again(p: sc.Problem) -> None:
    again = eval(literal(p), {"sc": sc})  # noqa: S307  our own text
    x = p.process.data_law.sample(4, sc.Noise(0))
    values = p.exact.value(0.3 * p.process.horizon, x)
    assert again.temperature == p.temperature
    assert_identity(again.exact.value(0.3 * p.process.horizon, x), values, 1e-10 * float(1 + values.abs().max()))
    assert_identity(again.process.initial_law().mean, p.process.initial_law().mean, 1e-13)


@pytest.mark.parametrize(
    "value",
    [
        sc.TimeGrid.uniform(3), sc.TimeGrid.geometric(4, s_min=0.1, close=False), sc.TimeGrid.log_snr(5),
        sc.TimeGrid.explicit([0.0, 0.3, 1.0]).refine(2), sc.DDIM(0.5), sc.Ancestral("large"), sc.Cosine(),
    ],
)  # fmt: skip
def test_literals_of_grids_kernels_and_schedules(value: object) -> None:
    again = eval(literal(value), {"sc": sc})  # noqa: S307  our own text
    assert repr(again) == repr(value)


# ---------------------------------------------------------------------- strategies


@pytest.mark.parametrize("dim", [1, 3])
def test_covariances_stay_within_their_condition_and_shrink_to_the_identity(dim: int) -> None:
    widest = 1.0

    @settings(max_examples=100)
    @given(spd_matrices(dim, condition=25.0))
    def inner(matrix: np.ndarray) -> None:
        nonlocal widest
        values = np.linalg.eigvalsh(matrix)
        assert_bound(values[-1] / values[0], 25.0, slack=1e-10)
        widest = max(widest, values[-1])

    inner()
    assert widest > 4.0, "the range is used: up to 5"
    assert np.array_equal(simplest(spd_matrices(dim)), np.eye(dim))


@settings(max_examples=60)
@given(problems(initial=("standard", "marginal", "gaussian", "point")))
def test_drawn_problems_have_a_tilt_and_no_law_wider_than_claimed(p: sc.Problem) -> None:
    p.exact.check_existence()
    try:
        reference = p.exact.reference
        covariance = reference.covariance
    except (sc.NoClosedForm, sc.NotDefined):
        return
    if isinstance(p.process.data_law, sc.Gaussian):
        assert_bound(float(torch.linalg.eigvalsh(covariance)[-1]), widest_output(p.process), slack=1e-10)


def test_the_simplest_problem_is_simple() -> None:
    assert literal(simplest(problems())) == (
        "sc.Problem(sc.ReverseProcess(sc.VP(beta_min=1.0, beta_max=1.0, horizon=1.0), sc.Gaussian([0.0], [1.0])), "
        "sc.Linear([0.0]), temperature=1.0)"
    )
    assert literal(simplest(tilts())) == "sc.testing.StaticTilt(reward=[0.0, 0.0], weights=[1, 1], temperature=1.0)"


def test_static_tilts_refuse_what_is_not_a_law() -> None:
    for bad in ({"reward": []}, {"reward": [1.0, np.nan]}, {"reward": [1.0], "weights": [1.0, 2.0]},
                {"reward": [1.0, 2.0], "weights": [1.0, 0.0]}, {"reward": [1.0], "temperature": 0.0}):  # fmt: skip
        with pytest.raises(BadInput):
            StaticTilt(**bad)


def test_tiny_tilts_lose_no_digits() -> None:
    """At r/T = ±d: tv = tanh(d)/2 and D = 2 d tanh(d) / 2, however small d is."""
    for d in (1e-12, 1e-6, 1e-2, 3.0):
        p = StaticTilt([-d, d])
        assert p.tv == pytest.approx(np.tanh(d) / 2, rel=1e-13)
        assert p.jeffreys == pytest.approx(d * np.tanh(d), rel=1e-13)


# ---------------------------------------------------------------------- assertions


def test_identities_fail_on_planted_errors() -> None:
    left = np.array([1.0, 1e6, -3.0])
    assert_identity(left, left * (1 + 1e-14))
    assert_identity(torch.tensor(left), left)
    assert_identity(np.inf, np.inf)
    with pytest.raises(AssertionError, match=r"entry \(1,\) of \(3,\)"):
        assert_identity(left, left * (1 + 1e-11))
    assert_identity(left, left * (1 + 1e-11), condition=1e3)
    for wrong in (np.nan, np.inf, 1.0 + 1e-11):
        with pytest.raises(AssertionError):
            assert_identity(1.0, wrong)
        with pytest.raises(AssertionError):
            assert_identity(wrong, 1.0)
    with pytest.raises(BadInput, match="shapes"):
        assert_identity(left, left[:2])


def test_bounds_fail_on_planted_errors() -> None:
    assert_bound([1.0, 2.0], [1.0, 2.0 - 1e-14])
    assert_bound([1.0, 2.0], np.inf)
    assert_bound(1.0, 0.9, slack=0.2)
    for left, right in [(1.0 + 1e-11, 1.0), (np.inf, 1.0), (np.nan, 1.0), (1.0, np.nan), (1.0, -np.inf)]:
        with pytest.raises(AssertionError):
            assert_bound(left, right)
    assert Bound(lambda p: p, lambda p: 1.0).judge(np.inf).holds is False


def normals(mean: float, n: int = 400) -> object:
    return lambda noise: mean + sc.Gaussian(0.0, 1.0).sample(n, noise)[:, 0]


def test_an_unbiased_estimator_passes_and_is_recorded(ledger: list) -> None:
    made = assert_unbiased(normals(0.7), 0.7, detectable_gap=0.05)
    assert made.verdict == "holds" and made.detectable_gap <= 0.05 and ledger[-1] is made
    k = 4.8916 + 2.3263  # normal quantiles of 1e-6 two-sided and 1e-2
    assert made.n == pytest.approx((k / 0.05) ** 2, rel=0.1)
    assert "test_an_unbiased_estimator_passes" in made.name


def test_the_declared_gap_is_seen_in_ninety_nine_of_a_hundred(ledger: list) -> None:
    seen = 0
    for seed in range(60):
        try:
            assert_unbiased(normals(0.2), 0.0, detectable_gap=0.2, false_fail_rate=1e-3, seed=1000 * seed)
        except AssertionError:
            seen += 1
    assert seen >= 56, "at 0.99 each, fewer have probability 6e-4"


def test_false_alarms_come_at_their_rate(ledger: list) -> None:
    alarms = 0
    for seed in range(300):
        try:
            assert_unbiased(normals(0.0, 50), 0.0, false_fail_rate=0.05, seed=seed)
        except AssertionError:
            alarms += 1
    assert 3 <= alarms <= 31, "15 expected; outside has probability 2e-4"


def test_entries_share_the_rate(ledger: list) -> None:
    columns = lambda noise: sc.Gaussian([0.0, 0.0], 1.0).sample(500, noise)  # noqa: E731
    made = assert_unbiased(columns, [0.0, 0.0], false_fail_rate=1e-4)
    assert made.z_critical == pytest.approx(4.055, abs=0.05), "two-sided normal quantile of 5e-5, Student's at 499"
    with pytest.raises(AssertionError, match="violated"):
        assert_unbiased(columns, [0.0, 0.5])


def test_too_few_samples_are_inconclusive_with_the_number_needed(ledger: list) -> None:
    with pytest.raises(Inconclusive) as caught:
        assert_unbiased(normals(0.0), 0.0, detectable_gap=1e-3, max_samples=10_000)
    assert caught.value.record.needed == pytest.approx(5.2e7, rel=0.3)
    assert ledger[-1].verdict == "inconclusive"
    with pytest.raises(Inconclusive, match="inf"):
        assert_unbiased(normals(0.0), sc.Estimate(0.0, 0.1, 100), detectable_gap=0.05)


def test_misused_estimators_are_refused(ledger: list) -> None:
    with pytest.raises(BadInput, match="two noises"):
        assert_unbiased(lambda noise: normals(0.0)(sc.Noise(0)), 0.0, detectable_gap=0.01)
    with pytest.raises(BadInput, match="assert_identity"):
        assert_unbiased(lambda noise: sc.Estimate.exact(1.0), 1.0)
    with pytest.raises(BadInput, match="probability"):
        assert_unbiased(normals(0.0), 0.0, false_fail_rate=0.0)
    with pytest.raises(AssertionError, match="violated"):
        assert_unbiased(lambda noise: [float("nan")] * 10, 0.0)


# ---------------------------------------------------------------------- plugin, examples, imports

SESSION = """  # a ledger of its own: what is asked here is how workers hand theirs over, without loading torch in each
import sys
from types import SimpleNamespace
ledger = sys.modules.setdefault("sdecontrol.testing.ledger", SimpleNamespace(RECORDS=[]))
def test_one():
    ledger.RECORDS.append(SimpleNamespace(name="one", z=1.0, z_critical=4.9, false_fail_rate=2e-6))
def test_two():
    ledger.RECORDS.append(SimpleNamespace(name="two", z=2.0, z_critical=4.9, false_fail_rate=3e-6))
"""


def pytest_session(folder: Path, text: str, *options: str) -> str:
    (folder / "test_session.py").write_text(text)
    loaded = ["-p", "sdecontrol_pytest", "-p", "no:cacheprovider", *options]
    done = python("-m", "pytest", "-q", *loaded, "--rootdir", folder, folder, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
                  PYTHONPATH=str(ROOT))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_plugin_sums_the_rates_of_all_workers(tmp_path: Path) -> None:
    shown = pytest_session(tmp_path, SESSION, "-p", "xdist", "-n", "2").splitlines()
    lines = [line for line in shown if "sdecontrol:" in line]
    assert len(lines) == 1
    assert lines[0] == (
        "sdecontrol: 2 assert_unbiased calls, family-wise false-fail rate <= 5.0e-06, "
        "largest z 2.00 (fails beyond 4.90) in two"
    )


def test_the_plugin_reports_this_process(ledger: list) -> None:
    ledger.clear()
    assert_unbiased(normals(0.0), 0.0, false_fail_rate=2e-6, name="first")
    with pytest.raises(AssertionError):
        assert_unbiased(normals(1.0), 0.0, false_fail_rate=1e-6, name="second")
    shown = sdecontrol_pytest.summary(sdecontrol_pytest.entries())
    assert "2 assert_unbiased calls, family-wise false-fail rate <= 3.0e-06" in shown and shown.endswith("in second")


def test_the_plugin_is_silent_and_light_without_assertions(tmp_path: Path) -> None:
    light = (
        "import sys\ndef test_light():\n    assert 'torch' not in sys.modules and 'sdecontrol_pytest' in sys.modules\n"
    )
    assert "sdecontrol:" not in pytest_session(tmp_path, light)


@pytest.mark.parametrize("name", ["false_bound.py", "true_bound.py"])
def test_the_examples_are_short_and_documented(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) <= 15
    assert text.rstrip().splitlines()[-1] in (ROOT / "docs" / "testing.md").read_text(), "the page shows this file"


def test_the_false_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "false_bound.py"))
    assert capsys.readouterr().out.startswith("left <= right: violated")


@pytest.mark.slow
def test_the_true_example_runs(capsys: pytest.CaptureFixture[str], record_property: pytest.RecordProperty) -> None:
    runpy.run_path(str(EXAMPLES / "true_bound.py"))
    shown = capsys.readouterr().out
    record_property("shown", shown)
    assert shown.startswith("left <= right: holds (10000 examples, ")


def test_without_hypothesis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sdecontrol.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ModuleNotFoundError, match="pip install hypothesis"):
        importlib.import_module("sdecontrol.testing")


def test_strategies_compose_with_hypothesis() -> None:
    laws = st.integers(1, 2).flatmap(sdecontrol.testing.gaussians).filter(lambda law: law.dim == 2)
    assert literal(simplest(laws)) == "sc.Gaussian([0.0, 0.0], [1.0, 1.0])"
