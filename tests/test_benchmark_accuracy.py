"""The accuracy benchmark: law errors against second routes, contenders that agree, and wrong ones that are seen."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import norm, wasserstein_distance

import sdecontrol as sc

pytest.importorskip("diffrax", reason="diffrax is in the bench extra; not installed here")
pytest.importorskip("diffusers", reason="diffusers is in the test extra; not installed here")

from benchmarks import accuracy
from benchmarks.solvers import diffrax_solvers, diffusers_schedulers, ours, scipy_flow, torchsde_solvers
from benchmarks.solvers.case import Case, Impulses, cases, coupling, quasi_normals, spectrum
from benchmarks.solvers.law_error import QuantileFeatures, SpectralFeatures, as_distance, squared_distance

GAUSSIAN, MIXTURE = cases(quick=True)["gaussian"], cases(quick=True)["mixture"]
DIGITS = cases(quick=True)["digits-mixture"]


def contender(module, case: Case, text: str):
    return next(c for c in module.contenders(case) if text in c.key)


def test_spectral_distance_is_w2_of_gaussians():
    """Bures' formula with dense square roots, and the library's own w2."""
    law = GAUSSIAN.law
    values, vectors = spectrum(law)
    mean, spread = law.mean.numpy() + 0.1, np.sqrt(values) * [0.9, 1.1, 1.02, 1.0]
    covariance = (vectors * spread**2) @ vectors.T
    root = sqrtm(law.covariance.numpy()).real
    cross = np.trace(sqrtm(root @ covariance @ root).real)
    bures = 0.04 + np.trace(covariance) + values.sum() - 2 * cross
    features = SpectralFeatures(law)
    found = np.linalg.norm(features.exact(mean, spread) - features.target) * math.sqrt(values.sum())
    assert found == pytest.approx(math.sqrt(bures), rel=1e-6)
    assert found == pytest.approx(sc.laws.w2(sc.Gaussian(mean, covariance), law), rel=1e-9)


@pytest.mark.parametrize("case", [MIXTURE, DIGITS], ids=["plane", "subspace"])
def test_bin_means_of_projections_are_those_of_many_samples(case):
    """Sorted samples of the law itself. 24 rounds: Student's t with 23 degrees of freedom, P(|t| > 8) = 4e-8."""
    features = QuantileFeatures(case.law)
    rounds = [features.of(case.law.sample(2048, sc.Noise(seed)).numpy()) for seed in range(24)]
    estimate = sc.Estimate.mean(np.stack(rounds))
    moving = estimate.stderr > 1e-9  # directions across the subspace do not move
    z = (estimate.value - features.target)[moving] / estimate.stderr[moving]
    assert np.abs(z).max() < 8
    np.testing.assert_allclose(estimate.value[~moving], features.target[~moving], atol=1e-6)


def test_sliced_distance_of_a_shift_and_of_a_scale():
    """Shifts move each quantile by the projected shift, scaling about 0 by the quantile: closed; scipy's W1 agrees."""
    law = sc.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [[0.2, 0.4], [0.3, 0.3]])
    features = QuantileFeatures(law)
    total = float(law.covariance.trace())
    x = law.sample(2**18, sc.Noise(3)).numpy()
    shifted = features.of(x + np.array([0.3, -0.1])) - features.of(x)
    assert shifted @ shifted == pytest.approx(0.1 / total, rel=1e-9)
    scaled = features.of(1.1 * x) - features.of(x)
    second = np.square(x).sum(axis=1).mean()
    assert scaled @ scaled == pytest.approx(0.01 * second / total, rel=2e-3)  # what averaging in bins loses
    first_angle = np.abs(scaled[:256]).mean() / features.weight
    assert first_angle == pytest.approx(wasserstein_distance(x[:, 0], 1.1 * x[:, 0]), rel=1e-3)


