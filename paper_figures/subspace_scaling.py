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
    with canvas(1, 3, size=(9.6, 2.9)) as (figure, (left, right, rest)):
        for name, mark, color, label in (("optimal", "o", TILT, "$u^*$"), ("g_loss", "s", REFERENCE, "$G_{loss}$")):
            fit = found["fits"][f"{name}_seconds"]
            keys = (f"{name}_{key}" for key in ("seconds", "quarter", "three_quarters"))
            middle, low, high = (np.array(column(rows, key)) for key in keys)
            left.errorbar(dims, middle, [middle - low, high - middle], fmt=mark, ms=4, color=color, label=label)
            rest.semilogx(dims, fit["left"], f"{mark}-", ms=4, lw=0.8, color=color, label=label)
            left.loglog(line, fit["fixed"] + fit["slope"] * line, "-", lw=0.9, color=color)
        left.set(xlabel="dimension $D$", ylabel="CPU seconds a step", title="median and quartiles; lines $a+bD$")
        left.legend()
        fit = found["fits"]["megabytes"]
        right.loglog(dims, column(rows, "megabytes"), "D", ms=4, color="black")
        right.loglog(line, fit["fixed"] + fit["slope"] * line, "-", lw=0.9, color="black")
        right.set(xlabel="dimension $D$", ylabel="MB above the start", title="largest resident set")
        right.set_yticks([20, 50, 100, 200, 500], labels=["20", "50", "100", "200", "500"])
        right.set_yticks([], minor=True)
        rest.semilogx(dims, fit["left"], "D-", ms=4, lw=0.8, color="black", label="memory")
        rest.axhline(0, color="0.6", lw=0.8, ls=":")
        rest.set(xlabel="dimension $D$", ylabel="(line $-$ measured) / measured", title="what the lines leave")
        rest.legend(fontsize=7)
        publish(figure, "subspace-scaling")


if __name__ == "__main__":
    main()
