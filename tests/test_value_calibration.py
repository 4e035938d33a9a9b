"""z-scores of every estimator over random problems: the recorded run, and a smaller one of today."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # experiments is a folder of the repository, not of the package

from experiments import value_calibration as calibration  # noqa: E402

RECORDED = json.loads((ROOT / "experiments" / "results" / "value_calibration.json").read_text())


def test_recorded_scores_are_standard_normal() -> None:
    for name, row in RECORDED.items():
        if name != "cold":
            assert row["problems"] + row["warned"] + row["exact"] == calibration.PROBLEMS, name
            assert row["largest_rounding"] < calibration.ROUNDING, name
            assert row["p"] > calibration.RATE, name


def test_recorded_heavy_weights_end_in_a_warning() -> None:
    assert all(case["warned"] for case in RECORDED["cold"] if abs(case["z"]) > 4)
    assert sum(abs(case["z"]) > 4 for case in RECORDED["cold"]) >= 10


@pytest.mark.parametrize("method", calibration.BY_LAW, ids=lambda m: m.name)
def test_scores_over_random_problems(method) -> None:
    row = calibration.values(method, calibration.by_law, 25, 1_000, calibration.SAMPLES)
    assert row["p"] > 1e-5 and row["largest"] < 5 and row["warned"] <= 7
    assert row["largest_rounding"] < calibration.ROUNDING


@pytest.mark.parametrize("rule", [r for r in calibration.GRADIENTS if "Bismut" not in repr(r)], ids=repr)
def test_gradients_over_random_problems(rule) -> None:
    row = calibration.gradients(rule, 25, 1_000)
    assert row["p"] > 1e-5 and row["largest"] < 6 and row["warned"] <= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", calibration.parts())
def test_everything_at_new_seeds(name: str) -> None:
    found = calibration.parts(first=5_000)[name]()
    if name == "cold":
        assert all(case["warned"] for case in found if abs(case["z"]) > 4)
    else:
        assert found["p"] > calibration.RATE / len(calibration.parts())