def test_squared_distance_is_unbiased_with_a_right_standard_error():
    """Batches of known mean: the z-scores of 400 estimates have mean 0 and unit spread."""
    rng = np.random.default_rng(0)
    gap = np.array([0.3, -0.2, 0.1, 0.0])
    scores, nulls = [], []
    for _ in range(400):
        noise = rng.normal(size=(20, 4))
        found = squared_distance(gap + 0.2 * noise)
        scores.append((found.value - gap @ gap) / found.stderr)
        nulls.append(squared_distance(noise).value)
    assert abs(np.mean(scores)) < 0.25  # the error is skewed; 5 standard errors of 400 scores
    assert 0.85 < np.std(scores) < 1.25
    assert abs(np.mean(nulls)) < 5 * np.std(nulls) / 20
    hidden = as_distance(sc.Estimate(-1e-7, 1e-6, 8))
    assert hidden["error"] == 0 and hidden["low"] == 0 and hidden["high"] == pytest.approx(1.378e-3, rel=1e-3)


def probed(case, item):
    vectors = spectrum(case.law)[1]
    counter = Impulses(vectors, 0)
    item.probe(counter)
    impulses = Impulses(vectors, counter.drawn)
    return impulses.read(item.probe(impulses))


def test_impulses_find_the_moments_of_a_chain():
    """torchsde's Euler scheme, and diffrax's, against the exact moments of the library's Euler chain."""
    m = sc.moments(GAUSSIAN.process, sc.EulerMaruyama(), sc.TimeGrid.uniform(30))
    vectors = spectrum(GAUSSIAN.law)[1]
    spread = np.sqrt(np.diag(vectors.T @ m.covariances[-1].numpy() @ vectors))
    found = probed(GAUSSIAN, contender(torchsde_solvers, GAUSSIAN, "euler | uniform | 30"))
    np.testing.assert_allclose(found[0], m.means[-1].numpy(), atol=1e-7)
    np.testing.assert_allclose(found[1], spread, rtol=1e-6)
    found = probed(GAUSSIAN, contender(diffrax_solvers, GAUSSIAN, "Euler | uniform | 30"))
    np.testing.assert_allclose(found[1], spread, rtol=1e-4)  # float32


FINE = [(ours, "Flow(order=4, eta=0.0, width=0.55) | flow grid | 11"), (torchsde_solvers, "heun | uniform | 120"),
        (diffusers_schedulers, "PNDM | its own | 40"), (scipy_flow, "RK45, flow, tolerance 0.001")]  # fmt: skip


@pytest.mark.parametrize(("module", "text"), FINE, ids=[m.FAMILY for m, _ in FINE])
def test_fine_contenders_have_the_data_law(module, text):
    """By its most precise route every library's finest solver is within 2e-3 of the mixture."""
    found = JUDGE.error(contender(module, MIXTURE, text))
    assert found["high"] < 2e-3, found


JUDGE = accuracy.Judge(MIXTURE)


def test_too_much_noise_is_seen():
    """Starts times 1.1 in a flow, and impulses times 1.1 in a chain."""
    item = contender(ours, MIXTURE, "Flow(order=4, eta=0.0, width=0.55) | flow grid | 11")
    wrong = dataclasses.replace(item, push=lambda start: item.push(1.1 * start))
    right, loud = JUDGE.error(item), JUDGE.error(wrong)
    assert right["high"] < 1e-3 and loud["low"] > 0.03
    euler = contender(torchsde_solvers, GAUSSIAN, "heun | uniform | 60")
    mean, spread = probed(GAUSSIAN, euler)
    features = GAUSSIAN.features
    assert np.linalg.norm(features.exact(mean, spread) - features.target) < 1e-3
    assert np.linalg.norm(features.exact(mean, 1.1 * spread) - features.target) > 0.09


def test_coupled_and_plain_samples_estimate_the_same_error():
    item = contender(torchsde_solvers, MIXTURE, "euler | uniform | 30")
    coupled = JUDGE.error(item)
    plain = accuracy.Judge(MIXTURE).error(dataclasses.replace(item, coupled=None))
    assert coupled["route"].startswith("fine") and plain["route"].startswith("plain")
    assert coupled["stderr"] < plain["stderr"]
    gap = abs(coupled["error"] - plain["error"])
    assert gap < 4 * math.hypot(coupled["stderr"], plain["stderr"])


