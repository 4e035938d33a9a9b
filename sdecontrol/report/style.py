"""The one place for how figures look. Colours are Okabe and Ito's, distinct under every common colour blindness."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdecontrol.report.atomic import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE = "#0072B2"  # blue: p_pre
TILT = "#D55E00"  # vermilion: p_ft
SAMPLES = "#999999"
CYCLE = (REFERENCE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

FORMATS: dict[str, dict[str, str | None]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}

SETTINGS: dict[Any, Any] = {
    "font.family": "serif",
    "mathtext.fontset": "cm",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


@contextmanager
def canvas(rows: int, columns: int, size: tuple[float, float]) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `size` inches with its axes in reading order, closed afterwards; no display is needed."""
    import matplotlib

    matplotlib.use("Agg")
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns about the dates in matplotlib's own fonts
    import matplotlib.pyplot as plt

    with plt.rc_context({**SETTINGS, "axes.prop_cycle": plt.cycler(color=CYCLE)}):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
        try:
            yield figure, list(axes.ravel())
        finally:
            plt.close(figure)


def save(figure: Figure, path: Path) -> None:
    """Write `path` in the format of its suffix, or as .png and .pdf without one; each file whole or not at all."""
    for target in (
        [path] if path.suffix in FORMATS else [path.with_name(path.name + suffix) for suffix in (".png", ".pdf")]
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=target.suffix[1:], metadata=FORMATS[target.suffix])
        write(target, buffer.getvalue())
