"""(3.28): what the swap costs, by curvature for Gaussian data and by the distance of two modes for a linear reward."""

from __future__ import annotations

from experiments.record import results
from paper_figures.output import column, publish
from sdecontrol.report.style import CYCLE, REFERENCE, TILT, canvas


def main() -> None:
    found = results("swap")
    rows, mixed = found["gaussian"], found["mixture"]
    with canvas(1, 2, size=(7.0, 2.9)) as (figure, (left, right)):
        left.plot(column(rows, "curvature"), column(rows, "loss"), "o-", ms=3, color=REFERENCE,
                  label=r"lost objective $/\,\alpha$")  # fmt: skip
        left.plot(column(rows, "curvature"), column(rows, "tv"), "s--", ms=3, color=CYCLE[3],
                  label=r"$d_{TV}$ from $p_{\rm ft}$")  # fmt: skip
        left.set(xlabel=r"curvature $k/\alpha$", ylabel=r"loss of $u^{lin}$", title="Gaussian data, $r=x-kx^2/2$")
        left.legend()
        distances = column(mixed, "distance")
        right.plot(distances, column(mixed, "tilt"), color=TILT, label="tilt")
        for name, marker, color, label in (("exact", "o", "black", "$u^*$"),
                                           ("swapped", "s", REFERENCE, r"$u^{lin}$")):  # fmt: skip
            right.errorbar(distances, column(mixed, name), yerr=[2 * e for e in column(mixed, f"{name}_stderr")],
                           fmt=marker, ms=4, mfc="none", color=color, label=label)  # fmt: skip
        right.set(xlabel="distance of the modes", ylabel="mass beyond the middle", title="two Gaussians, $r=x$")
        right.legend()
        publish(figure, "eq-3.28")


if __name__ == "__main__":
    main()
