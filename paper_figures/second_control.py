"""Where the second control ends from a point and from a start that is kept; what the share of the start costs."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from experiments.record import results
from paper_figures.output import column, publish
from sdecontrol.report.style import CYCLE, REFERENCE, SAMPLES, TILT, canvas


def main() -> None:
    found = results("second_control")
    star, half = found["star"], found["half"]
    with canvas(1, 2, size=(7.0, 2.8)) as (figure, (left, right)):
        x = np.linspace(-3, 4, 400)
        bins = np.linspace(-3, 4, 43).tolist()
        left.hist(found["simulated"]["point"]["sample"], bins=bins, density=True, color=SAMPLES, alpha=0.6,
                  label="simulated from the point")  # fmt: skip
        laws = (
            ((0.0, 1.0), r"$p_{\rm noise}$", REFERENCE, ":"),
            ((star["mean"], star["variance"]), r"$\nu^*$", TILT, "-"),
            ((half["mean"], half["variance"]), "from half the variance", CYCLE[1], "--"),
        )
        for law, label, color, style in laws:
            left.plot(x, norm.pdf(x, law[0], np.sqrt(law[1])), style, color=color, label=label)
        left.set(xlabel="$X_1$", ylabel="density", ylim=(0, 0.62))
        left.legend(loc="upper left", fontsize=7)
        rows = found["rows"]
        right.plot(column(rows, "share"), column(rows, "kl"), "o-", color=CYCLE[1], ms=4)
        right.axhline(found["kl_untilted"], color="0.6", lw=0.8, ls=":")
        right.text(0.0, found["kl_untilted"], r"$\mathrm{KL}(p_{\rm noise}\Vert\nu^*)$", va="bottom", fontsize=8)
        right.set(xlabel="share of the variance that the start has", ylabel=r"KL(law of $X_1\,\Vert\,\nu^*$), nats",
                  ylim=(-0.02 * found["kl_untilted"], 1.15 * found["kl_untilted"]))  # fmt: skip
        publish(figure, "eq-3.32")


if __name__ == "__main__":
    main()
