"""Fitting a law to samples: a Gaussian or a mixture on their principal subspace.

x = offset + basis u with the mean as offset and the leading principal directions as basis; u is Gaussian with the
sample covariance, or a mixture of full-covariance Gaussians fitted by expectation maximisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from sdecontrol.data.arrays import DataSet, scikit_learn
from sdecontrol.errors import check
from sdecontrol.laws import Gaussian, GaussianMixture, Law, Subspace

EXPLAINED = 0.95  # share of the variance that the default rank keeps
HELD_OUT = 0.2  # share of the rows on which the log-likelihood is reported
RIDGE = 0.02  # added to every covariance of a mixture, in units of the mean latent variance


@dataclass(frozen=True)
class FitSummary:
    """What was fitted to a data set.

    `held_out` is the mean log density, in nats a sample and with respect to the latent coordinates, of a fifth
    of the rows under a law and principal directions fitted on the others; the law itself is fitted on all rows.
    """

    data: str
    rows: int
    columns: int
    scale: float
    family: str
    components: int
    rank: int
    explained_variance: float
    held_out: float
    held_out_rows: int

    def __str__(self) -> str:
        units = "" if self.scale == 1 else f", centred and divided by {self.scale:.6g}"
        return (
            f"{self.data}: {self.rows} rows of {self.columns} columns{units}; {self.family} on a subspace of "
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


def fit(data: DataSet, components: int = 1, rank: int | None = None) -> tuple[Law, FitSummary]:
    """The law x = offset + basis u, with u a Gaussian or a mixture of `components`, and what was fitted.

    A `Subspace`; at full rank the Gaussian or the mixture itself, on the data's own coordinates.

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
    family = "Gaussian" if components == 1 else f"mixture of {components} Gaussians"
    return _fitted(data, space, family, components, lambda u, rows: _latent_law(u, components))


def fit_labelled(data: DataSet, rank: int | None = None) -> tuple[Law, FitSummary]:
    """The same with one Gaussian a label: component i has the mean, covariance and share of the i-th smallest label.

    So the component is the class, and sc.ClassPosterior(law, i) is the log probability of label i under the law.
    Raises: BadInput for data without labels, a label with fewer than two training rows, or a rank above the data's.
    """
    if data.labels is None:
        check(False, f"{data.name} without labels", "one label a row", "Use fit, which finds components itself.")
    names, labels = np.unique(np.asarray(data.labels), return_inverse=True)
    training = np.bincount(labels[_split(len(labels))[1]], minlength=len(names))
    check(
        len(names) >= 2 and training.min() >= 2,
        f"{training.min()} training rows of the rarest of {len(names)} labels",
        "two labels or more, each with at least two training rows",
    )
    family = f"mixture of {len(names)} Gaussians, one a label,"
    space = PrincipalSubspace.of(data.values, rank)
    return _fitted(data, space, family, len(names), lambda u, rows: _classes(u, labels[rows]))


def _fitted(
    data: DataSet, space: PrincipalSubspace, family: str, components: int,
    latent: Callable[[np.ndarray, np.ndarray], Gaussian | GaussianMixture],
) -> tuple[Law, FitSummary]:  # fmt: skip
    """The law of all rows, and how one that is fitted to most of them fares on the others.

    latent: from coordinates (n, d) and the rows (n,) they belong to, to a law.
    """
    held_out, training = _split(len(data.values))
    trained_on = PrincipalSubspace.of(data.values[training], space.rank)
    trained = latent(trained_on.encode(data.values[training]), training)
    log_density = trained.log_prob(_tensor(trained_on.encode(data.values[held_out])))
    law = _embedded(latent(space.encode(data.values), np.arange(len(data.values))), space)
    summary = FitSummary(
        data=data.name,
        rows=len(data.values),
        columns=data.values.shape[1],
        scale=data.scale,
        family=family,
        components=components,
        rank=space.rank,
        explained_variance=space.explained_variance,
        held_out=float(log_density.mean()),
        held_out_rows=len(held_out),
    )
    return law, summary


def _split(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Held-out and training rows, always the same."""
    order = np.random.default_rng(0).permutation(n)
    held_out, training = np.split(order, [max(1, int(HELD_OUT * n))])
    return held_out, training


def _classes(u: np.ndarray, labels: np.ndarray) -> GaussianMixture:
    """Mean, covariance and share of the coordinates of each label, with the ridge of a mixture."""
    ridge = RIDGE * float(u.var(axis=0).mean()) * np.eye(u.shape[1])
    parts = [u[labels == label] for label in np.unique(labels)]
    weights = np.array([len(part) for part in parts]) / len(u)
    means = np.stack([part.mean(axis=0) for part in parts])
    covariances = np.stack([np.atleast_2d(np.cov(part, rowvar=False)) + ridge for part in parts])
    return GaussianMixture(_tensor(weights), _tensor(means), _tensor(covariances))


def _tensor(a: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a))


def _embedded(law: Gaussian | GaussianMixture, space: PrincipalSubspace) -> Law:
    """The law of offset + basis u: on a subspace, or on the whole space at full rank, where it has a density."""
    basis, offset = _tensor(space.basis), _tensor(space.offset)
    if space.rank < len(space.offset):
        return Subspace(basis, law, offset=offset)
    if isinstance(law, Gaussian):
        return Gaussian(offset + basis @ law.mean, _symmetric(basis @ law.covariance @ basis.mT))
    covariances = torch.stack([_symmetric(basis @ c @ basis.mT) for c in law.covariances])
    return GaussianMixture(law.log_weights.exp(), offset + law.means @ basis.mT, covariances)


def _symmetric(a: torch.Tensor) -> torch.Tensor:
    return (a + a.mT) / 2


def _latent_law(u: np.ndarray, components: int) -> Gaussian | GaussianMixture:
    """Law of latent coordinates (n, d): sample mean and covariance, or a mixture by likelihood."""
    if components == 1:
        return Gaussian(_tensor(u.mean(axis=0)), _tensor(np.atleast_2d(np.cov(u, rowvar=False))))
    model = scikit_learn("sklearn.mixture").GaussianMixture(
        components, reg_covar=RIDGE * float(u.var(axis=0).mean()), random_state=0, max_iter=500
    )
    with threadpool_limits(1):  # fifty times faster than two threads on two busy cores, and the same bits everywhere
        model.fit(u)
    return GaussianMixture(_tensor(model.weights_), _tensor(model.means_), _tensor(model.covariances_))
