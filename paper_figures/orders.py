"""Errors of the chains' covariance and path KL against the number of steps."""

from __future__ import annotations

from experiments.record import results
from paper_figures.output import publish
from sdecontrol.report.style import CYCLE, TILT, canvas

SHOWN = {"EulerMaruyama": "o", "Exponential": "s", "Ancestral small": "^", "Ancestral large": "D", "SecondOrder": "v",
         "ExactTransition": "x"}  # fmt: skip


def main() -> None:
    found = results("orders")
    steps, tables = found["steps"], found["tables"]["1-D VP"]
    with canvas(1, 2, size=(7.0, 3.2)) as (figure, axes):
        titles = {"covariance": "variance, no control", "path KL": "path KL under $u^*$"}
        for ax, (quantity, title) in zip(axes, titles.items()):
            for (name, marker), color in zip(SHOWN.items(), (*CYCLE[:5], TILT)):
                errors = [abs(e) for e in tables[name][quantity]["errors"]]
                if max(errors) > 1e-12:
                    ax.loglog(steps, errors, marker + "-", ms=4, mfc="none", color=color, label=name)
                else:
                    ax.plot([], [], marker + "-", ms=4, mfc="none", color=color, label=f"{name} (no error here)")
            ax.set(xlabel="steps", ylabel="error", title=title)
            ax.set_xticks(steps, [str(n) for n in steps])
            ax.minorticks_off()
        axes[0].legend(fontsize=7, loc="lower left")
        publish(figure, "orders")


if __name__ == "__main__":
    main()
