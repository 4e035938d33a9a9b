"""Where Novikov's condition holds, where the tilt exists, where the value is finite, over the horizon."""

from __future__ import annotations

from experiments.record import results
from paper_figures.output import column, guide, publish
from sdecontrol.report.style import REFERENCE, TILT, canvas


def main() -> None:
    found = results("novikov")
    rows = found["rows"]
    horizons = column(rows, "horizon")
    with canvas(1, 2, size=(7.0, 2.8)) as (figure, (concave, convex)):
        concave.plot(horizons, column(rows, "concave"), "o-", ms=3, color=REFERENCE)
        concave.fill_between(horizons, column(rows, "concave"), 4, color=REFERENCE, alpha=0.12, lw=0)
        concave.text(4.2, 3.2, "Novikov fails,\nthe tilt exists", ha="center", fontsize=8)
        concave.text(4.2, 1.0, "Novikov holds", ha="center", fontsize=8)
        concave.set(xlabel="horizon $T$", ylabel=r"$k/\alpha$", ylim=(0, 4), title="concave reward, $r=-kx^2/2$")
        strength = [-value for value in column(rows, "convex")]
        convex.plot(horizons, strength, "o-", ms=3, color=REFERENCE, label="Novikov")
        convex.plot(horizons, [1.0] * len(horizons), color=TILT, label="tilt exists below")
        convex.plot(horizons, [-value for value in column(rows, "value")], color="black", ls="--",
                    label="value finite below")  # fmt: skip
        guide(convex, found["critical_horizon"], r"$2\pi/(3\sqrt{3})$", vertical=True)
        convex.set(xlabel="horizon $T$", ylabel=r"$|k|/\alpha$", ylim=(0.7, 2.0), title="convex reward, $r=|k|x^2/2$")
        convex.legend(loc="upper right")
        publish(figure, "novikov")


if __name__ == "__main__":
    main()
