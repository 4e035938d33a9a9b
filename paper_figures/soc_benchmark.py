"""Learned controls: the error of every loss against processor time; reward against path KL beside the exact front."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.record import results
from paper_figures.output import publish
from sdecontrol.report.style import CYCLE, TILT, canvas

TITLES = {
    "linear-ou": "linear OU",
    "quadratic-ou-easy": "quadratic OU easy",
    "quadratic-ou-hard": "quadratic OU hard",
    "mixture-2d": "mixture 2-D",
    "mixture-16d": "mixture 16-D",
    "double-well": "double well",
}
MARKERS = "osD^vP*Xh"


def error_against_time(rows: list[dict[str, Any]]) -> None:
    """One panel a problem; dotted are networks, and the horizontal lines are the targets of both kinds."""
    names = sorted({r["loss"] for r in rows})
    looks = {name: (CYCLE[i % len(CYCLE)], MARKERS[i]) for i, name in enumerate(names)}
    with canvas(2, 3, size=(7.4, 5.2)) as (figure, axes):
        for ax, (problem, title) in zip(np.ravel(axes), TITLES.items()):
            for found in rows:
                if found["problem"] != problem or "curve" not in found:
                    continue
                color, marker = looks[found["loss"]]
                network = found["family"] == "mlp"
                style = "dotted" if network else "solid"
                times, errors = ([point[key] for point in found["curve"]] for key in ("cpu", "error"))
                ax.loglog(times, errors, marker=marker, ms=3, lw=1, color=color, ls=style,
                          label=None if network else found["loss"])  # fmt: skip
                ax.axhline(found["target"], color="0.4", lw=0.8, ls=style)
            ax.set(title=title, xlabel="processor time (s)", ylabel="relative error", xlim=(0.4, 150))
        handles = {text: h for ax in np.ravel(axes) for h, text in zip(*ax.get_legend_handles_labels())}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
        publish(figure, "soc-benchmark")


def pareto(found: dict[str, Any]) -> None:
    """Points of learned controls on the exact front."""
    with canvas(1, 1, size=(4.6, 3.2)) as (figure, (ax,)):
        ax.plot(found["kl"], found["reward"], color=TILT, label="exact front")
        for i, loss in enumerate(sorted({point["loss"] for point in found["learned"]})):
            points = [p for p in found["learned"] if p["loss"] == loss]
            kl, reward = ([p[key] for p in points] for key in ("kl", "reward"))
            ax.errorbar(
                [k["value"] for k in kl], [r["value"] for r in reward], xerr=[k["stderr"] for k in kl],
                yerr=[r["stderr"] for r in reward], fmt=MARKERS[i], ms=4, color=CYCLE[i], label=loss,
            )  # fmt: skip
        for p in points:
            ax.annotate(f"$T = {p['temperature']:g}$", (p["kl"]["value"], p["reward"]["value"]), xytext=(6, -10),
                        textcoords="offset points")  # fmt: skip
        ax.set(xlabel=r"$\mathrm{KL}(Q^u\Vert Q)$", ylabel="mean total reward")
        ax.legend()
        publish(figure, "pareto-front")


def main() -> None:
    error_against_time(results("soc_benchmark")["rows"])
    pareto(results("pareto_front"))


if __name__ == "__main__":
    main()
