"""The one place for how figures look. Colours are Okabe and Ito's, distinct under every common colour blindness."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sdecontrol.report.atomic import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE = "#0072B2"  # blue: p_pre
TILT = "#D55E00"  # vermilion: p_ft
SAMPLES = "#999999"

SETTINGS = {
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
    import matplotlib.pyplot as plt

    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
        try:
            yield figure, list(axes.ravel())
        finally:
            plt.close(figure)


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.pdf, each whole or not at all."""
    for suffix, metadata in ((".png", {}), (".pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=metadata)
        write(stem.with_suffix(suffix), buffer.getvalue())
