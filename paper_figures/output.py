"""Where the figures go, and what several of them share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdecontrol.report.style import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1] / "docs" / "figures"


def publish(figure: Figure, name: str) -> None:
    """docs/figures/NAME.png and NAME.pdf."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    save(figure, FOLDER / name)
    print(f"docs/figures/{name}.png, .pdf")


def column(rows: list[dict[str, Any]], key: str) -> list[Any]:
    return [row[key] for row in rows]


def guide(ax: Axes, at: float, text: str, vertical: bool = False) -> None:
    """A thin line at a level, with its meaning beside it."""
    (ax.axvline if vertical else ax.axhline)(at, color="0.6", lw=0.8, ls=":")
    if vertical:
        ax.text(at, 1.0, f" {text}", transform=ax.get_xaxis_transform(), va="top", fontsize=8, color="0.35")
    else:
        ax.text(1.0, at, text, transform=ax.get_yaxis_transform(), va="bottom", ha="right", fontsize=8, color="0.35")
