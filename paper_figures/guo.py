"""Guo et al.: what stays in the span, where rounds end and how fast, and what refits change; one figure a statement."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.record import results
from paper_figures.output import column, guide, publish
from sdecontrol.report.style import CYCLE, REFERENCE, TILT, canvas

MARKS = ("o", "s", "^", "D")


def label_score(found: dict[str, Any]) -> None:
    """Lemma 1: how much too large the code's weight is, and what naive guidance misses, on an uneven Gaussian."""
    rows = found["weights"]
    with canvas(1, 1, size=(4.6, 3.0)) as (figure, (ax,)):
        for name, mark, color, label in (("exact", "o", TILT, r"exact $\sigma_y^2$"),
                                         ("code", "s", REFERENCE, "weight of the authors' code"),
                                         ("naive", "^", CYCLE[3], "naive gradient")):  # fmt: skip
            ax.loglog(column(rows, "s"), column(rows, name), f"{mark}-", ms=4, color=color, label=label)
        ax.set(xlabel="noise level $s$", ylabel=r"relative error of $\nabla\log p_t(y\mid x_t)$",
               title="Gaussian data, variances from 0.1 to 3")  # fmt: skip
        ax.legend(loc="center left")
        publish(figure, "guo-lemma-1")


def membership(found: dict[str, Any]) -> None:
    """Theorem 1: normal parts by noise level, the vanishing of a bounded push, off/on ratios by round."""
    with canvas(1, 3, size=(9.6, 3.0)) as (figure, (left, middle, right)):
        rows = found["membership"]
        for name, mark, color, label in (("optimal, exact", "o", TILT, "$u^*$"),
                                         ("g_loss, exact", "s", CYCLE[2], r"$G_{loss}$, exact score"),
                                         ("g_loss, imperfect", "D", CYCLE[1], r"$G_{loss}$, imperfect score"),
                                         ("naive, exact", "^", REFERENCE, "naive $G$")):  # fmt: skip
            left.loglog(column(rows, "s"), column(rows, name), f"{mark}-", ms=3, color=color, label=label)
        left.axhline(1e-10, color="0.6", lw=0.8, ls=":")
        left.set(xlabel="noise level $s$", ylabel="|normal part| / |guidance|", title="one step")
        left.legend(fontsize=7, loc="center left")
        vanishing = found["vanishing"]["rows"]
        middle.loglog(column(vanishing, "s"), column(vanishing, "theory"), "-", color=TILT,
                      label=r"$2\sinh\frac{s}{2}\int_s^T\frac{dr}{2\sinh(r/2)}$")  # fmt: skip
        middle.loglog(column(vanishing, "s"), column(vanishing, "chain"), "o", ms=4, mfc="none", color="black",
                      label="chain, 400 steps")  # fmt: skip
        middle.set(xlabel="noise level $s$ of the end", ylabel="normal mean under a push of 1",
                   title="exact score: it vanishes")  # fmt: skip
        middle.legend(fontsize=7)
        for name, mark, color, label in (("naive, imperfect", "^-", REFERENCE, "naive, imperfect score"),
                                         ("g_loss, imperfect", "D-", CYCLE[1], r"$G_{loss}$, imperfect score"),
                                         ("naive, exact", "^--", REFERENCE, "naive, exact: 4e-16"),
                                         ("g_loss, exact", "s--", CYCLE[2], r"$G_{loss}$, exact: 4e-16")):  # fmt: skip
            right.plot(found["support"][name]["off"], mark, ms=3, color=color, label=label)
        right.set(xlabel="round", ylabel="off/on-support ratio", title="Algorithm 1, $f_1$, ratio 9")
        right.set_ylim(-0.02, 0.85)
        right.legend(fontsize=7, loc="upper left")
        publish(figure, "guo-theorem-1")


def fixed_point(found: dict[str, Any]) -> None:
    """Theorem 2: distance to (13) by round, the theory's lines drawn."""
    with canvas(1, 2, size=(7.4, 3.0)) as (figure, axes):
        for ax, (name, title) in zip(axes, (("f1", "$f_1=10-(\\theta\\cdot x-3)^2$"), ("f2", "$f_2=5-|x-b|/2$"))):
            for i, row in enumerate(found["contraction"][name]):
                gaps = np.array(row["gaps"][:25])
                k = np.arange(len(gaps))
                shown = gaps > 1e-12 * gaps[0]
                last = int(np.flatnonzero(shown)[-1])
                ax.semilogy(k[shown], gaps[shown], MARKS[i], ms=3.5, mfc="none", color=CYCLE[i],
                            label=f"$\\lambda={row['share']:g}\\,L$")  # fmt: skip
                anchor = min(last, 8)
                ax.semilogy(k, gaps[anchor] * row["theory"] ** (k - anchor), "-", lw=0.9, color=CYCLE[i])
            ax.set(xlabel="round", ylabel=r"$|m_k-x^*_{A,\lambda}|$", title=title)
            ax.set_ylim(bottom=1e-12)
            ax.legend(fontsize=7)
        axes[0].text(0.97, 0.55, r"lines: $(L/\lambda)^k$", transform=axes[0].transAxes, ha="right", fontsize=8)
        publish(figure, "guo-theorem-2")


