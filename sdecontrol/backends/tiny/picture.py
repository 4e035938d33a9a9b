"""A picture of what the pipeline draws: one column a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdecontrol.backends.tiny.images import WORDS, Digits, ink, split
from sdecontrol.backends.tiny.quality import draw
from sdecontrol.report.style import canvas, save

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

ROWS = 6


def draw_picture(pipeline: StableDiffusionPipeline, file: Path, rows: int = ROWS) -> Path:
    """Real digits beside drawn ones: without guidance and with a guidance scale of 2."""
    real, _ = split()
    with pictured({
        "real digits": real, "no guidance": draw(pipeline, 10 * rows, scale=1.0),
        "guidance 2": draw(pipeline, 10 * rows, scale=2.0, seed=1),
    }, rows) as figure:  # fmt: skip
        save(figure, file)
    return file


@contextmanager
def pictured(shown: dict[str, Digits], rows: int = ROWS) -> Iterator[Any]:
    """A figure with a panel for each title: the first `rows` digits of every class, one column a class."""
    with canvas(1, len(shown), (3.0 * len(shown), 2.7)) as (figure, axes):
        for ax, (title, digits) in zip(axes, shown.items()):
            ax.imshow(_by_class(digits, rows), cmap="gray_r", vmin=0, vmax=1)
            ax.set(title=title, yticks=[])
            ax.set_xticks([10 * column + 4.5 for column in range(10)], WORDS, rotation=90)
            ax.tick_params(length=0)
        yield figure


def _by_class(digits: Digits, rows: int) -> np.ndarray:
    """(10 rows, 100) pixels, a blank pixel around each digit."""
    pixels = np.pad(ink(digits.images).clamp(0, 1).numpy(), ((0, 0), (1, 1), (1, 1)))
    columns = [pixels[digits.labels.numpy() == label][:rows].reshape(-1, 10) for label in range(10)]
    return np.hstack(columns)
