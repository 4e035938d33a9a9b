"""p-values of the rows, false alarms of the claims, coverage of the intervals over 200 seeds; docs/calibration.md."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import binom, norm

from experiments.calibration import INTERVALS, LEVEL
from experiments.record import results
from paper_figures.output import FOLDER, guide, publish
from sdecontrol.report.atomic import write
from sdecontrol.report.style import CYCLE, SAMPLES, canvas

MARKS = ("o", "s", "^", "D")


def equalities(table: dict[str, Any]) -> np.ndarray:
    """Two-sided p-values of all rows that compare with the chain's own truth."""
    z = [row["z"] for problem in table["problems"] for row in problem["rows"] if row["kind"] == "equality"]
    return 2 * norm.sf(np.abs(np.concatenate([np.array(values) for values in z])))


def draw(table: dict[str, Any]) -> None:
    seeds = table["summary"]["seeds"]
    with canvas(1, 3, size=(10.0, 4.4)) as (figure, (left, middle, right)):
        p = equalities(table)
        left.hist(p, bins=np.linspace(0, 1, 21).tolist(), density=True, color=SAMPLES)
        guide(left, 1.0, "uniform")
        left.set(xlabel=f"p-value of a row, {len(p)} in all", ylabel="density", ylim=(0, 1.4))

        names = list(table["problems"][0]["claims"])
        for problem, mark, color in zip(table["problems"], MARKS, CYCLE, strict=False):
            alarms = [problem["claims"].get(name, np.nan) for name in names]
            middle.plot(alarms, range(len(names)), mark, color=color, ms=4, label=problem["problem"])
        guide(middle, float(binom.isf(5e-3, seeds, LEVEL)), "0.5 %", vertical=True)
        middle.set(xlabel=f"seeds of {seeds} with\na false alarm at 5 %", yticks=range(len(names)), yticklabels=names)
        middle.invert_yaxis()
        middle.legend(
            loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, fontsize=7, handletextpad=0.1, columnspacing=0.8
        )

        rows = table["estimates"]
        for level, mark, color in zip(INTERVALS, MARKS, CYCLE, strict=False):
            inside = np.array([row["inside"][str(level)] for row in rows])
            off = (inside - seeds * level) / math.sqrt(seeds * level * (1 - level))
            right.plot(off, range(len(rows)), mark, color=color, ms=4, label=f"{100 * level:.0f} %")
        right.axvspan(-2.6, 2.6, color="0.93", lw=0, zorder=0)
        right.set(xlabel="coverage - stated level,\nbinomial standard deviations", yticks=range(len(rows)),
                  yticklabels=[row["estimate"] for row in rows], xlim=(-4, 4))  # fmt: skip
        right.invert_yaxis()
        right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=7)
        publish(figure, "calibration")


def rates(table: dict[str, Any]) -> str:
    """How often rows of each kind alarm."""
    rows = [row for problem in table["problems"] for row in problem["rows"]]
    said = []
    for kind, name in (("equality", "equalities"), ("with allowance", "with allowance"), ("bound", "bounds")):
        alarms, seeds = (sum(row[key] for row in rows if row["kind"] == kind) for key in ("alarms", "seeds"))
        said.append(f"{100 * alarms / max(1, seeds):.2f} % of {name}")
    return f"{said[0]}, {said[1]} and {said[2]}"


def page(table: dict[str, Any]) -> str:
    s, seeds = table["summary"], table["summary"]["seeds"]
    claims = [
        f"| {name} | " + " | ".join(str(problem["claims"].get(name, "")) for problem in table["problems"]) + " |"
        for name in table["problems"][0]["claims"]
    ]
    every = (row | {"problem": problem["problem"]} for problem in table["problems"] for row in problem["rows"])
    loudest = sorted(every, key=lambda row: -row["alarms"])[:8]
    rows = [
        f"| {row['claim']} | {row['problem']} | {row['quantity'].replace('|', ' ')} | {row['kind']} | {row['alarms']} "
        f"| {row['std']:.2f} |"
        for row in loudest
    ]
    covered = [
        f"| {row['estimate']} | " + " | ".join(f"{row['inside'][str(level)] / seeds:.3f}" for level in INTERVALS)
        + f" | {row['mean']:+.2f} | {row['std']:.2f} | {row['ks']:.2g} |"
        for row in table["estimates"]
    ]  # fmt: skip
    headings = " | ".join(problem["problem"] for problem in table["problems"])
    return f"""# Calibration

An error bar is a promise. This page is made by running true statements {seeds} times with different noise and counting
how often the library would have cried wolf, and how often an interval holds the value that is known in closed form.
`python -m experiments.calibration` makes the numbers, `python -m paper_figures.calibration` this page.

![p-values, false alarms and coverage](figures/calibration.png)

Left: p-values of the {s["equalities"]} Monte Carlo rows that compare with the chain's own truth; the smallest of their
Kolmogorov-Smirnov p-values is {s["smallest_ks"]:.2g} ({s["equalities"]} tests). Middle: seeds in which a claim alarms
when its rows are tested at a family-wise 5 %; right of the line lies 0.5 % of an exact test. Right: coverage, with a
band of 2.6 standard deviations.

## False alarms

- At the shipped level (family-wise 1e-3): {s["shipped_alarms"]} alarms in {seeds} seeds of each problem.
- A claim at a family-wise 5 %: at most {s["most_claim_alarms"]} of {seeds} seeds (10 expected for an exact test with
  continuous statistics; more than 18 has probability {binom.sf(18, 200, LEVEL):.1g}).
- A single row at 5 %: {100 * s["row_alarm_rate"]:.2f} % over {s["rows"]} rows; {s["rows_beyond_18"]} rows alarm more
  than 18 times, {s["rows_beyond_18_by_chance"]:.1f} expected by chance.

Rows "with allowance" compare a chain with the continuum and subtract a bound for the discretisation; bounds are
one-sided and mostly slack: both should alarm less often than 5 %. Of all seeds, {rates(table)} alarm.

| claim | {headings} |
|---|{"---|" * len(table["problems"])}
{chr(10).join(claims)}

The rows that alarm most:

| claim | problem | row | kind | alarms | standard deviation of z |
|---|---|---|---|---|---|
{chr(10).join(rows)}

## Coverage

Share of {seeds} intervals that hold the truth; mean, standard deviation and Kolmogorov-Smirnov p-value of z. The
largest deviation from a stated level is {s["largest_coverage_error"]:.1f} binomial standard deviations.

| estimate | {" | ".join(f"{100 * level:.0f} %" for level in INTERVALS)} | mean z | std z | KS |
|---|{"---|" * (len(INTERVALS) + 3)}
{chr(10).join(covered)}
"""


def main() -> None:
    table = results("calibration")
    draw(table)
    write(FOLDER.parent / "calibration.md", page(table))


if __name__ == "__main__":
    main()
