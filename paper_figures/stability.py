"""Prop. 3.7: TV(p_ft, p_hat) under eps/2 for scaled controls, from nu* and from p_noise."""

from __future__ import annotations

from experiments.record import results
from paper_figures.output import column, publish
from sdecontrol.report.style import REFERENCE, TILT, canvas


def main() -> None:
    found = results("stability")
    with canvas(1, 2, size=(6.8, 2.8)) as (figure, axes):
        for ax, schedule in zip(axes, ("VP", "VE")):
            for start, style, label in (("nu_star", "-", r"$\hat\nu=\nu^*$"),
                                        ("p_noise", "--", r"$\hat\nu=p_{\rm noise}$")):  # fmt: skip
                rows = found[schedule][start]
                ax.plot(column(rows, "theta"), column(rows, "half_eps"), style, color=REFERENCE,
                        label=rf"$\bar\varepsilon/2$, {label}")  # fmt: skip
                ax.plot(column(rows, "theta"), column(rows, "tv"), style, color=TILT, label=rf"$d_{{TV}}$, {label}")
            ax.set(xlabel=r"$\theta$ in $\hat u=\theta u^*$", ylabel=r"distance from $p_{\rm ft}$", title=schedule,
                   ylim=(0, 0.75))  # fmt: skip
        axes[0].legend(loc="upper center", ncols=2, fontsize=7)
        publish(figure, "prop-3.7")


if __name__ == "__main__":
    main()
