"""The pages on pipelines: the numbers of their tables are those of the recorded runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)(?:\((\d+)\))?")
LAWS = {
    "none": "none", "plug-in": "plug-in", "G_loss of a linear surrogate": "gloss", "classifier": "classifier",
    "DPS, scale 0.3": "dps:0.3", "CFG 7.5": "cfg", "Feynman-Kac, 8 particles": "fk", "twisted, 8 particles": "twisted",
    "SVDD, 4 candidates": "svdd", "best of 8": "best-of-n",
}  # fmt: skip


def read(path: str) -> Any:
    return json.loads((ROOT / path).read_text())


def table(page: str, first_heading: str) -> list[list[str]]:
    """The cells of the first table whose first heading is this one, without its head."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_heading} |".replace("  ", " ")))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    raise AssertionError("a table that does not end")


def shows(cell: str, recorded: Any, unit: float = 1.0) -> bool:
    """Whether a cell "1.23(4)" is the recorded number, an estimate or a plain one, to half its last digit."""
    found = NUMBER.match(cell)
    assert found is not None, f"{cell!r}: no number"
    digit = 10.0 ** -len(found[1].partition(".")[2])
    estimate = isinstance(recorded, dict)
    value, error = (recorded["value"], recorded["stderr"]) if estimate else (recorded, None)
    right = abs(float(found[1]) - value * unit) <= 0.5001 * digit
    if found[2] is not None:
        right &= error is not None and abs(int(found[2]) * digit - error * unit) <= 0.5001 * digit
    return right


@pytest.mark.parametrize(
    ("cell", "recorded", "right"),
    [
        ("1.23(4)", {"value": 1.2349, "stderr": 0.0351}, True), ("1.23(4)", {"value": 1.2351, "stderr": 0.04}, False),
        ("1.23(4)", {"value": 1.23, "stderr": 0.046}, False), ("12", 12.4, True), ("12", 12.6, False),
        ("-3(1)", {"value": 3.0, "stderr": 1.0}, False),
    ],
)  # fmt: skip
def test_reading_of_cells(cell: str, recorded: Any, right: bool) -> None:
    assert shows(cell, recorded) is right


def test_what_the_small_pipeline_draws() -> None:
    quality = read("experiments/results/tiny_pipeline.json")["quality"]
    rows = {row[0]: row[1:] for row in table("tiny_pipeline.md", "")}
    assert rows.keys() == quality.keys() and len(rows) == 4
    for name, (accuracy, variance, distance, copies) in rows.items():
        found = quality[name]
        assert shows(accuracy, found["accuracy"], 100), name
        if name == "real training digits":
            continue
        assert shows(variance, found["variance"]) and shows(distance, found["nearest"]), name
        assert shows(copies, found["copies"], 100), name


def test_laws_on_the_small_pipeline() -> None:
    trials = read("experiments/results/tiny_pipeline.json")["laws digit:8"]
    (laws,) = [trial["laws"] for trial in trials if trial["temperature"] == 1.0]
    rows = {row[0]: row[1:] for row in table("tiny_pipeline.md", "law")}
    assert rows.keys() == LAWS.keys() and laws.keys() == set(LAWS.values())
    for name, (reward, kl, log_z, effective) in rows.items():
        found = laws[LAWS[name]]
        score = found["score"]
        assert shows(reward, score["reward"]), name
        assert shows(kl, score["kl"]) if kl else "kl" not in score, name
        assert shows(log_z, found["log_normalizer"]) if log_z else True, name
        assert shows(effective, score["ess"]) if effective else True, name


def test_routes_on_the_small_pipeline() -> None:
    found = read("experiments/results/tiny_pipeline.json")
    rows = table("tiny_pipeline.md", "reward")
    assert len(rows) == 2
    for name, *cells in rows:
        reward, temperature = name.split(", T = ")
        route = found[f"routes {reward.replace('digit ', 'digit:')}"]
        assert route["temperature"] == float(temperature)
        for cell, by in zip(cells, ("plain paths", "guided paths", "twisted particles")):
            assert shows(cell, route["log_z"][by]), (name, by)
        scores = cells[3].split(", ")
        assert len(scores) == len(route["z"]) and all(map(shows, scores, route["z"])), name


def test_the_full_model_on_a_gpu() -> None:
    found = read("benchmarks/results/stable_diffusion_gpu.json")
    page = (ROOT / "docs" / "stable_diffusion.md").read_text().replace("\n", " ")
    assert found["device"] in page
    rows = table("stable_diffusion.md", "batch")
    assert {int(row[0]) for row in rows} == {row["batch"] for row in found["rows"]}
    for batch, *cells in rows:
        of_batch = [row for row in found["rows"] if row["batch"] == int(batch)]
        for cell, row in zip(cells, of_batch):
            assert shows(cell, row["images a second"]), (batch, row["route"])
    (against,) = re.findall(r"took ([\d.]+) to ([\d.]+) times the stock", page)
    times = [row["times the stock pipeline's seconds"] for row in found["rows"] if row["route"] != "stock pipeline"]
    assert shows(against[0], min(times)) and shows(against[1], max(times))
    for law, batch, seconds, peak, again in table("stable_diffusion.md", "law, float16"):
        kept, recomputed = (
            row for row in found["gradients"] if row["law"] == law.split(",")[0].lower() and row["batch"] == int(batch)
        )
        assert shows(seconds, kept["seconds a step"]) and shows(peak, kept["peak GiB"]), law
        slower, smaller = again.split(" s, ")
        assert shows(slower, recomputed["seconds a step"]) and shows(smaller, recomputed["peak GiB"]), law
