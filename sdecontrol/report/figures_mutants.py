"""The figure of wrong answers: which claims caught which mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdecontrol.claims import Report
from sdecontrol.report.mutants import tallies
from sdecontrol.report.run import Picture
from sdecontrol.report.style import REFERENCE, TILT, canvas, save


def draw(reports: Sequence[Report], folder: Path) -> list[Picture]:
    """Claims across, mistakes down: caught on every problem, missed on some, or not tried; none without mutants."""
    wrong = tallies(reports)
    if not wrong:
        return []
    claims, names = list(wrong), list(dict.fromkeys(name for row in wrong.values() for name in row))
    found = {(x, y): wrong[claim][name] for x, claim in enumerate(claims) for y, name in enumerate(names)
             if name in wrong[claim]}  # fmt: skip
    caught = [place for place, tally in found.items() if not tally.missed]
    missed = [place for place, tally in found.items() if tally.missed]
    blank = [(x, y) for x in range(len(claims)) for y in range(len(names)) if (x, y) not in found]
    with canvas(1, 1, size=(max(5.8, 3.2 + 0.45 * len(claims)), max(2.2, 1.3 + 0.21 * len(names)))) as (figure, (ax,)):
        for places, marker, color, size, label in (
            (caught, "s", REFERENCE, 55, "caught on every problem"),
            (missed, "X", TILT, 75, "missed on some"),
            (blank, "_", "#bbbbbb", 18, "not tried, or no mistake there"),
        ):
            across, down = zip(*places) if places else ((), ())
            ax.scatter(across, down, marker=marker, color=color, s=size, label=label)
        for (x, y), tally in found.items():
            ax.annotate(str(tally.rejected), (x, y), (6, 0), textcoords="offset points", fontsize=6.5, va="center")
        ax.set_xticks(range(len(claims)), claims, rotation=60, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(names)), names)
        ax.set_xlim(-0.6, len(claims) - 0.3)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set(xlabel="claim", ylabel="mistake in the answers")
        ax.tick_params(length=0)
        figure.legend(loc="outside upper center", ncols=3)
        save(figure, folder / "mutants")
    return [Picture(
        "mutants", "Wrong answers caught",
        "Claims that hold were run again on answers with a known mistake; numbers count the problems on which the "
        "claim rejected them.",
    )]  # fmt: skip
