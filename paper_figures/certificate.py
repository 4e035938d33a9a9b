"""The certificate of 500 paths under u* and 0.9 u*; what certificate and objective say over 100 seeds."""

from __future__ import annotations

import numpy as np

from experiments.record import results
from paper_figures.output import guide, publish
from sdecontrol.report.style import CYCLE, REFERENCE, TILT, canvas


def main() -> None:
    found = results("certificate")
    with canvas(1, 2, size=(7.0, 2.8)) as (figure, (left, right)):
        bins = np.linspace(-0.3, 0.3, 61).tolist()
        left.hist(found["residuals"]["exact"], bins=bins, color=TILT, alpha=0.55, label="$u^*$")
        left.hist(found["residuals"]["scaled"], bins=bins, color=REFERENCE, histtype="step", lw=1.4,
                  label="$0.9\\,u^*$")  # fmt: skip
        left.set(xlabel=r"certificate $r(Y_T)/\alpha-\log\,dQ^{u,\nu}/dQ-\log Z$", ylabel="paths")
        left.legend()
        bins = np.linspace(-4, 14, 55).tolist()
        for name, label, color, fill in (("objective", "objective", CYCLE[3], True),
                                         ("objective_paired", "objective, same noise", "black", False),
                                         ("certificate", "certificate", REFERENCE, True)):  # fmt: skip
            kind = {"alpha": 0.6} if fill else {"histtype": "step", "lw": 1.2}
            right.hist(np.clip(found["z"][name], -4, 14), bins=bins, color=color, label=label, **kind)
        guide(right, 3.0, "3", vertical=True)
        right.set(xlabel="standard errors between $u^*$ and $0.9\\,u^*$", ylabel="seeds")
        right.legend(loc="upper right")
        publish(figure, "certificate")


if __name__ == "__main__":
    main()
