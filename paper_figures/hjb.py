"""The value, the optimal control and the residual of the HJB equation on the plane of a mixture."""

from __future__ import annotations

import numpy as np

from experiments.record import results
from paper_figures.output import publish
from sdecontrol.report.style import canvas

ARROWS = 6  # nodes from one arrow to the next
SHOWN = 7.0  # the pictures hold the points whose log-density is within this of its maximum, and a margin


def main() -> None:
    found = results("hjb_grid")["picture"]
    x, y = (np.array(axis) for axis in found["axes"])
    shape = (len(x), len(y))
    value, u1, u2, residual, log_density = (
        np.array(found[name]).reshape(shape) for name in ("value", "control_1", "control_2", "residual", "log_density")
    )
    shown = log_density > log_density.max() - SHOWN
    limits = [(axis[shown.any(axis=k)][0], axis[shown.any(axis=k)][-1]) for axis, k in ((x, 1), (y, 0))]
    near = np.outer((x >= limits[0][0]) & (x <= limits[0][1]), (y >= limits[1][0]) & (y <= limits[1][1]))
    with canvas(1, 3, size=(7.4, 3.3)) as (figure, axes):
        left, middle, right = axes
        image = left.contourf(x, y, np.where(near, value, np.nan).T, levels=14, cmap="viridis")
        figure.colorbar(image, ax=left, label=r"value $v$", location="bottom")
        size = np.hypot(u1, u2)
        image = middle.pcolormesh(x, y, np.where(near, size, np.nan).T, cmap="Blues", vmin=0, rasterized=True)
        figure.colorbar(image, ax=middle, label=r"$|u^*|$", location="bottom")
        pick = np.s_[::ARROWS, ::ARROWS]
        grid_x, grid_y = np.meshgrid(x, y, indexing="ij")
        middle.quiver(grid_x[pick], grid_y[pick], u1[pick], u2[pick], color="black", angles="xy", scale=22)
        logs = np.log10(np.maximum(np.abs(residual), 1e-16))
        image = right.pcolormesh(x, y, np.where(near, logs, np.nan).T, cmap="magma", rasterized=True)
        figure.colorbar(image, ax=right, label=r"$\log_{10}|$residual$|$", location="bottom")
        for ax, color in ((left, "white"), (middle, "0.3"), (right, "white")):
            levels = log_density.max() + np.log([0.02, 0.15, 0.6])
            ax.contour(x, y, log_density.T, levels=levels, colors=color, linewidths=0.7, linestyles="dashed")
            ax.set(xlabel="$y_1$", ylabel="$y_2$", xlim=limits[0], ylim=limits[1], aspect="equal")
        publish(figure, "hjb-plane")


if __name__ == "__main__":
    main()
