"""The CTRL claims: they hold on every built-in problem, reject wrong answers, and turn on planted bugs."""

import importlib
import math

import numpy as np
import pytest
import torch

import sdecontrol as sc
from sdecontrol.claims.base import Case, get_claim
from sdecontrol.claims.conditioning.rows import finite
from sdecontrol.claims.mutants import MUTANTS
from sdecontrol.claims.routes.labels import Component, labels_of, transition
from sdecontrol.claims.routes.latent import Latent
from sdecontrol.exact.finite_chain import FiniteChain
from sdecontrol.problems.builtin import BUILTIN, resolve
from sdecontrol.rewards import GaussianLabel

IDS = ("ctrl-lemma-1", "ctrl-lemma-2", "ctrl-lemma-3", "ctrl-lemma-4", "ctrl-theorem-1")


@pytest.mark.parametrize("name", BUILTIN)
def test_every_claim_holds_on_every_built_in_problem(name):
    problem = resolve(name).problem
    for id in IDS:
        report = get_claim(id).run(problem, quick=True)
        assert report.verdict == "holds", (id, report.reason)
        assert {row.rung for row in report.rows} == {"exact", "discrete", "monte carlo"}


@pytest.mark.parametrize("law", ["gaussian", "mixture"])
def test_they_hold_from_a_point_as_in_the_paper(law):
    laws = {"gaussian": sc.Gaussian([0.3, 0.0], [[0.6, 0.2], [0.2, 0.4]]),
            "mixture": sc.GaussianMixture([0.6, 0.4], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.2])}  # fmt: skip
    process = sc.ReverseProcess(sc.VP(0.1, 6.0), laws[law], sc.Dirac([0.4, -0.3]))
    problem = sc.Problem(process, sc.Linear([1.0, 0.0]), 1.0, name="from a point")
    for id in IDS:
        report = sc.verify(id, problem, mutants=True)
        assert report.verdict == "holds", (id, report.reason)
        assert "exact" in {row.rung for row in report.rows}


def test_mutants_on_a_subspace_of_real_data():
    report = sc.verify("ctrl-lemma-3", resolve("digits-mixture").problem, mutants=True)
    assert report.verdict == "holds" and len(report.mutants) == 5 and all(m["rejected"] for m in report.mutants)


@pytest.mark.parametrize("name", ["mixture-2d-vp", "gaussian-4d-vp"])
def test_kalman_is_bayes(name):
    """The second route against itself: the tilt by a label at points, and the law of the label given x_t."""
    subject = labels_of(resolve(name).problem)
    z = subject.points(0.7, 6, np.random.default_rng(0))
    for label in subject.labels:
        strength = 1.0 if isinstance(label, Component) else 2.5
        law, log_c = label.tilt(subject.reference, strength)
        direct = label.log_likelihood(z, strength) + subject.reference.log_density(z) - log_c
        assert law.log_density(z) == pytest.approx(direct, abs=1e-9)
        ends = subject.clean(0.7).draw(z[:1], 200_000, np.random.default_rng(1))
        weights = np.exp(label.log_likelihood(ends, strength))
        estimate = sc.Estimate.mean(weights)
        assert abs(estimate.z(math.exp(float(label.log_h(0.7, z[:1], strength)[0])))) < 4.5


def test_the_transition_of_an_affine_process_is_a_matrix_exponential():
    from scipy.linalg import expm

    latent = Latent(resolve("quadratic-ou-2d").problem)
    a, b = latent.sde.drift(0.0)
    step = transition(latent, 0.2, 0.9)
    block = expm(0.7 * np.block([[a, b[:, None]], [np.zeros((1, 3))]]))
    assert step.gains[0] == pytest.approx(block[:2, :2], abs=1e-9)
    assert step.offsets[0] == pytest.approx(block[:2, 2], abs=1e-9)
    loan = expm(0.7 * np.block([[-a, 0.81 * np.eye(2)], [np.zeros((2, 2)), a.T]]))
    assert step.covariances[0] == pytest.approx(loan[2:, 2:].T @ loan[:2, 2:], abs=1e-9)


@pytest.mark.parametrize("id, rung, mistake", [
    ("ctrl-lemma-2", "monte carlo", "label: drift scaled by the strength"),
    ("ctrl-lemma-2", "monte carlo", "label: another label"),
    ("ctrl-lemma-2", "monte carlo", "label: sign of the drift"),
    ("ctrl-lemma-3", "discrete", "label: another label"),
    ("ctrl-lemma-3", "discrete", "label: strength forgotten"),
    ("ctrl-lemma-4", "discrete", "label: drift scaled by the strength"),
])  # fmt: skip
def test_the_rungs_of_an_affine_process_see_mistakes_by_themselves(id, rung, mistake):
    """The Ornstein-Uhlenbeck problem has no data law; each of its rungs must be worth something alone."""
    claim, problem = get_claim(id), resolve("quadratic-ou-2d").problem
    wrong = next(m for m in MUTANTS if m.name == mistake)
    assert claim.first_doubt(Case(claim, problem, None, False, 0), [rung]) is None
    assert claim.first_doubt(wrong.case(claim, problem, False, 0), [rung]) is not None


