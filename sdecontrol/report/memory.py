"""The largest memory that a piece of work held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yields a function that says the peak in bytes so far: of the GPU's tensors, else of the process on Linux, else 0.

    The process's peak counts what it held before, the model's weights among it.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield torch.cuda.max_memory_allocated
        return
    with suppress(OSError):
        _RESET.write_text("5")  # makes the kernel forget the resident set's peak
    yield _resident_peak


def _resident_peak() -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
