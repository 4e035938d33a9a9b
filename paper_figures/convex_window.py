"""The best objective from N(0, w^2), with and without a best initial law; and the time at which the value blows up."""

from __future__ import annotations

from experiments.record import results
from paper_figures.output import guide, publish
from sdecontrol.report.style import REFERENCE, TILT, canvas


def main() -> None:
    found = results("convex_window")
    fine, middle = found["fine"], (found["opens"] + found["closes"]) / 2
    with canvas(1, 2, size=(7.0, 2.8)) as (figure, (left, right)):
        for which, color, style in (("fine", REFERENCE, "-"), ("inside", TILT, "--")):
            label = f"$k/\\alpha={found[which]['curvature']:.2f}$"
            left.plot(found["widths"], found["objectives"][which], style, color=color, label=label)
        left.axhline(fine["log_C"], color="0.6", lw=0.8, ls=":")
        left.set(xlabel="standard deviation $w$ of the start", ylabel=r"$\max_u J(u, N(0,w^2))/\alpha$", xlim=(0.5, 6),
                 ylim=(-4, 20))  # fmt: skip
        left.text(5.9, fine["log_C"] + 0.4, r"$\log C$", fontsize=8, ha="right", color="0.35")
        left.legend(loc="upper left")
        times = [(row["curvature"], row["time"]) for row in found["rows"] if "time" in row]
        right.plot([found["closes"], *(k for k, _ in times)], [0.0, *(t for _, t in times)], color="black")
        right.axvspan(found["opens"], found["closes"], color=TILT, alpha=0.15, lw=0)
        guide(right, found["opens"], r"$1/S_p$", vertical=True)
        guide(right, found["closes"], r"$1/P_T$", vertical=True)
        right.text(middle, 0.25, "$v$ finite,\nno best\ninitial law", ha="center", fontsize=8)
        right.text(0.2, 0.25, "all\nexists", ha="center", fontsize=8)
        right.text(1.32, 0.12, "$v$ infinite\nbelow the line", ha="center", fontsize=8)
        right.set(xlabel=r"convexity $k/\alpha$ of the reward", ylabel="generation time of the blow-up", xlim=(0, 1.6),
                  ylim=(0, 0.5))  # fmt: skip
        publish(figure, "convex-window")


if __name__ == "__main__":
    main()