def planted(monkeypatch, id, name="gaussian-1d-vp"):
    """The verdict of a claim on fresh problems, whose labels are made anew."""
    original = resolve(name).problem
    fresh = sc.Problem(original.process, original.reward, original.temperature, name="planted")
    return get_claim(id).run(fresh, quick=True).verdict


@pytest.mark.parametrize("id", IDS)
def test_a_label_that_forgets_its_normaliser_is_caught(monkeypatch, id):
    """strength log N without -log(noise sqrt(2 pi)): the tilt is right, the likelihood and log C are not."""
    original = GaussianLabel.__init__

    def without(self, direction, target, noise, strength=1.0):
        original(self, direction, target, noise, strength)
        self.constant = -strength * target**2 / (2 * noise**2)

    assert planted(monkeypatch, id) == "holds"
    monkeypatch.setattr(GaussianLabel, "__init__", without)
    assert planted(monkeypatch, id) == "violated"


@pytest.mark.parametrize("id", ["ctrl-lemma-2", "ctrl-lemma-3", "ctrl-lemma-4", "ctrl-theorem-1"])
def test_a_label_that_forgets_its_strength_is_caught(monkeypatch, id):
    original = GaussianLabel.__init__
    forgetful = lambda self, direction, target, noise, strength=1.0: original(self, direction, target, noise)  # noqa: E731
    monkeypatch.setattr(GaussianLabel, "__init__", forgetful)
    assert planted(monkeypatch, id) == "violated"


@pytest.mark.parametrize("name", ["gaussian-1d-vp", "quadratic-ou-2d"])
@pytest.mark.parametrize("id", ["ctrl-lemma-1", "ctrl-lemma-2", "ctrl-lemma-3", "ctrl-theorem-1"])
def test_an_h_transform_that_forgets_to_divide_is_caught(monkeypatch, id, name):
    """Kernels normalised, but by h of the present step in the exponent: the tilt of one step only."""

    def wrong(self, log_weight):
        log_h, log_c = self.log_values(log_weight), self.log_normalizer(log_weight)
        return FiniteChain(self.log_initial + log_h[0] - log_c, self._moved(log_h, 0.9))

    monkeypatch.setattr(FiniteChain, "conditioned", wrong)
    assert planted(monkeypatch, id, name) == "violated"


@pytest.mark.parametrize("name", ["gaussian-1d-vp", "quadratic-ou-2d"])
def test_a_value_recursion_that_skips_a_step_is_caught(monkeypatch, name):
    original = FiniteChain.log_values

    def wrong(self, log_weight):
        found = original(self, log_weight)
        return np.concatenate([found[1:], found[-1:]])

    monkeypatch.setattr(FiniteChain, "log_values", wrong)
    assert planted(monkeypatch, "ctrl-lemma-4", name) == "violated"


@pytest.mark.parametrize("name", ["gaussian-1d-vp", "quadratic-ou-2d"])
def test_a_path_kl_that_counts_the_start_twice_is_caught(monkeypatch, name):
    original = FiniteChain.path_kl

    def wrong(self, other):
        start, steps = original(self, other)
        return 2 * start, steps

    monkeypatch.setattr(FiniteChain, "path_kl", wrong)
    assert planted(monkeypatch, "ctrl-lemma-3", name) == "violated"


@pytest.mark.parametrize("id", ["ctrl-lemma-1", "ctrl-lemma-4", "ctrl-theorem-1"])
def test_a_component_label_of_the_wrong_component_is_caught(monkeypatch, id):
    module = importlib.import_module("sdecontrol.laws.labels")
    original = module._members
    monkeypatch.setattr(module, "_members", lambda label, count: ((original(label, count)[0] + 1) % count,))
    assert planted(monkeypatch, id, "mixture-2d-ve") == "violated"


def test_the_scaled_drift_of_lemma_two_is_told_from_the_power(monkeypatch):
    """combined_gaussian with the coefficients of the tilt's precision in their place is another law."""
    module = importlib.import_module("sdecontrol.claims.conditioning.power_drift")
    original = module.combined_gaussian

    def tilt(schedule, laws, coefficients, start):
        precision = sum(c / float(law.covariance) for c, law in zip(coefficients, laws))
        found = original(schedule, laws, coefficients, start)
        return sc.Gaussian(found.mean, torch.tensor([[1 / precision]]))

    monkeypatch.setattr(module, "combined_gaussian", tilt)
    assert planted(monkeypatch, "ctrl-lemma-2") == "violated"


@pytest.mark.parametrize("name", ["digits-gaussian", "quadratic-ou-2d"])
def test_finite_chains_are_made_of_the_problem(name):
    problem = resolve(name).problem
    _, chain, log_p = finite(Case(get_claim("ctrl-lemma-4"), problem))
    assert np.exp(chain.log_reference).sum() == pytest.approx(1, abs=1e-12)
    assert log_p.argmax() == np.abs(chain.nodes - labels_of(problem).linear.target).argmin()