def refits(found: dict[str, Any]) -> None:
    """Theorem 3: gaps by round and weights; batches of both algorithms."""
    with canvas(1, 2, size=(7.4, 3.0)) as (figure, (left, right)):
        second = found["second"]["f1"]
        for name, color, label in (("algorithm 1", REFERENCE, "no refit (Algorithm 1)"),
                                   ("fixed step, last", CYCLE[4], r"last batch, $\eta$ fixed"),
                                   ("a fifth", CYCLE[5], "a fifth on the data"),
                                   ("uniform", CYCLE[3], "uniform"),
                                   ("anchored", CYCLE[2], r"$1/(k+1)$ on the data"),
                                   ("last", TILT, "last batch")):  # fmt: skip
            gaps = np.array(second[name])
            k = np.arange(len(gaps))
            keep = (gaps > 1e-10) & (k > 0)
            left.loglog(k[keep], gaps[keep], "-", color=color, label=label)
        k = np.array([20.0, 200.0])
        left.loglog(k, 0.4 * second["anchored"][20] * (k / 20) ** -2, ":", color="0.3")
        left.text(24, 0.1 * second["anchored"][24], "$k^{-2}$", fontsize=8)
        left.set(xlabel="round", ylabel=r"$\max_{span(A)}f_1-f_1(m_k)$", title="infinite batches", ylim=(1e-7, 20))
        left.legend(fontsize=6.5, loc="lower right")
        for name, mark, color in (("algorithm 1", "o", REFERENCE), ("algorithm 2", "s", TILT)):
            row = found["climbs"][name]
            right.plot(row["mean_value"], mark, ms=3, mfc="none", color=color, label=f"{name}, 512 samples a round")
        right.plot(10 - np.array(second["algorithm 1"][:26]), "-", lw=0.9, color=REFERENCE)
        right.plot(10 - np.array(second["anchored"][:26]), "-", lw=0.9, color=TILT)
        guide(right, second["maximum"], "maximum on the span")
        guide(right, second["limit_of_algorithm_1"], "")
        right.text(24.5, second["limit_of_algorithm_1"] - 0.3, r"$f_1(x^*_{A,\lambda})$, (13)", fontsize=8, ha="right",
                   va="top", color="0.35")  # fmt: skip
        right.set(xlabel="round", ylabel="$f_1$ at the batch's mean", title="batches and their limits")
        right.legend(fontsize=7, loc="lower right")
        publish(figure, "guo-theorem-3")


def sphere(found: dict[str, Any]) -> None:
    """theta . x on a unit sphere, by round."""
    with canvas(1, 1, size=(4.4, 3.0)) as (figure, (ax,)):
        for name, mark, color, label in (("g_loss", "o", CYCLE[1], "$G_{loss}$"), ("naive", "^", REFERENCE, "naive")):
            row = found["sphere"][name]
            errors = [2 * e for e in row["stderr"]]
            ax.errorbar(range(len(errors)), row["reward"], yerr=errors, fmt=mark + "-", ms=3, color=color, label=label)
        guide(ax, 1.0, "maximum")
        ax.set_xticks(range(0, 21, 5))
        ax.set(xlabel="round", ylabel=r"$E\,\theta\cdot x$", title="unit sphere in 16 of 64 dimensions, Algorithm 1")
        ax.legend(loc="lower right")
        publish(figure, "guo-sphere")


NETWORKS = (("plain", "plain", "0.55", ":"), ("1000", "1 000 iterations", REFERENCE, "-"),
            ("3000", "3 000 iterations", CYCLE[2], "--"))  # fmt: skip
GUIDES = (("naive", REFERENCE, "naive"), ("g_loss", CYCLE[1], r"$G_{loss}$"))


def networks(found: dict[str, Any]) -> None:
    """Trained scores: what of a push gets through, off/on ratios, and the objective by round."""
    with canvas(1, 3, size=(9.6, 3.0)) as (figure, (left, middle, right)):
        for name, label, color, line in NETWORKS:
            rows = found[name]["through"]
            left.semilogx(column(rows, "s"), column(rows, "kept"), line, marker="o", ms=3, color=color, label=label)
        left.set(xlabel="noise level $s$", ylabel=r"share of a push that $\hat x_0$ keeps",
                 title="a push off the span")  # fmt: skip
        left.legend(fontsize=7)
        for name, color, label in GUIDES:
            for algorithm, line in (("algorithm 1", "--"), ("algorithm 2", "-")):
                row = found["1000"][algorithm][name]
                middle.semilogy(row["off"], line, lw=1, color=color, label=f"{label}, {algorithm}")
                faint = 0.35 if (name, algorithm) == ("naive", "algorithm 2") else 1.0
                right.plot(row["mean_value"], line, lw=1, color=color, alpha=faint)
        middle.set(xlabel="round", ylabel="off/on-support ratio", title="trained for 1 000 iterations", ylim=(0.02, 60))
        middle.legend(fontsize=7, loc="upper left", ncols=2)
        guide(right, found["limits"]["maximum"], "maximum on the span")
        stop = right.axhline(found["limits"]["algorithm 1"], color="black", lw=0.8, ls=":")
        right.legend([stop], ["(13), the end of Algorithm 1\nunder $G_{loss}$ and the exact score"], fontsize=7,
                     loc="lower right", framealpha=0.9, frameon=True, edgecolor="none")  # fmt: skip
        right.set(xlabel="round", ylabel="$f_1$ at the batch's mean", title="trained for 1 000 iterations",
                  ylim=(-3, 11))  # fmt: skip
        publish(figure, "guo-network")


def main() -> None:
    networks(results("guo_network"))
    found = results("guo_simulation")
    for draw in (label_score, membership, fixed_point, refits, sphere):
        draw(found)


if __name__ == "__main__":
    main()
