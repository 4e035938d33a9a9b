"""The weights of four divergences as functions of the reward."""

from __future__ import annotations

from experiments.record import results
from paper_figures.output import publish
from sdecontrol.report.style import CYCLE, TILT, canvas

STYLES = {
    "KL": (TILT, "-"),
    "forward KL": (CYCLE[0], "--"),
    "gamma 0.5": (CYCLE[1], "-."),
    "chi-square": ("black", ":"),
}


def main() -> None:
    found = results("f_divergence")
    with canvas(1, 1, size=(4.4, 2.9)) as (figure, (ax,)):
        for name, (color, style) in STYLES.items():
            ax.plot(found["levels"], found["rows"][name]["weights"], style, color=color, label=name)
        ax.set(xlabel="reward $r$, between 0 and 1", ylabel=r"$w(r)=dp/dp_{\rm pre}$")
        ax.legend()
        publish(figure, "f-divergence")


if __name__ == "__main__":
    main()
