"""Particle samplers: Z unbiased, bias and error by size; what other samplers miss; the filling scheme."""

from __future__ import annotations

import numpy as np

from experiments.record import results
from paper_figures.output import column, guide, publish
from sdecontrol.report.style import CYCLE, REFERENCE, TILT, canvas

COLORS = {"fk": REFERENCE, "twisted": TILT}


def main() -> None:
    found = results("smc_bias")
    with canvas(2, 2, size=(7.4, 5.6)) as (figure, (z, sizes, others, filling)):
        for name, mark, shift in (("fk", "o", -0.01), ("twisted", "s", 0.01)):
            rows = [row for row in found["unbiased"] if row["sampler"] == name]
            errors = [2 * e for e in column(rows, "stderr")]
            z.errorbar(np.array(column(rows, "threshold")) + shift, column(rows, "ratio"), yerr=errors, fmt=mark, ms=4,
                       color=COLORS[name], label=name)  # fmt: skip
            rows, n = found["sizes"][name]["rows"], np.array(column(found["sizes"][name]["rows"], "size"))
            bias, rmse = -np.array(column(rows, "bias")), np.array(column(rows, "rmse"))
            errors = [2 * e for e in column(rows, "bias_stderr")]
            sizes.errorbar(n, bias, yerr=errors, fmt=mark, ms=4, color=COLORS[name], label=f"{name}: $-$bias")
            sizes.plot(n, rmse, mark, ms=4, mfc="none", color=COLORS[name], label=f"{name}: RMSE")
            sizes.plot(n, bias[1] * n[1] / n, "-", lw=0.8, color=COLORS[name])
            sizes.plot(n, rmse[1] * np.sqrt(n[1] / n), "--", lw=0.8, color=COLORS[name])
        guide(z, 1.0, "")
        z.set(xlabel="resampling threshold", ylabel=r"mean of $\hat Z/Z$, 500 repeats")
        z.set_title("32 particles, two standard errors")
        z.legend()
        sizes.set(xscale="log", yscale="log", xlabel="particles $N$", ylabel="of the mean of $x$",
                  title="lines: $N^{-1}$ and $N^{-1/2}$")  # fmt: skip
        sizes.set_xticks([8, 16, 32, 64], ["8", "16", "32", "64"])
        sizes.minorticks_off()
        sizes.legend(fontsize=7, ncols=2, loc="lower left")
        biased = found["biased"]
        for (name, rows), mark, color in zip(biased["rows"].items(), "os^", CYCLE):
            n = np.array(column(rows, "candidates"))
            mean, std = np.array(column(rows, "mean")), np.array(column(rows, "std"))
            others.semilogx(n, mean, f"{mark}-", ms=4, color=color, label=name, base=2)
            others.fill_between(n, mean - std, mean + std, color=color, alpha=0.12, lw=0)
        tilt = biased["tilt"]
        others.axhspan(tilt["mean"] - tilt["std"], tilt["mean"] + tilt["std"], color="0.85", zorder=0)
        guide(others, tilt["mean"], "tilt")
        others.set(xlabel="candidates", ylabel="$x$, mean and deviation", title="beside the tilt (grey)")
        others.legend(fontsize=7, loc="upper left")
        rows = found["filling"]["rows"]
        filling.loglog(column(rows, "rounds"), column(rows, "level"), "o-", ms=3, color=REFERENCE,
                       label=r"mean draws $E\min(N,R)=L_R$")  # fmt: skip
        filling.loglog(column(rows, "rounds"), column(rows, "survival"), "s-", ms=3, color=TILT,
                       label="share still drawing after $R$")  # fmt: skip
        filling.set(xlabel="rounds $R$", title=r"filling scheme, $\rho=e^{x-1/2}$ unbounded")
        filling.legend(fontsize=7)
        publish(figure, "smc-bias")


if __name__ == "__main__":
    main()
