"""Prop. 3.2: random laws under both bounds; and bounds against the quantity while the temperature falls."""

from __future__ import annotations

import numpy as np

from experiments.record import results
from paper_figures.output import column, guide, publish
from sdecontrol.report.style import CYCLE, REFERENCE, SAMPLES, TILT, canvas


def main() -> None:
    scatter = results("tilt_bound")["scatter"]
    rows = results("reward_collapse")["two_points"]["rows"]
    with canvas(1, 2, size=(7.0, 3.0)) as (figure, (left, right)):
        left.loglog(scatter["divergence"], scatter["tv"], ".", ms=2, color=SAMPLES, alpha=0.6, label="random laws",
                    rasterized=True)  # fmt: skip
        x = np.geomspace(1e-8, 40, 60)
        left.loglog(x, np.sqrt(x / 2), color=REFERENCE, ls="--", label=r"$\sqrt{D/2}$, (3.3)")
        left.loglog(x, np.sqrt(x) / 2, color=TILT, label=r"$\sqrt{D}/2$, best possible")
        left.set(xlabel=r"$D=(\mathbb{E}_{\rm ft}r-\mathbb{E}_{\rm pre}r)/\alpha$",
                 ylabel=r"$d_{TV}(p_{\rm ft},p_{\rm pre})$", xlim=(1e-8, 60), ylim=(1e-5, 8))  # fmt: skip
        left.legend(loc="upper left", markerscale=4)
        temperature = column(rows, "temperature")
        right.loglog(temperature, column(rows, "root_bound"), color=CYCLE[1], ls="-.",
                     label=r"$\sqrt{M/\alpha}$, (3.6)")  # fmt: skip
        right.loglog(temperature, column(rows, "root_half_divergence"), color=REFERENCE, ls="--", label=r"$\sqrt{D/2}$")
        right.loglog(temperature, column(rows, "tanh_bound"), color=CYCLE[3], ls=":", label=r"$\tanh(R/4)$")
        right.loglog(temperature, column(rows, "tv"), color=TILT, label=r"$d_{TV}$ itself")
        guide(right, 1.0, "empty above")
        right.set(xlabel=r"temperature $\alpha$ (here $M=1$)", ylabel="distance and bounds", ylim=(0.08, 6))
        right.set_yticks([0.1, 0.5, 1, 2, 5], ["0.1", "0.5", "1", "2", "5"])
        right.legend(loc="lower left")
        publish(figure, "prop-3.2")


if __name__ == "__main__":
    main()
