"""One guided step on data of rank 16: CPU time and memory by dimension, with the linear fits."""

from __future__ import annotations

import numpy as np

from experiments.record import results
from paper_figures.output import column, publish
from sdecontrol.report.style import REFERENCE, TILT, canvas


def main() -> None:
    found = results("subspace_scaling")
    rows = found["rows"]
    dims = np.array(column(rows, "dim"), dtype=float)
    line = np.geomspace(dims[0], dims[-1], 50)
    with canvas(1, 2, size=(7.0, 2.9)) as (figure, (left, right)):
        for name, mark, color, label in (("optimal", "o", TILT, "$u^*$"), ("g_loss", "s", REFERENCE, "$G_{loss}$")):
            fit = found["fits"][f"{name}_seconds"]
            left.loglog(dims, column(rows, f"{name}_seconds"), mark, ms=4, color=color, label=label)
            left.loglog(line, fit["fixed"] + fit["slope"] * line, "-", lw=0.9, color=color)
        left.set(xlabel="dimension $D$", ylabel="CPU seconds a step", title="4 paths, rank 16; lines $a+bD$")
        left.legend()
        fit = found["fits"]["megabytes"]
        right.loglog(dims, column(rows, "megabytes"), "D", ms=4, color="black")
        right.loglog(line, fit["fixed"] + fit["slope"] * line, "-", lw=0.9, color="black")
        right.set(xlabel="dimension $D$", ylabel="MB above the start", title="largest resident set")
        publish(figure, "subspace-scaling")


if __name__ == "__main__":
    main()
