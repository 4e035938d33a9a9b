"""Lemma 3.1: truncated tilts approach log C while their reward and their KL grow without bound."""

from __future__ import annotations

from experiments.record import results
from paper_figures.output import column, publish
from sdecontrol.report.style import CYCLE, TILT, canvas


def main() -> None:
    found = results("lemma_integrability")["not_attained"]
    rows = found["rows"]
    cuts = column(rows, "cut")
    with canvas(1, 2, size=(6.6, 2.7)) as (figure, (left, right)):
        left.semilogx(cuts, column(rows, "objective"), "o-", ms=3, color=TILT)
        left.axhline(found["log_C"], color="0.6", lw=0.8, ls=":")
        left.text(1.0, found["log_C"], r"$\log C$", va="bottom", fontsize=8, color="0.35")
        left.set(xlabel="truncation $n$ of the tilt", ylabel=r"objective $/\,\alpha$", ylim=(0, 1.02))
        for key, label, color, marker in (("reward", r"$\mathbb{E}\,r/\alpha$", CYCLE[0], "o"),
                                          ("kl", r"$\mathrm{KL}(p_n\Vert p_{\rm pre})$", CYCLE[3], "s")):  # fmt: skip
            right.semilogx(cuts, column(rows, key), marker + "-", ms=3, color=color, label=label)
        right.set(xlabel="truncation $n$ of the tilt", ylabel="nats", ylim=(0, None))
        right.legend()
        publish(figure, "lemma-3.1")


if __name__ == "__main__":
    main()
