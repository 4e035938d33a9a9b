"""Each law of guidance on twenty random Gaussians: error of the terminal mean and KL to the exact tilt."""

from __future__ import annotations

import numpy as np

from experiments.record import results
from paper_figures.output import publish
from sdecontrol.report.style import CYCLE, REFERENCE, TILT, canvas


def main() -> None:
    found = results("guidance_table")
    names = sorted(found["rows"], key=lambda name: found["median"][name]["mean"])
    with canvas(1, 2, size=(7.4, 2.9)) as (figure, (left, right)):
        for ax, index, label, color in ((left, 0, "error of the terminal mean,\nposterior deviations", REFERENCE),
                                        (right, 1, "KL(terminal law || exact tilt), nats", CYCLE[1])):  # fmt: skip
            for row, name in enumerate(names):
                values = np.array(found["rows"][name])[:, index]
                ax.plot(values, np.full(len(values), row), "|", color=color, ms=8, alpha=0.7)
                ax.plot(np.median(values), row, "D", color=TILT, ms=4)
            ax.set(xscale="log", xlabel=label, yticks=range(len(names)), yticklabels=names if ax is left else [])
            ax.invert_yaxis()
            ax.grid(axis="x", lw=0.4, color="0.9")
        publish(figure, "guidance")


if __name__ == "__main__":
    main()
