"""Reading arrays and fitting laws, against numpy, scipy and scikit-learn on the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture

from sdecontrol import data
from sdecontrol.errors import BadInput

ROWS = np.random.default_rng(0).normal(size=(400, 3)) @ np.diag([2.0, 1.0, 0.5]) + [1.0, -1.0, 0.0]


def csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_npy_and_csv_hold_the_same_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    np.savetxt(tmp_path / "a.csv", ROWS, delimiter=",")
    np.savetxt(tmp_path / "b.csv", ROWS, delimiter=",", header="x,y,z", comments="")
    for name in ("a.npy", "a.csv", "b.csv"):
        found = data.read(tmp_path / name)
        assert np.abs(found.original(found.values) - ROWS).max() < 1e-14
        assert np.abs(found.values.mean(axis=0)).max() < 1e-14
        assert np.mean(found.values**2) == pytest.approx(1, rel=1e-14)


def test_integers_vectors_and_images_become_rows(tmp_path: Path) -> None:
    assert data.from_array(np.arange(5)).values.tolist() == [[0.0], [1.0], [2.0], [3.0], [4.0]]
    images = data.from_array(np.random.default_rng(0).normal(size=(50, 2, 4)))
    assert images.values.shape == (50, 8)
    assert images.event_shape == (2, 4)
    assert images.is_image


def test_digits_are_scaled_ink_with_labels() -> None:
    digits = data.read("digits")
    assert digits.values.shape == (1797, 64)
    assert (digits.values.min(), digits.values.max()) == (0.0, 1.0)
    assert digits.labels is not None
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


BAD_ARRAYS = {
    "nan": (np.where(np.arange(1200).reshape(400, 3) == 7, np.nan, ROWS), "row 2, column 1"),
    "infinite": (np.where(np.arange(1200).reshape(400, 3) == 7, np.inf, ROWS), "NaN or infinite"),
    "text": (np.array([["a", "b"], ["c", "d"]]), "real numbers"),
    "complex": (ROWS * 1j, "real numbers"),
    "no rows": (np.zeros((0, 3)), "at least one number"),
    "a scalar": (np.array(3.0), "at least one number"),
    "wide": (ROWS[:3], "more rows than columns"),
    "constant": (np.ones((10, 2)), "samples that vary"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_named(case: str) -> None:
    array, message = BAD_ARRAYS[case]
    with pytest.raises(BadInput, match=message):
        data.from_array(array)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="not a plain .npy array"):
        data.read(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty file"),
        ("\n\n", "without a line of numbers"),
        ("x,y\n", "without a line of numbers"),
        ("1,2\n3\n", "not a table of numbers"),
        ("1,2\n3,four\n", "not a table of numbers"),
    ],
)
def test_bad_csv_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        data.read(csv(tmp_path / "a.csv", text))


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "folder.npy").mkdir()
    for name, message in [
        ("absent.npy", "no file at"),
        ("table.xlsx", "'digits' or a file that ends in .npy or .csv"),
        ("folder.npy", "not a file"),
        ("binary.csv", "not text"),
        ("cut.npy", "not a plain .npy array"),
    ]:
        with pytest.raises(BadInput, match=message):
            data.read(tmp_path / name)


def test_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, **_: str) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(BadInput, match="cannot be read.*Permission denied"):
        data.read(csv(tmp_path / "a.csv", "1,2\n"))


def test_principal_subspace_is_the_eigenbasis_of_the_covariance() -> None:
    space = data.PrincipalSubspace.of(ROWS, rank=2)
    covariance = np.cov(ROWS, rowvar=False)
    eigenvalues = np.linalg.eigvalsh(covariance)[::-1]
    assert np.abs(covariance @ space.basis - space.basis * eigenvalues[:2]).max() < 1e-12
    assert space.explained_variance == pytest.approx(eigenvalues[:2].sum() / eigenvalues.sum(), rel=1e-12)
    assert data.PrincipalSubspace.of(ROWS).rank == 2  # 4 + 1 of 5.25 is 95.2 % in the population


def test_gaussian_fit_has_the_sample_moments_and_the_held_out_likelihood() -> None:
    law, summary = data.fit(data.from_array(ROWS), rank=3)
    assert np.abs(law.mean.numpy() - ROWS.mean(axis=0)).max() < 1e-12
    assert np.abs(law.covariance.numpy() - np.cov(ROWS, rowvar=False)).max() < 1e-12
    order = np.random.default_rng(0).permutation(len(ROWS))
    test, train = ROWS[order[:80]], ROWS[order[80:]]
    density = stats.multivariate_normal(train.mean(axis=0), np.cov(train, rowvar=False))
    assert summary.held_out == pytest.approx(
        density.logpdf(test).mean(), rel=1e-12
    )  # rank 3: a rotation, unit Jacobian
    assert (summary.rank, summary.held_out_rows, summary.family) == (3, 80, "Gaussian")


def test_mixture_fit_finds_separate_clusters() -> None:
    rng = np.random.default_rng(1)
    centres = np.array([[-6.0, 0.0], [0.0, 5.0], [6.0, 0.0]])
    rows = np.concatenate([c + 0.5 * rng.normal(size=(200, 2)) for c in centres])
    law, summary = data.fit(data.from_array(rows), components=3, rank=2)
    means = law.means.numpy()
    assert (
        np.abs(means[np.argsort(means[:, 0])] - [rows[200 * i : 200 * i + 200].mean(axis=0) for i in range(3)]).max()
        < 0.01
    )
    one = data.fit(data.from_array(rows), components=1, rank=2)[1]
    assert summary.held_out > one.held_out + 1
    assert torch.allclose(law.log_weights.exp(), torch.full((3,), 1 / 3, dtype=torch.float64), atol=1e-6)


def test_full_rank_mixture_is_the_embedded_one() -> None:
    rng = np.random.default_rng(2)
    rows = np.concatenate([rng.normal(size=(200, 2)), 5 + rng.normal(size=(200, 2)) @ [[1.0, 0.5], [0.0, 0.3]]])
    law, _ = data.fit(data.from_array(rows), components=2, rank=2)
    space = data.PrincipalSubspace.of(rows, rank=2)
    mixture = GaussianMixture(2, reg_covar=data.RIDGE * space.encode(rows).var(axis=0).mean(), random_state=0)
    density = mixture.fit(space.encode(rows)).score_samples(space.encode(rows))  # a rotation, unit Jacobian
    assert np.abs(law.log_prob(torch.from_numpy(rows)).numpy() - density).max() < 1e-9


def test_ten_gaussians_beat_one_on_held_out_digits() -> None:
    digits = data.read("digits")
    law, ten = data.fit(digits, components=10)
    _, one = data.fit(digits, components=1)
    assert law.basis.shape == (64, 29)
    assert ten.held_out > one.held_out + 5
    assert "1797 rows of 64 columns; mixture of 10 Gaussians on a subspace of rank 29" in str(ten)


@pytest.mark.parametrize(("components", "rank"), [(0, None), (300, None), (1, 0), (1, 4)])
def test_impossible_fits_are_refused(components: int, rank: int | None) -> None:
    with pytest.raises(BadInput, match="components|rank"):
        data.fit(data.from_array(ROWS), components, rank)


def test_one_gaussian_a_label_at_full_rank() -> None:
    """Component i is the i-th smallest label: share, mean and covariance of its rows, plus the ridge."""
    rng = np.random.default_rng(3)
    labels = rng.choice([7, 2, 5], size=400, p=[0.2, 0.5, 0.3])
    rows = rng.normal(size=(400, 3)) @ np.diag([2.0, 1.0, 0.5]) + labels[:, None] * np.array([1.0, 0.0, -0.5])
    law, summary = data.fit_labelled(data.from_array(rows, labels=labels), rank=3)
    ridge = 0.02 * np.linalg.eigvalsh(np.cov(rows.T, ddof=0)).mean() * np.eye(3)
    for i, label in enumerate([2, 5, 7]):
        mine = rows[labels == label]
        assert float(law.weights[i]) == pytest.approx(len(mine) / 400)
        assert np.abs(law.means[i].numpy() - mine.mean(0)).max() < 1e-12
        assert np.abs(law.covariances[i].numpy() - np.cov(mine.T) - ridge).max() < 1e-12
    assert summary.components == 3 and summary.held_out_rows == 80


def test_labels_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(BadInput, match="without labels"):
        data.fit_labelled(data.from_array(ROWS))
    for labels in (np.zeros(400, int), np.arange(400)):
        with pytest.raises(BadInput, match="at least two training rows"):
            data.fit_labelled(data.from_array(ROWS, labels=labels))
