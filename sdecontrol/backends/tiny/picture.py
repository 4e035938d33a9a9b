"""A picture of what the pipeline draws: one column a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdecontrol.backends.tiny.images import WORDS, Digits, ink, split
from sdecontrol.backends.tiny.quality import draw
from sdecontrol.report.style import canvas, save

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

ROWS = 6


def draw_picture(pipeline: StableDiffusionPipeline, file: Path, rows: int = ROWS) -> Path:
    """Real digits above, drawn ones below: without guidance and with a guidance scale of 2."""
    real, _ = split()
    shown = [
        ("real digits", _by_class(real, rows // 2)),
        ("no guidance", _by_class(draw(pipeline, 10 * rows, scale=1.0), rows)),
        ("guidance 2", _by_class(draw(pipeline, 10 * rows, scale=2.0, seed=1), rows)),
    ]
    with canvas(1, len(shown), (9.0, 3.4)) as (figure, axes):
        for ax, (title, block) in zip(axes, shown):
            ax.imshow(block, cmap="gray_r", vmin=0, vmax=1)
            ax.set(title=title, yticks=[])
            ax.set_xticks([10 * column + 4.5 for column in range(10)], WORDS, rotation=90)
            ax.tick_params(length=0)
        save(figure, file)
    return file


def _by_class(digits: Digits, rows: int):  # type: ignore[no-untyped-def]
    """(10 rows, 100) pixels: the first `rows` digits of every class, one column a class, a blank pixel around each."""
    import numpy as np

    pixels = np.pad(ink(digits.images).clamp(0, 1).numpy(), ((0, 0), (1, 1), (1, 1)))
    columns = [pixels[digits.labels.numpy() == label][:rows].reshape(-1, 10) for label in range(10)]
    return np.hstack(columns)
