"""(3.29): gradients by the weight on the noise, of a smooth reward and an indicator; its deviation by psi."""

from __future__ import annotations

from experiments.record import results
from paper_figures.output import publish
from sdecontrol.report.style import CYCLE, REFERENCE, TILT, canvas

NAMES = {"constant": r"$\psi$ constant", "amplitude": r"$\psi\propto\sigma^2$", "best": r"$\psi\propto\sigma^2/Z^2$"}
MARKS = {"constant": "o", "amplitude": "s", "best": "^"}


def main() -> None:
    found = results("bismut")
    x, left = found["points"], found["left"]
    with canvas(1, 3, size=(7.4, 2.9)) as (figure, (first, second, third)):
        for ax, name, title in ((first, "smooth", "$r=x-x^2/4$"), (second, "indicator", "$r=3\\cdot 1\\{x>1\\}$")):
            row = found[name]
            ax.plot(x, row["exact"], color=TILT, label="closed form")
            ax.errorbar(x, row["bismut"], yerr=[2 * e for e in row["bismut_stderr"]], fmt="o", ms=4, mfc="none",
                        color="black", label="weight on the noise")  # fmt: skip
            ax.plot(x, row["pathwise"], "x", ms=5, color=REFERENCE, label="along paths")
            ax.set(xlabel="$y$", title=title)
        first.set_ylabel(rf"$\nabla v(t,y)$, $t={found['time']:g}$")
        first.legend(fontsize=7)
        for k, name in enumerate(NAMES):
            third.loglog(left, found["indicator"]["deviation"][name], MARKS[name] + "-", ms=3, color=CYCLE[k],
                         label=NAMES[name])  # fmt: skip
        third.loglog(left, found["smooth"]["deviation"]["pathwise"], "x--", ms=4, color="black",
                     label="smooth $r$, along paths")  # fmt: skip
        third.set(xlabel="time left, $T-t$", ylabel="deviation of one sample", title="indicator, $y=1$")
        third.set_ylim(bottom=2e-6)
        third.legend(fontsize=7, loc="lower right")
        publish(figure, "eq-3.29")


if __name__ == "__main__":
    main()
