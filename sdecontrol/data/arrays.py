"""Samples from a file, an array or the digits of scikit-learn.

A `.npy` file, a `.csv` file (one optional header line) or the name `digits`. Rows are samples; further dimensions
(images) are flattened and remembered. Nothing is ever unpickled. The columns of a file are centred and all divided by
one number, so that noise of unit variance is of the size of the data.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from sdecontrol.errors import BadInput, check


@dataclass(frozen=True)
class DataSet:
    """Samples as rows: `values` (n, D) float64, `event_shape` of a row before flattening, `labels` (n,) or None.

    The numbers that were read are shift + scale * values: shift a number or (D,), scale a positive number.
    """

    name: str
    values: np.ndarray
    event_shape: tuple[int, ...]
    labels: np.ndarray | None = None
    shift: np.ndarray | float = 0.0
    scale: float = 1.0

    @property
    def is_image(self) -> bool:
        return len(self.event_shape) == 2

    def standardised(self) -> DataSet:
        """Columns centred, and all divided by their root mean square deviation."""
        shift = self.values.mean(axis=0)
        scale = float(np.sqrt(np.mean((self.values - shift) ** 2)))
        return replace(self, values=(self.values - shift) / scale, shift=shift, scale=scale)

    def original(self, values: np.ndarray) -> np.ndarray:
        """Values (n, D) in the units that were read."""
        return self.shift + self.scale * values


def read(source: str | Path) -> DataSet:
    """Samples from `digits`, a `.npy` or a `.csv` file; those of a file standardised.

    Raises: BadInput for a file that is missing, unreadable, empty, not numeric or holds NaN or infinite entries;
    for fewer than three rows, no more rows than columns, or rows that are all alike.
    """
    if str(source) == "digits":
        return digits()
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BadInput(f"saw data {str(source)!r}; wanted 'digits' or a file that ends in {' or '.join(_READERS)}.")
    check(path.exists(), f"no file at {path}", "an existing file", "Check the path.")
    check(path.is_file(), f"{path}, which is not a file", "a file")
    try:
        check(path.stat().st_size > 0, f"{path}, an empty file", "numbers, one sample a row")
        array = reader(path)
    except OSError as error:
        raise BadInput(f"saw {path}, which cannot be read ({error}); wanted a readable file.") from error
    return from_array(array, name=path.name).standardised()


def from_array(array: np.ndarray, name: str = "array", labels: np.ndarray | None = None) -> DataSet:
    """Samples from an array (n, *event) of numbers; a vector (n,) is n samples of one number."""
    check(array.dtype.kind in "fiub", f"{name} with entries of type {array.dtype}", "real numbers")
    check(array.ndim >= 1 and array.size > 0, f"{name} of shape {array.shape}", "at least one number")
    event_shape = array.shape[1:] or (1,)
    values = np.asarray(array, dtype=np.float64).reshape(len(array), -1)
    n, columns = values.shape
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise BadInput(
            f"saw {len(bad)} NaN or infinite entries in {name}, the first at row {bad[0][0]}, column "
            f"{bad[0][1]} (counted from 0); wanted finite numbers. Remove or fill these rows."
        )
    check(
        n >= 3 and n > columns,
        f"{n} rows of {columns} columns in {name}",
        "at least three rows and more rows than columns",
        "Samples are rows: transpose the array, or collect more of them.",
    )
    check(bool(np.ptp(values, axis=0).any()), f"{name}, whose rows are all alike", "samples that vary")
    return DataSet(name, values, event_shape, labels)


def digits() -> DataSet:
    """The 1 797 digits of 8 x 8 pixels of scikit-learn, ink between 0 and 1, with their labels."""
    bunch = scikit_learn("sklearn.datasets").load_digits()
    return from_array(bunch.images / 16.0, name="digits", labels=bunch.target)


def scikit_learn(module: str) -> ModuleType:
    """A module of scikit-learn, imported when it is needed. Raises: BadInput, with what to install, without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(
            "saw no scikit-learn; wanted it for digits and mixtures. Run: pip install 'sdecontrol[data]'"
        ) from error


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadInput(
            f"saw {path}, which is not a plain .npy array ({error}); wanted numbers saved by numpy.save."
        ) from error


def _read_csv(path: Path) -> np.ndarray:
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise BadInput(f"saw {path}, which is not text ({error}); wanted comma-separated numbers.") from error
    rows = lines[0 if lines and _is_numeric(lines[0]) else 1 :]
    check(bool(rows), f"{path} without a line of numbers", "comma-separated numbers, one sample a line")
    try:
        return np.loadtxt(rows, delimiter=",", ndmin=2, dtype=np.float64, comments=None)
    except ValueError as error:
        raise BadInput(
            f"saw {path}, which is not a table of numbers ({error}); wanted comma-separated numbers, "
            "equally many a line, with one header line at most."
        ) from error


def _is_numeric(line: str) -> bool:
    try:
        [float(cell) for cell in line.split(",")]
    except ValueError:
        return False
    return True


_READERS: dict[str, Callable[[Path], np.ndarray]] = {".npy": _read_npy, ".csv": _read_csv}
