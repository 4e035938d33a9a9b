"""Conditioning as control: laws at each strength, combined scores, two labels, confusion matrices, what data buy."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.record import results
from paper_figures.output import publish
from sdecontrol.report.style import CYCLE, REFERENCE, SAMPLES, TILT, canvas


def strengths(found: dict[str, Any]) -> None:
    with canvas(1, 4, size=(8.2, 2.3)) as (figure, axes):
        for ax, row in zip(axes, found["strengths"]):
            ax.plot(row["nodes"], row["target"], color=TILT, label=r"$p(y|x)^\gamma\,p_{\rm pre}/C$")
            ax.plot(row["centres"], row["density"]["power"], ".", color=REFERENCE, ms=3, label="optimal control")
            scaled = row["density"]["scaled"]
            ax.plot(row["centres"], scaled, color="black", lw=0.9, ls="--", label=r"drift scaled by $\gamma$")
            ax.set(title=rf"$\gamma={row['strength']:g}$", xlim=(-3, 3), xlabel="$x$", ylim=(0, None))
        axes[0].set_ylabel("density")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        publish(figure, "ctrl-strengths")


def scores(found: dict[str, Any]) -> None:
    rows = found["scores"]["rows"]
    column = lambda key: [row[key] for row in rows]  # noqa: E731
    with canvas(1, 2, size=(6.4, 2.5)) as (figure, (left, right)):
        for ax, key, label in ((left, "mean", "mean of the output"), (right, "variance", "variance of the output")):
            ax.plot(column("strength"), column(f"tilt_{key}"), color=TILT, label=r"power $p(y|x)^\gamma\,p_{\rm pre}$")
            ax.plot(column("strength"), column(key), color="black", ls="--", label=r"drift scaled by $\gamma$ (CFG)")
            equal = np.interp(1, column("strength"), column(key))
            ax.plot(1, equal, "o", color=REFERENCE, ms=4, label="$\\gamma=1$: equal")
            ax.set(xlabel=r"strength $\gamma$", ylabel=label)
        right.set_yscale("log")
        left.legend()
        publish(figure, "ctrl-scores")


def labels(found: dict[str, Any]) -> None:
    """Two labels learned apart, and a continuous one: samples on the true target, and what each misses without."""
    with canvas(1, 2, size=(7.6, 2.7)) as (figure, axes):
        for ax, key, other, texts in (
            (axes[0], "two_labels", "first_label_only", ("joint target, true labels", "sampled, labels learned apart",
                                                         "first label only")),
            (axes[1], "continuous", "line", (r"$p(y=2|x)^2\,p_{\rm pre}/C$, $y=x^2+$ noise",
                                             "sampled, regression by a network", "regression by a line")),
        ):  # fmt: skip
            row = found[key]
            ax.plot(row["nodes"], row["target"], color=TILT, label=texts[0])
            ax.plot(row["centres"], row["density"]["sampled"], ".", color=REFERENCE, ms=4, label=texts[1])
            ax.plot(row["nodes"], row[other], color=SAMPLES, ls="--", lw=1, label=texts[2])
            ax.set(xlabel="$x$", ylabel="density", xlim=(-3, 3), ylim=(0, 1.6 * max(row["target"])))
            ax.legend(loc="upper left", fontsize=7)
        publish(figure, "ctrl-labels")


def confusion(found: dict[str, Any]) -> None:
    with canvas(1, 4, size=(7.6, 2.2)) as (figure, axes):
        for ax, (strength, row) in zip(axes, found["confusion"].items()):
            matrix = np.array(row["matrix"])
            ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
            for (i, j), value in np.ndenumerate(matrix):
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
            ax.set(title=rf"$\gamma={strength}$, accuracy {row['accuracy']:.2f}", xlabel="label seen", xticks=range(3),
                   yticks=range(3))  # fmt: skip
        axes[0].set_ylabel("label asked for")
        publish(figure, "ctrl-confusion")


def efficiency(found: dict[str, Any]) -> None:
    rows, split = found["efficiency"], found["error_split"]
    with canvas(1, 3, size=(8.6, 2.9)) as (figure, (one, four, parts)):
        for ax, strength in ((one, "1"), (four, "4")):
            for k, name in enumerate(("quadratic logits", "network", "CFG loss")):
                values = rows[f"{name}, {strength}"]
                label = f"classifier, {name}" if name != "CFG loss" else "CFG loss"
                ax.errorbar(rows["sizes"], [v["value"] for v in values], [v["stderr"] for v in values], color=CYCLE[k],
                            marker="osD"[k], ms=3, lw=1, label=label)  # fmt: skip
            ax.axhline(rows["floor"], color="0.6", lw=0.8, ls=":")
            ax.text(rows["sizes"][0], rows["floor"] * 1.08, "sampling floor", fontsize=7, color="0.35")
            ax.set(xscale="log", yscale="log", xlabel="offline pairs $n$", title=rf"strength $\gamma={strength}$")
        one.set_ylabel("TV to the true target")
        for k, name in enumerate(("even logits", "quadratic logits", "network")):
            values = split[name]["total"]
            means, errors = ([v[key] for v in values] for key in ("value", "stderr"))
            parts.errorbar(split["sizes"], means, errors, color=CYCLE[k + 2], marker="vos"[k], ms=3, lw=1, label=name)
        sizes = np.array(split["sizes"], dtype=float)
        parts.plot(sizes, 3 / sizes, color="0.5", lw=0.8, ls="--", label="slope $-1$")
        parts.set(xscale="log", yscale="log", xlabel="offline pairs $n$", title="the classifier",
                  ylabel=r"E$\,|\hat p-p|_1^2$")  # fmt: skip
        one.legend(fontsize=7, loc="lower left")
        parts.legend(fontsize=7)
        publish(figure, "ctrl-efficiency")


def main() -> None:
    labels(results("ctrl_labels"))
    found = results("ctrl")
    for part in (strengths, scores, confusion, efficiency):
        part(found)


if __name__ == "__main__":
    main()