def test_fine_solution_is_the_data_law():
    """Weak order 2 at 240 steps leaves 1e-4; the rest is noise of the samples."""
    batches = np.stack([coupling(MIXTURE, 4096, seed).features for seed in range(8)])
    assert as_distance(squared_distance(batches - MIXTURE.features.target))["low"] == 0
    x = quasi_normals(1024, 2, 0)
    assert abs(norm.cdf(x).mean() - 0.5) < 1e-3 and abs(np.square(x).mean() - 1) < 1e-2


def test_jax_scores_are_the_librarys():
    for case in (GAUSSIAN, DIGITS):  # the second is a mixture on a subspace
        x = torch.randn(5, case.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        vp = case.process.schedule
        theirs = np.asarray(
            diffrax_solvers.score_of(case.law)(x.numpy().T.astype(np.float32), vp.alpha(0.3), vp.h(0.3))
        )
        np.testing.assert_allclose(theirs.T, case.process.model.score(x, 0.3)[0].numpy(), rtol=2e-4, atol=2e-4)


def test_given_normals_drive_our_chains():
    """Impulses through the black-box score against the exact moments of the same chain; the last step is noiseless."""
    item = contender(ours, GAUSSIAN, "Flow(order=4, eta=1.0, width=0.55) | flow grid | 7")
    grid = sc.flow_grid(GAUSSIAN.process, 7, *ours.SHAPES["gaussian"][:2], ours.SHAPES["gaussian"][3])
    m = sc.moments(GAUSSIAN.process, sc.Flow(4, 1.0, 0.55), grid)
    vectors = spectrum(GAUSSIAN.law)[1]
    mean, spread = probed(GAUSSIAN, item)
    np.testing.assert_allclose(mean, m.means[-1].numpy(), rtol=1e-9)
    np.testing.assert_allclose(spread**2, np.diag(vectors.T @ m.covariances[-1].numpy() @ vectors), rtol=1e-9)


def test_the_score_of_our_contenders_is_a_function_only():
    """No contender of the first family can know the law: its process has no closed form to offer."""
    for case in (GAUSSIAN, MIXTURE):
        process = ours.black_box(case)
        assert not process.is_affine and not process.has_exact_score
        with pytest.raises(sc.NoClosedForm):
            _ = process.data_law
        x = torch.zeros(3, case.dim)
        assert torch.equal(process.state(0.4, x).score, case.process.state(0.4, x).score)


def test_known_law_samples_the_data_law():
    item = contender(ours, MIXTURE, "ExactPosterior")
    assert item.family == ours.CLOSED and JUDGE.error(item)["high"] < 1.5e-3


def test_targets_are_hard_for_us_and_easy_for_others():
    """An unresolved record reaches a target for the others only."""
    base = {"solver": "", "grid": "", "steps": 1, "evaluations": 1, "median": 1.0, "low": 0.0, "high": 2e-2,
            "rounds": 1}  # fmt: skip
    records = [base | {"family": "sdecontrol"}, base | {"family": "torchsde"}]
    assert accuracy.fastest(records, "sdecontrol", 1e-2) is None
    assert accuracy.fastest(records, "torchsde", 1e-2) is records[1]
    lucky, timed = base | {"family": "torchsde", "median": 0.5}, base | {"family": "torchsde", "rounds": 5}
    assert accuracy.fastest([lucky, timed], "torchsde", 1e-2) is timed  # one lucky run does not win


def test_an_interrupted_run_is_taken_up_and_a_finished_one_is_not(tmp_path):
    file = tmp_path / "accuracy.json"
    for finished, kept in ((False, {"gaussian": 1}), (True, {})):
        content = {"finished": finished, "fingerprint": "a", "rounds": 5, "problems": {"gaussian": 1}}
        file.write_text(json.dumps(content))
        assert accuracy.earlier(file, "a", 5, None) == kept
    assert accuracy.earlier(file, "a", 5, "mixture") == {"gaussian": 1}
    assert accuracy.earlier(file, "b", 5, None) == accuracy.earlier(tmp_path / "none.json", "a", 5, None) == {}
