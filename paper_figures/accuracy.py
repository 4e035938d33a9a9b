"""Law error against seconds: what each library offers on the four problems of the accuracy benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paper_figures.output import publish
from sdecontrol.report.style import CYCLE, TILT, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "accuracy.json"
SHOWN = {"sdecontrol": ("o", TILT), "sdecontrol, law known": ("*", TILT), "torchsde": ("s", CYCLE[0]),
         "diffrax": ("^", CYCLE[1]), "diffusers": ("D", CYCLE[2]), "scipy": ("v", CYCLE[3])}  # fmt: skip


def main(results: Path = RESULTS) -> None:
    found = json.loads(results.read_text())
    problems = list(found["problems"].values())
    with canvas(2, 2, size=(7.0, 6.0)) as (figure, axes):
        for ax, problem in zip(axes, problems):
            panel(ax, problem)
        for ax in axes[len(problems) :]:
            ax.set_visible(False)
        axes[0].legend(fontsize=7)
        publish(figure, "accuracy")


def panel(ax: Axes, problem: dict[str, Any]) -> None:
    """All contenders of a problem; a line joins those of a family that no other of it beats in error and time."""
    for family, (marker, color) in SHOWN.items():
        records = [r for r in problem["records"] if r["family"] == family]
        seen, hidden = ([r for r in records if r["resolved"] is flag] for flag in (True, False))
        label = family if records else None
        ax.plot(*columns(seen), marker, ms=4, mfc="none", color=color, alpha=0.6, label=label)
        for record in hidden:  # below resolution: somewhere under the bar
            ax.plot(record["median"], record["high"], "_", ms=6, color=color)
            ax.annotate("", (record["median"], record["high"] / 1.6), (record["median"], record["high"]),
                        arrowprops={"arrowstyle": "->", "color": color, "lw": 0.7})  # fmt: skip
        ax.plot(*columns(front(seen)), "-", lw=1.2, color=color)
    for target in problem["targets"]:
        ax.axhline(target, color="0.6", lw=0.8, ls=":")
    ax.set(xscale="log", yscale="log", xlabel=f"seconds for {problem['paths']:,} samples", ylabel="relative law error")
    ax.xaxis.set_minor_formatter("")  # decades are enough
    ax.set_title(problem["title"])


def front(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records that no faster one beats in error, by time."""
    best, kept = float("inf"), []
    for record in sorted(records, key=lambda r: r["median"]):
        if record["error"] < best:
            best = record["error"]
            kept.append(record)
    return kept


def columns(records: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [r["median"] for r in records], [r["error"] for r in records]


if __name__ == "__main__":
    main()
