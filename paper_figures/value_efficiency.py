"""Variance times seconds of v and grad v: the methods of the library, over that of plain nested simulation."""

from __future__ import annotations

from experiments.record import results
from paper_figures.output import publish
from sdecontrol.report.style import CYCLE, canvas


def main() -> None:
    found = results("value_efficiency")
    names = list(found)
    with canvas(1, 2, size=(8.2, 3.0)) as (figure, axes):
        for ax, quantity, title in zip(axes, ("value", "gradient"), ("value", "derivative of the value")):
            shown = dict.fromkeys(row["name"] for name in names for row in found[name][quantity]["rows"])
            for k, method in enumerate(shown):
                points = [
                    (i, min(p["work"] for p in found[name][quantity]["plain"]) / row["work"])
                    for i, name in enumerate(names)
                    for row in found[name][quantity]["rows"]
                    if row["name"] == method and abs(row["z"]) < 4
                ]
                label = method.split("(")[0] if quantity == "value" else short(method)
                ax.semilogy(*zip(*points), "osv^DPX"[k], ms=5, mfc="none", color=CYCLE[k % len(CYCLE)], label=label)
            ax.axhline(100, color="0.6", lw=0.8, ls=":")
            ax.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], fontsize=6.5)
            ax.set(title=title, xlim=(-0.5, len(names) + 0.6))
            ax.legend(fontsize=6.5)
        axes[0].set_ylabel("gain over plain nested simulation")
        publish(figure, "value-efficiency")


def short(rule: str) -> str:
    """Pathwise(way=Laplace(dof=1)) as Pathwise, Laplace."""
    name, inner = rule.split("(way=")
    inner = inner.split("(")[0].rstrip(")")
    return name if inner == "None" else f"{name}, {inner}"


if __name__ == "__main__":
    main()
