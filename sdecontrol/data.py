"""Real data: read an array, and fit a Gaussian or a mixture on its principal subspace.

Reading: a `.npy` file, a `.csv` file (one optional header line) or the name `digits`. Rows are samples;
further dimensions (images) are flattened and remembered. Nothing is ever unpickled.

Fitting: x = offset + basis u with the mean as offset and the leading principal directions as basis; u is
Gaussian with the sample covariance, or a mixture of full-covariance Gaussians fitted by expectation
maximisation.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from sdecontrol.errors import BadInput, check
from sdecontrol.laws import Gaussian, GaussianMixture, Subspace

EXPLAINED = 0.95  # share of the variance that the default rank keeps
HELD_OUT = 0.2  # share of the rows on which the log-likelihood is reported
RIDGE = 0.02  # added to every covariance of a mixture, in units of the mean latent variance


@dataclass(frozen=True)
class DataSet:
    """Samples as rows: `values` (n, D) float64, `event_shape` of a row before flattening, `labels` (n,) or None."""

    name: str
    values: np.ndarray
    event_shape: tuple[int, ...]
    labels: np.ndarray | None = None

    @property
    def is_image(self) -> bool:
        return len(self.event_shape) == 2


@dataclass(frozen=True)
class FitSummary:
    """What was fitted to a data set.

    `held_out` is the mean log density, in nats a sample and with respect to the latent coordinates, of a fifth
    of the rows under a law and principal directions fitted on the others; the law itself is fitted on all rows.
    """

    data: str
    rows: int
    columns: int
    family: str
    components: int
    rank: int
    explained_variance: float
    held_out: float
    held_out_rows: int

    def __str__(self) -> str:
        return (
            f"{self.data}: {self.rows} rows of {self.columns} columns; {self.family} on a subspace of "
            f"rank {self.rank} ({100 * self.explained_variance:.2f} % of the variance); "
            f"held-out log-likelihood {self.held_out:.3f} nats a sample on {self.held_out_rows} rows"
        )


@dataclass(frozen=True)
class PrincipalSubspace:
    """Mean `offset` (D,) and leading principal directions `basis` (D, d) of rows, with their share of the variance."""

    offset: np.ndarray
    basis: np.ndarray
    explained_variance: float

    @classmethod
    def of(cls, values: np.ndarray, rank: int | None = None) -> PrincipalSubspace:
        """Principal directions by singular values; without a rank, the least that keeps 95 % of the variance."""
        offset = values.mean(axis=0)
        _, singular, directions = np.linalg.svd(values - offset, full_matrices=False)
        share = np.cumsum(singular**2) / (singular**2).sum()
        largest = int((singular > singular[0] * max(values.shape) * np.finfo(float).eps).sum())
        rank = min(int(np.searchsorted(share, EXPLAINED)) + 1, largest) if rank is None else rank
        check(
            1 <= rank <= largest,
            f"rank = {rank}",
            f"a rank between 1 and {largest}, the rank of the centred data",
            "Choose a smaller --rank or leave it out.",
        )
        return cls(offset, directions[:rank].T.copy(), float(share[rank - 1]))

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def encode(self, values: np.ndarray) -> np.ndarray:
        return (values - self.offset) @ self.basis


def fit(data: DataSet, components: int = 1, rank: int | None = None) -> tuple[Subspace, FitSummary]:
    """The law x = offset + basis u, with u a Gaussian or a mixture of `components`, and what was fitted.

    Raises: BadInput for a rank above that of the data, or fewer than two training rows a component.
    Accuracy: the Gaussian has the sample mean and covariance on the subspace; mixtures carry a ridge of 2 % of
    the mean latent variance, without which components of a few dozen images degenerate.
    """
    n = len(data.values)
    check(
        components >= 1 and 2 * components <= n * (1 - HELD_OUT),
        f"components = {components} for {n} rows",
        "at least one component and at least two training rows for each",
        "Lower --components.",
    )
    space = PrincipalSubspace.of(data.values, rank)
    order = np.random.default_rng(0).permutation(n)
    held_out, training = np.split(data.values[order], [max(1, int(HELD_OUT * n))])
    trained_on = PrincipalSubspace.of(training, space.rank)
    trained = _latent_law(trained_on.encode(training), components)
    log_density = trained.log_prob(_tensor(trained_on.encode(held_out)))
    law = Subspace(
        _tensor(space.basis), _latent_law(space.encode(data.values), components), offset=_tensor(space.offset)
    )
    summary = FitSummary(
        data=data.name,
        rows=n,
        columns=data.values.shape[1],
        family="Gaussian" if components == 1 else f"mixture of {components} Gaussians",
        components=components,
        rank=space.rank,
        explained_variance=space.explained_variance,
        held_out=float(log_density.mean()),
        held_out_rows=len(held_out),
    )
    return law, summary


def _tensor(a: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a))


def _latent_law(u: np.ndarray, components: int) -> Gaussian | GaussianMixture:
    """Law of latent coordinates (n, d): sample mean and covariance, or a mixture by likelihood."""
    if components == 1:
        return Gaussian(_tensor(u.mean(axis=0)), _tensor(np.atleast_2d(np.cov(u, rowvar=False))))
    model = _scikit_learn("sklearn.mixture").GaussianMixture(
        components, reg_covar=RIDGE * float(u.var(axis=0).mean()), random_state=0, max_iter=500
    )
    with threadpool_limits(1):  # fifty times faster than two threads on two busy cores, and the same bits everywhere
        model.fit(u)
    return GaussianMixture(_tensor(model.weights_), _tensor(model.means_), _tensor(model.covariances_))


def read(source: str | Path) -> DataSet:
    """Samples from `digits`, a `.npy` or a `.csv` file.

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
    return from_array(array, name=path.name)


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
    bunch = _scikit_learn("sklearn.datasets").load_digits()
    return from_array(bunch.images / 16.0, name="digits", labels=bunch.target)


def _scikit_learn(module: str) -> ModuleType:
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
