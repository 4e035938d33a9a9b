"""Laws of guidance on handwritten digits: distance from the exact tilt, samples beside it, and a trained score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.record import results
from paper_figures.output import publish
from sdecontrol.report.style import CYCLE, REFERENCE, TILT, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXACT = ("tilt", "exact")
SAMPLERS = ("fk", "twisted", "svdd", "best-of-n", "rejection")
COLORS = {"optimum": TILT, "guidance": REFERENCE, "samplers": CYCLE[3]}
STRIP = "bold-3"  # the task whose samples are shown


def kind(name: str) -> str:
    return "optimum" if name in EXACT else "samplers" if name in SAMPLERS else "guidance"


def distances(found: dict[str, Any]) -> None:
    """A panel a task: the laws by distance of their moments to the exact tilt."""
    tasks = list(found.values())
    with canvas(1, len(tasks), size=(2.6 * len(tasks), 3.6)) as (figure, axes):
        for ax, task in zip(axes, tasks):
            _ranking(ax, task)
        axes[0].set_ylabel("nearest first", fontsize=8)
        label = r"$W_2$ of the first two moments to the exact tilt (grey: up to twice the optimum's)"
        figure.supxlabel(label, fontsize=9)
        handles = [axes[0].plot([], [], "o", ms=4.5, color=color)[0] for color in COLORS.values()]
        figure.legend(handles, ["optimum", "laws of guidance", "samplers"], loc="outside upper center", ncols=3)
        publish(figure, "digits")


def _ranking(ax: Axes, task: dict[str, Any]) -> None:
    names = task["rank"]
    values = np.array([task["laws"][name]["distance"]["value"] for name in names])
    errors = [task["laws"][name]["distance"]["stderr"] for name in names]
    ax.axvspan(0, 2 * max(v for name, v in zip(names, values) if name in EXACT), color="0.92", lw=0)
    for place, (name, value, error) in enumerate(zip(names, values, errors)):
        ax.plot([values.min() / 3, value], [place, place], color="0.8", lw=0.8, zorder=0)
        ax.errorbar(value, place, xerr=float(error), fmt="o", ms=4.5, color=COLORS[kind(name)])
    ax.set(yticks=range(len(names)), yticklabels=names, title=task["title"])
    _decades(ax)
    ax.set_xlim(values.min() / 1.6, values.max() * 1.6)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, labelsize=7)
    ax.tick_params(axis="x", labelsize=7)


def _decades(ax: Axes) -> None:
    """A logarithmic axis of a decade or two, with ticks at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")


def samples(task: dict[str, Any]) -> None:
    """A row of samples a law, the exact tilt first."""
    names = task["rank"]
    with canvas(len(names), 1, size=(5.4, 0.45 * len(names))) as (figure, axes):
        for ax, name in zip(axes, names):
            images = [np.frombuffer(bytes.fromhex(text), np.uint8).reshape(8, 8) for text in task["images"][name]]
            ax.imshow(np.concatenate(images, axis=1), cmap="gray_r", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
            ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8,
                          color=TILT if name in EXACT else "black")  # fmt: skip
            for spine in ax.spines.values():
                spine.set_visible(False)
        figure.set_layout_engine("constrained", h_pad=0.01, w_pad=0.02, hspace=0.0)
        publish(figure, "digits-samples")


def trained(exact: dict[str, Any], network: dict[str, Any]) -> None:
    """A panel a task: every law under the exact score and under the network."""
    tasks = [name for name in exact if name in network]
    with canvas(1, len(tasks), size=(2.6 * len(tasks), 3.6)) as (figure, axes):
        for ax, task in zip(axes, tasks):
            names = [name for name in exact[task]["rank"] if name in network[task]["laws"]]
            for place, name in enumerate(names):
                runs = [run[task]["laws"][name]["distance"] for run in (exact, network)]
                ax.plot([run["value"] for run in runs], [place, place], color="0.8", lw=0.8, zorder=0)
                for run, color in zip(runs, (REFERENCE, CYCLE[3])):
                    ax.errorbar(run["value"], place, xerr=run["stderr"], fmt="o", ms=4.5, color=color)
            _decades(ax)
            ax.set(yticks=range(len(names)), yticklabels=names, title=exact[task]["title"])
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.tick_params(axis="y", length=0, labelsize=7)
            ax.tick_params(axis="x", labelsize=7)
        axes[0].set_ylabel("nearest first under the exact score", fontsize=8)
        figure.supxlabel(r"$W_2$ of the first two moments to the exact tilt", fontsize=9)
        handles = [axes[0].plot([], [], "o", ms=4.5, color=color)[0] for color in (REFERENCE, CYCLE[3])]
        sizes = [run[tasks[0]]["n"] for run in (exact, network)]
        texts = [f"{kind} score, {n} samples a law" for kind, n in zip(("exact", "trained"), sizes)]
        figure.legend(handles, texts, loc="outside upper center", ncols=2)
        publish(figure, "digits-network")


def main() -> None:
    found = results("digits")
    distances(found["compare"])
    if "images" in found["compare"][STRIP]:  # else the picture is the one that `sdecontrol compare` wrote
        samples(found["compare"][STRIP])
    if "network" in found:
        trained(found["compare"], found["network"])


if __name__ == "__main__":
    main()
