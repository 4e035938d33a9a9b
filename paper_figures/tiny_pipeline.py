"""Figures of experiments/tiny_pipeline.py: what is drawn, reward against path KL, laws and images side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from experiments.record import results
from experiments.tiny_pipeline import ROUTES
from paper_figures.output import publish
from sdecontrol.backends.tiny.images import Digits, split
from sdecontrol.backends.tiny.picture import pictured
from sdecontrol.report.style import CYCLE, SAMPLES, TILT, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTROLS = {"none": ("o", SAMPLES), "plug-in": ("s", CYCLE[0]), "dps:0.3": ("D", CYCLE[1]), "cfg": ("^", CYCLE[2]),
            "classifier": ("p", CYCLE[5]), "gloss": ("<", "0.45")}  # fmt: skip
SAMPLERS = {"fk": ("v", CYCLE[3]), "twisted": ("P", CYCLE[4]), "svdd": ("X", "#000000"), "best-of-n": ("*", "#8B4513")}
NAMES = {
    "brightness": "mean brightness", "digit:8": "log p(8 | image)", "jpeg-incompressibility": "JPEG size, kB",
}  # fmt: skip


def _laws(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {reward: found[f"laws {reward}"] for reward in NAMES}


def front(found: dict[str, Any]) -> None:
    """A panel a reward: the front by weighed paths, controls at their path KL, samplers at the tilt's."""
    with canvas(1, 3, size=(10.0, 3.4)) as (figure, axes):
        for ax, (reward, trials) in zip(axes, _laws(found).items()):
            _panel(ax, trials, found["fronts"][reward])
            ax.set(title=NAMES[reward], xlabel=r"path $\mathrm{KL}(Q^u\Vert Q)$, nats")
            ax.set_xscale("symlog", linthresh=0.1)
            ax.set_xlim(left=-0.02)
        axes[0].set_ylabel("mean reward")
        handles: dict[str, Any] = {}
        for ax in axes:
            drawn, labels = ax.get_legend_handles_labels()
            handles |= dict(zip(labels, drawn))
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=9, fontsize=8)
        publish(figure, "tiny-pipeline-front")


def _panel(ax: Axes, trials: list[dict[str, Any]], fronts: dict[str, Any]) -> None:
    curve = sorted((p["kl"], p["reward"]) for p in fronts["front"])
    ax.plot(*zip(*curve), color=TILT, lw=1.2, label="exact front")
    for trial, tilt in zip(trials, fronts["tilts"]):
        ax.errorbar(tilt["kl"], tilt["reward"], xerr=tilt["kl_stderr"], yerr=tilt["reward_stderr"], fmt="|", ms=12,
                    color=TILT, elinewidth=0.8, label="tilt at the four temperatures")  # fmt: skip
        for law, (marker, colour) in CONTROLS.items():
            if law in trial["laws"]:
                score = trial["laws"][law]["score"]
                _point(ax, score["kl"], score["reward"], marker, colour, law)
        for law, (marker, colour) in SAMPLERS.items():
            if law in trial["laws"]:
                at = {"value": tilt["kl"], "stderr": 0.0}
                _point(ax, at, trial["laws"][law]["score"]["reward"], marker, colour, law)


def _point(ax: Axes, x: dict[str, float], y: dict[str, float], marker: str, colour: str, law: str) -> None:
    ax.errorbar(x["value"], y["value"], xerr=x["stderr"], yerr=y["stderr"], fmt=marker, ms=5, color=colour,
                elinewidth=0.8, label=law)  # fmt: skip


def drawn(found: dict[str, Any]) -> None:
    """Real digits beside those of the stock pipeline at each setting."""
    real, _ = split()
    shown = {"real digits": real}
    for name, entry in found["quality"].items():
        if "pixels" in entry:
            pixels = torch.tensor(entry["pixels"]).repeat_interleave(4, 1).repeat_interleave(4, 2)  # `ink` undoes it
            images = (2 * pixels - 1)[:, None].expand(-1, 3, -1, -1)
            shown[f"{name}: {100 * entry['accuracy']['value']:.1f} %"] = Digits(images, torch.arange(len(images)) % 10)
    with pictured(shown) as figure:
        publish(figure, "tiny-pipeline-drawn")


def images(found: dict[str, Any]) -> None:
    """The middle temperature of each reward: eight images a law."""
    chosen = {reward: trials[len(trials) // 2] for reward, trials in _laws(found).items()}
    laws = [law for law in (*CONTROLS, *SAMPLERS) if any(law in trial["images"] for trial in chosen.values())]
    with canvas(len(laws), 3, size=(9.6, 0.46 * len(laws) + 0.4)) as (figure, axes):
        grid = np.array(axes).reshape(len(laws), 3)
        for column, (reward, trial) in enumerate(chosen.items()):
            grid[0, column].set_title(f"{NAMES[reward]}, temperature {trial['temperature']:g}")
            for ax, law in zip(grid[:, column], laws):
                ax.set(xticks=[], yticks=[])
                for spine in ax.spines.values():
                    spine.set_visible(False)
                if column == 0:
                    ax.set_ylabel(law, rotation=0, ha="right", va="center", fontsize=8)
                if law in trial["images"]:
                    strip = np.concatenate([np.array(picture) for picture in trial["images"][law]], axis=1)
                    ax.set_xlim(-0.5, 8 * strip.shape[0] - 0.5)
                    ax.imshow(strip, cmap="gray_r", vmin=0, vmax=1)
                else:
                    ax.text(0.5, 0.5, "not defined", ha="center", va="center", transform=ax.transAxes,
                            fontsize=7, color="0.4")  # fmt: skip
        publish(figure, "tiny-pipeline-images")


def routes(found: dict[str, Any]) -> None:
    """P(r <= level) under the tilt by two routes, and log Z by three."""
    entries = [found[f"routes {reward}"] for reward in ROUTES]
    with canvas(1, 2 * len(entries), size=(10.0, 2.8)) as (figure, axes):
        for i, entry in enumerate(entries):
            left, right = axes[2 * i], axes[2 * i + 1]
            for name, colour in (("plain", CYCLE[0]), ("twisted", TILT)):
                values = [e["value"] for e in entry[name]]
                left.errorbar(entry["levels"], values, yerr=[2 * e["stderr"] for e in entry[name]], fmt="o-", ms=3,
                              color=colour, capsize=2, label={"plain": "weighed paths", "twisted": "twisted"}[name])
            left.set(xlabel=NAMES[entry["reward"]], ylabel="distribution under the tilt", ylim=(0, 1))
            left.legend()
            names = list(entry["log_z"])
            for place, name in enumerate(names):
                e = entry["log_z"][name]
                right.errorbar(e["value"], place, xerr=2 * e["stderr"], fmt="o", color=CYCLE[place], capsize=2)
            right.set(yticks=range(len(names)), yticklabels=names, xlabel=r"$\log Z$, two standard errors",
                      ylim=(-0.6, len(names) - 0.4))  # fmt: skip
        publish(figure, "tiny-pipeline-routes")


def main() -> None:
    found = results("tiny_pipeline")
    drawn(found)
    front(found)
    images(found)
    routes(found)


if __name__ == "__main__":
    main()
