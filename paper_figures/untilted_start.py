"""What keeping p_noise costs against the memory rho: VP and VE on one curve."""

from __future__ import annotations

from experiments.record import results
from paper_figures.output import column, publish
from sdecontrol.report.style import REFERENCE, TILT, canvas


def main() -> None:
    found = results("untilted_start")
    with canvas(1, 2, size=(6.8, 2.9)) as (figure, axes):
        for ax, key, label in zip(axes, ("cost", "tv"), (r"lost objective $/\,\alpha$", r"$d_{TV}$ from $p_{\rm ft}$")):
            for name, color in (("linear", REFERENCE), ("quadratic", TILT)):
                vp, ve = found[name]["VP"], found[name]["VE"]
                ax.loglog(column(vp, "rho"), column(vp, key), "-", color=color, label=f"{name} reward, VP")
                ax.loglog(column(ve, "rho"), column(ve, key), "o", ms=4, mfc="none", color=color,
                          label=f"{name} reward, VE")  # fmt: skip
            x = [0.02, 0.6]
            ax.loglog(x, [0.15 * rho**2 / 2 for rho in x], ":", color="0.5", label=r"slope 2")
            ax.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
            ax.set_xticks([], minor=True)
            ax.set(xlabel=r"$\rho=\mathrm{corr}(Y_0,Y_T)$", ylabel=label)
        axes[0].legend(loc="upper left")
        publish(figure, "untilted-start")


if __name__ == "__main__":
    main()
