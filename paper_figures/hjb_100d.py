"""The 100-dimensional HJB equation: z-scores over seeds against the normal law, and error against seconds."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from experiments.record import results
from paper_figures.output import publish
from sdecontrol.report.style import CYCLE, canvas

TITLES = {"round_form": r"$|x|^2$", "turned_form": "rotated"}


def main() -> None:
    found = results("hjb_100d")
    values = [row for name, row in found.items() if name.startswith("value")]
    with canvas(1, 2, size=(7.2, 3.0)) as (figure, (left, right)):
        grid = np.linspace(-3.2, 3.2, 200)
        left.plot(grid, norm.cdf(grid), color="black", lw=1.2, label="standard normal")
        rows = [row for row in values if row["coverage"]]
        for k, row in enumerate(rows):
            z = np.sort(row["coverage"]["z"])
            label = f"{TITLES[row['form']]}, strength {row['strength']:g}"
            left.step(z, (np.arange(len(z)) + 0.5) / len(z), where="mid", lw=1, color=CYCLE[k % len(CYCLE)],
                      ls="-" if row["form"] == "round_form" else "--", label=label)  # fmt: skip
        left.set(xlabel="z-score", ylabel="share of the seeds", xlim=(-3.2, 3.2))
        left.legend(fontsize=6.5)
        for marker, form in (("o", "round_form"), ("s", "turned_form")):
            for row in (row for row in values if row["form"] == form):
                k = [1.0, 10.0, 50.0].index(row["strength"])
                right.loglog(row["cpu_seconds"], row["relative_stderr"], marker, ms=6, color=CYCLE[k],
                             mfc="none" if row["dim"] > 100 else CYCLE[k])  # fmt: skip
                name = f"{row['dim']}-D, " if row["dim"] > 100 else ""
                turned = ["center", "right", "left"][k]
                shift, side = ((0, 6), turned) if form == "turned_form" else ((6, -2), "left")
                right.annotate(f"{name}{row['strength']:g}", (row["cpu_seconds"], row["relative_stderr"]), ha=side,
                               textcoords="offset points", xytext=shift, fontsize=7)  # fmt: skip
        published = found["published"]
        right.loglog(published["seconds"], published["relative_error"], "*", ms=9, color="0.4")
        right.annotate("deep BSDE, error", (published["seconds"], published["relative_error"]), ha="right",
                       textcoords="offset points", xytext=(-6, -2), fontsize=7)  # fmt: skip
        for marker, form in (("o", "round_form"), ("s", "turned_form")):
            right.plot([], [], marker, color="0.4", label=TITLES[form])
        right.legend(fontsize=7, loc="lower right")
        right.set(xlabel="seconds of the processor", ylabel="relative standard error of $u(0,\\cdot)$")
        right.set_xlim(0.05, 1500)
        publish(figure, "hjb-100d")


if __name__ == "__main__":
    main()
