"""Conditioning as control: label likelihoods, their tilt, and what the rivals sample, each against another route."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

import sdecontrol as sc
from sdecontrol import conditioning
from sdecontrol.conditioning import Classifier, FiniteChain, Pairs, Regression, TargetPairs, combined_gaussian, mlp
from sdecontrol.errors import BadInput, NoClosedForm, NotDefined, NoTilt
from sdecontrol.step import StepView

MODES = sc.GaussianMixture([0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 1.0], [0.6, -1.2]], [0.3, 0.2, 0.25])
LINE = sc.GaussianMixture([0.6, 0.4], [[-1.0], [1.2]], [[[0.4]], [[0.3]]])
T = torch.tensor


def labelled(law: sc.GaussianMixture, n: int, seed: int = 0) -> Pairs:
    """Draws of the mixture with their components as labels, by numpy."""
    rng = np.random.default_rng(seed)
    y = rng.choice(len(law.weights), size=n, p=law.weights.numpy() / float(law.weights.sum()))
    roots = np.linalg.cholesky(law.covariances.numpy())
    x = law.means.numpy()[y] + np.einsum("nij,nj->ni", roots[y], rng.standard_normal((n, law.dim)))
    return Pairs(T(x), T(y), len(law.weights))


def on_the_line(reward, initial="marginal", schedule=None) -> sc.Problem:
    return sc.Problem(sc.ReverseProcess(schedule or sc.VP(0.1, 8.0), LINE, initial), reward, 1.0)


# ------------------------------------------------------------------------------------------- component labels


@pytest.mark.parametrize("t", [0.0, 0.4, 0.95])
def test_the_value_of_a_component_label_is_the_posterior_mean_of_its_probability(t):
    """log E[P(c|X_0) | x_s] by scipy's quadrature over the data, with scipy's densities."""
    problem = on_the_line(sc.ClassPosterior(LINE, 1))
    a, h = problem.process.schedule.alpha(1 - t), problem.process.schedule.h(1 - t)

    def joint(x, i):
        return float(LINE.weights[i]) * stats.norm.pdf(x, float(LINE.means[i, 0]), float(LINE.covariances[i]) ** 0.5)

    def mass(y, components):
        likelihood = lambda x: sum(joint(x, i) for i in components) * stats.norm.pdf(y, a * x, math.sqrt(h))  # noqa: E731
        return integrate.quad(likelihood, -12, 12, points=[y / a] if abs(y / a) < 12 else None)[0]

    for y in (-1.5, 0.2, 2.0):
        found = float(problem.exact.value(t, T([[y]], dtype=torch.float64)))
        assert found == pytest.approx(math.log(mass(y, [1]) / mass(y, [0, 1])), abs=1e-6)


@pytest.mark.parametrize("initial", ["marginal", "standard", "point"])
def test_the_control_of_a_component_label_is_the_slope_of_its_value(initial):
    start = sc.Dirac([0.3, -0.2]) if initial == "point" else initial
    problem = sc.Problem(sc.ReverseProcess(sc.VP(0.1, 8.0), MODES, start), sc.ClassPosterior(MODES, (0, 2)), 1.0)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    slopes = torch.stack([problem.exact.value(0.5, x + e) - problem.exact.value(0.5, x - e) for e in step], 1) / 2e-5
    u = problem.exact.control(0.5, x)
    assert torch.allclose(u, problem.process.amplitude(0.5) * slopes, atol=1e-7)
    slope = torch.func.vmap(torch.func.grad(lambda z: problem.reward(z[None])[0]))(x)
    assert torch.allclose(problem.reward.gradient(x), slope)


def test_the_tilt_by_a_component_label_keeps_its_components():
    problem = sc.Problem(sc.ReverseProcess(sc.VP(0.1, 8.0), MODES, "marginal"), sc.ClassPosterior(MODES, (0, 2)), 1.0)
    exact, x = problem.exact, torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert exact.log_normalizer == pytest.approx(math.log(0.7), abs=1e-12)
    bayes = problem.reward(x) + MODES.log_prob(x) - math.log(0.7)
    assert torch.allclose(exact.terminal.log_prob(x), bayes, atol=1e-10)
    middle = exact.value(0.5, x) + problem.process.noised(0.5).log_prob(x) - math.log(0.7)
    assert torch.allclose(exact.marginal(0.5).log_prob(x), middle, atol=1e-10)


def test_a_component_label_from_a_standard_start_by_quadrature():
    problem = on_the_line(sc.ClassPosterior(LINE, 0), "standard")
    exact = problem.exact
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    values = exact.value(0.0, T(nodes)[:, None]).exp().numpy()
    assert exact.log_normalizer == pytest.approx(math.log(values @ weights / weights.sum()), abs=1e-9)
    line = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    assert float(torch.trapezoid(exact.terminal.log_prob(line).exp(), line[:, 0])) == pytest.approx(1, abs=1e-8)
    bayes = problem.reward(line) + exact.reference.log_prob(line) - exact.log_normalizer
    assert torch.allclose(exact.terminal.log_prob(line)[1500:2500], bayes[1500:2500], atol=1e-8)


def test_a_component_label_on_a_subspace_and_its_errors():
    basis = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    law = sc.Subspace(basis, MODES, 0.1)
    problem = sc.Problem(sc.ReverseProcess(sc.VP(), law, "marginal"), sc.ClassPosterior(law, 1), 1.0)
    x = law.sample(6, sc.Noise(0))
    assert problem.exact.log_normalizer == pytest.approx(math.log(0.3))
    grad = torch.func.vmap(torch.func.grad(lambda z: problem.reward(z[None])[0]))(x)
    assert torch.allclose(problem.reward.gradient(x), grad, atol=1e-10)
    with pytest.raises(NoClosedForm, match="closed mean at strength = temperature"):
        sc.Problem(problem.process, sc.ClassPosterior(law, 1, 2.0), 1.0).exact.value(0.5, x)
    for wrong in ([], [0, 0], [3], -1):
        with pytest.raises(BadInput, match="components"):
            sc.ClassPosterior(MODES, wrong)
    with pytest.raises(BadInput, match="GaussianMixture"):
        sc.ClassPosterior(sc.Gaussian([0.0], [[1.0]]), 0)
    with pytest.raises(BadInput, match="strength"):
        sc.ClassPosterior(MODES, 0, float("nan"))


# ------------------------------------------------------------------------------------------- learned likelihoods


def test_a_linear_classifier_finds_the_maximum_likelihood_of_scipy():
    wide = sc.GaussianMixture(MODES.weights, MODES.means, [1.0, 0.8, 0.9])
    pairs = labelled(wide, 300)
    classifier = Classifier(mlp(2, 3, hidden=0), 3)
    adam = torch.optim.Adam(classifier.parameters(), lr=0.05)
    conditioning.fit_classifier(classifier, pairs, optimiser=adam, steps=600, progress=False)
    x, y = pairs.x.numpy(), pairs.y.numpy()

    def loss(theta):
        logits = x @ theta[:6].reshape(2, 3) + theta[6:]
        return np.mean(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y])

    best = optimize.minimize(loss, np.zeros(9), method="BFGS").fun
    assert classifier.loss(pairs).item() == pytest.approx(best, abs=1e-5)


def test_calibration_undoes_a_temperature():
    """Logits of the exact posterior times 3: the temperature found is 3 within its own standard error."""
    label = [sc.ClassPosterior(MODES, i) for i in range(3)]

    class Sharp(torch.nn.Module):
        def forward(self, x):
            return 3 * torch.stack([r(x) for r in label], 1)

    classifier, held = Classifier(Sharp(), 3), labelled(MODES, 4_000, seed=1)
    before = classifier.loss(held).item()
    found = classifier.calibrate(held)
    logits = Sharp()(held.x).numpy()
    y = held.y.numpy()
    direct = optimize.minimize_scalar(
        lambda t: np.mean(np.logaddexp.reduce(logits / t, axis=1) - logits[np.arange(len(y)), y] / t),
        bounds=(0.1, 20), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    assert found == pytest.approx(direct.x, rel=1e-5) and found == pytest.approx(3, rel=0.15)
    assert classifier.loss(held).item() < before - 0.05
    x = held.x[:50]
    assert torch.allclose(classifier.reward(1, 2.0)(x), 2 * torch.log_softmax(Sharp()(x) / found, 1)[:, 1])
    assert int(classifier.confusion(held).sum()) == 4_000


def test_a_calibrated_classifier_is_a_reward_whose_tilt_is_the_power():
    """gamma = 4 on the line, a fitted network: value and normaliser against scipy's quadrature."""
    classifier = Classifier(mlp(1, 2, width=8, hidden=1), 2)
    conditioning.fit_classifier(classifier, labelled(LINE, 500), steps=100, progress=False)
    problem = on_the_line(classifier.reward(1, 4.0))
    tilted = LINE.tilt(classifier.reward(1, 4.0), 1.0)
    with torch.no_grad():
        log_p = lambda x: 4 * float(classifier.log_prob(T([[x]]))[0, 1]) + float(LINE.log_prob(T([[x]])))  # noqa: E731
        mass = integrate.quad(lambda x: math.exp(log_p(x)), -8, 8)[0]
    assert tilted.log_normalizer == pytest.approx(math.log(mass), abs=1e-7)
    solved = sc.solve_hjb(problem, [(-7.0, 7.0, 400)])
    start = problem.process.initial_law(0.0)
    line = torch.linspace(-6, 6, 801, dtype=torch.float64)[:, None]
    total = torch.trapezoid((solved.value(0.0, line) + start.log_prob(line)).exp(), line[:, 0])
    assert float(total) == pytest.approx(mass, rel=1e-6)


def test_two_labels_add():
    one, two = Classifier(mlp(2, 2, hidden=0, seed=1), 2), Classifier(mlp(2, 3, hidden=0, seed=2), 3)
    joint = one.reward(1, 0.5) + two.reward(2, 3.0)
    x = torch.randn(7, 2, dtype=torch.float64)
    expected = 0.5 * one.log_prob(x)[:, 1] + 3 * two.log_prob(x)[:, 2]
    assert torch.allclose(joint(x), expected) and torch.allclose((joint + joint)(x), 2 * expected)
    slope = torch.func.vmap(torch.func.grad(lambda z: joint(z[None])[0]))(x)
    assert torch.allclose(joint.gradient(x), slope)


def test_a_linear_regression_is_a_gaussian_label():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2_000, 2)) @ np.array([[1.0, 0.2], [0.0, 0.6]])
    y = x @ np.array([0.7, -1.1]) + 0.4 + 0.5 * rng.standard_normal(2_000)
    regression = Regression(torch.nn.Linear(2, 1, dtype=torch.float64))
    adam = torch.optim.Adam(regression.parameters(), lr=0.05)
    conditioning.fit_regression(regression, TargetPairs(T(x), T(y)), optimiser=adam, steps=800, progress=False)
    design = np.column_stack([x, np.ones(len(x))])
    ols, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    assert regression.network.weight.detach().numpy()[0] == pytest.approx(ols[:2], abs=1e-4)
    assert regression.noise == pytest.approx(math.sqrt(residual[0] / len(x)), abs=1e-4)
    label, points = regression.as_label(1.5, 2.0), torch.randn(5, 2, dtype=torch.float64)
    assert torch.allclose(label(points), regression.reward(1.5, 2.0)(points), atol=1e-12)
    with pytest.raises(NotDefined, match="linear"):
        Regression(mlp(2, 1)).as_label(0.0)


def test_a_fit_goes_on_bit_for_bit(tmp_path):
    def fresh():
        return Classifier(mlp(2, 3, seed=4), 3)

    pairs, options = labelled(MODES, 200), dict(n=32, progress=False)
    whole = fresh()
    conditioning.fit_classifier(whole, pairs, steps=40, **options)
    stopped = fresh()
    optimiser = torch.optim.Adam(stopped.parameters(), lr=1e-2)
    original = optimiser.step

    def fail_at_20():
        optimiser.count = getattr(optimiser, "count", 0) + 1
        if optimiser.count > 20:
            raise KeyboardInterrupt
        original()

    optimiser.step = fail_at_20
    with pytest.raises(KeyboardInterrupt):
        conditioning.fit_classifier(stopped, pairs, steps=40, optimiser=optimiser, checkpoint=tmp_path, **options)
    again = fresh()
    conditioning.fit_classifier(again, pairs, steps=40, checkpoint=tmp_path, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))


# ------------------------------------------------------------------------------------------- noised classifiers


def test_the_exact_noised_classifier_is_doob_at_strength_one():
    problem = on_the_line(sc.ClassPosterior(LINE, 1))
    transition = sc.Ancestral().transition(problem.process, 0.5, 0.52)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    step = StepView(problem.process, transition, 0, problem.process.state(0.5, x))
    guided = sc.guidance.classifier(problem, conditioning.exact_classifier(problem))(step)
    assert torch.allclose(guided, sc.guidance.doob(problem, form="score")(step), atol=1e-12)


def test_a_trained_noised_classifier_approaches_the_exact_one():
    schedule, problem = sc.VP(0.1, 8.0), on_the_line(sc.ClassPosterior(LINE, 1))
    model = conditioning.NoisedClassifier(schedule, 1, 2)
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    conditioning.fit_noised(model, labelled(LINE, 4_000), optimiser=adam, steps=600, n=512,
                            decay=sc.finetune.cosine, progress=False)  # fmt: skip
    exact, worst = conditioning.exact_classifier(problem), 0.0
    for s in (0.05, 0.3, 0.7):
        x = problem.process.noised(1 - s).sample(2_000, sc.Noise(3))
        gap = model.of(1)(x, s).exp() - exact(x, s).exp()
        worst = max(worst, float(gap.abs().mean()))
    assert worst < 0.03  # of a probability; a constant classifier is off by 0.2


def test_the_drift_scaled_by_a_strength_misses_the_power():
    """The gap of correction 1: gamma (y - x)/(tau^2 + P) for gamma (y - x)/(tau^2 + gamma P), and its law."""
    process = sc.ReverseProcess(sc.VP(), sc.Gaussian([0.0], [[1.0]]))
    one, four = (sc.Problem(process, sc.GaussianLabel([1.0], 1.5, 0.5, g), 1.0) for g in (1.0, 4.0))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    h = process.schedule.h(0.4)  # a^2 + h = 1, so P = h
    ratio = conditioning.scaled_drift(one, 4.0)(0.6, x) / four.exact.control(0.6, x)
    assert ratio.numpy() == pytest.approx((0.25 + 4 * h) / (0.25 + h), rel=1e-10)
    posterior, start = one.exact.terminal, sc.Gaussian([0.0], [[1.0]])
    law = combined_gaussian(process.schedule, [process.data_law, posterior], [-3.0, 4.0], start)
    path = sc.simulate(process, conditioning.scaled_drift(one, 4.0), grid=sc.TimeGrid.log_snr(200), n=20_000,
                       kernel=sc.SecondOrder(), noise=sc.Noise(1), keep="ends")  # fmt: skip
    mean = sc.Estimate.mean(path.terminal[:, 0])
    variance = sc.Estimate.mean((path.terminal[:, 0] - float(law.mean)).square())
    assert abs(mean.z(float(law.mean))) < 4 and abs(variance.z(float(law.covariance))) < 4
    assert abs(variance.z(float(four.exact.terminal.covariance))) > 20


@pytest.mark.parametrize("coefficients", [(0.5, 0.5), (-3.0, 4.0), (-1.0, 0.5, 1.5)])
def test_the_law_of_combined_scores_is_that_of_the_moment_equations(coefficients):
    schedule, start = sc.VP(0.1, 8.0), sc.Gaussian([0.2], [[0.9]])
    laws = [sc.Gaussian([m], [[v]]) for m, v in ((0.0, 1.0), (1.2, 0.2), (0.5, 0.6))[: len(coefficients)]]
    found = combined_gaussian(schedule, laws, coefficients, start)

    def rate(t, y):
        s = 1 - t
        a, h, g2, f = schedule.alpha(s), schedule.h(s), schedule.g2(s), schedule.f(s)
        spread = [a * a * float(law.covariance) + h for law in laws]
        slope = sum(c / v for c, v in zip(coefficients, spread))
        pull = sum(c * a * float(law.mean) / v for c, v, law in zip(coefficients, spread, laws))
        return [(-f - g2 * slope) * y[0] + g2 * pull, 2 * (-f - g2 * slope) * y[1] + g2]

    end = integrate.solve_ivp(rate, (0, 1), [0.2, 0.9], rtol=1e-11, atol=1e-13).y[:, -1]
    assert [float(found.mean), float(found.covariance)] == pytest.approx(list(end), rel=1e-8)
    pointed = combined_gaussian(schedule, laws, coefficients, sc.Dirac([0.2]))
    end = integrate.solve_ivp(rate, (0, 1), [0.2, 0.0], rtol=1e-11, atol=1e-13).y[:, -1]
    assert [float(pointed.mean), float(pointed.covariance)] == pytest.approx(list(end), rel=1e-8)


def test_bad_coefficients_of_scores():
    law = sc.Gaussian([0.0], [[1.0]])
    with pytest.raises(BadInput, match="sum 1"):
        combined_gaussian(sc.VP(), [law, law], [1.0, 1.0], law)
    with pytest.raises(BadInput, match="line"):
        combined_gaussian(sc.VP(), [sc.Gaussian([0.0, 0.0], [1.0, 1.0])], [1.0], law)


# ------------------------------------------------------------------------------------------- the CFG loss


def test_the_cfg_loss_finds_the_conditional_score():
    """Linear problem: the residual learned approaches eps of the conditional law; the null label that of the data."""
    process = sc.ReverseProcess(sc.VP(0.1, 8.0), LINE, "marginal")
    model = conditioning.ConditionalNoise(process, 2, dropout=0.2)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    zero = model.model(0).bind(process.schedule).score(x, 0.5)[0]
    assert torch.allclose(zero, process.model.score(x, 0.5)[0], atol=1e-12)  # the pretrained model at first
    adam = torch.optim.Adam(model.parameters(), lr=5e-3)
    conditioning.fit_conditional(model, labelled(LINE, 8_000), optimiser=adam, steps=800, n=512,
                                 decay=sc.finetune.cosine, progress=False)  # fmt: skip
    for label, law in ((0, LINE.components[0]), (1, LINE.components[1]), (None, LINE)):
        for s in (0.2, 0.6):
            noised = law.noised(process.schedule.alpha(s), process.schedule.h(s))
            at = noised.sample(2_000, sc.Noise(5))
            gap = model.model(label).bind(process.schedule).score(at, s)[0] - noised.score(at)
            assert float(gap.square().mean() * process.schedule.h(s)) < 0.02  # of eps, whose mean square is 1
    with pytest.raises(NotDefined, match="ReverseProcess"):
        conditioning.ConditionalNoise(sc.problems.linear_ou(2).process, 2)
    with pytest.raises(BadInput, match="dropout"):
        conditioning.ConditionalNoise(process, 2, dropout=1.0)


# ------------------------------------------------------------------------------------------- finite chains


def a_chain(states=4, steps=3, seed=0) -> FiniteChain:
    rng = np.random.default_rng(seed)
    return FiniteChain.of(rng.dirichlet(np.ones(states)), rng.dirichlet(np.ones(states), size=(steps, states)))


def paths_of(chain: FiniteChain) -> dict[tuple[int, ...], float]:
    """Every path with its probability."""
    found = {}
    for path in itertools.product(range(chain.states), repeat=len(chain.log_kernels) + 1):
        log_p = chain.log_initial[path[0]] + sum(k[a, b] for k, a, b in zip(chain.log_kernels, path, path[1:]))
        found[path] = math.exp(log_p)
    return found


def test_the_h_transform_is_the_tilt_of_every_path():
    chain = a_chain()
    labels = [np.log(np.array([0.9, 0.2, 0.5, 0.1])), np.log(np.array([0.3, 0.3, 0.8, 0.05]))]
    weight = conditioning.label_weight(labels, [2.0, 0.5])
    before, after = paths_of(chain), paths_of(chain.conditioned(weight))
    mass = sum(p * math.exp(weight[path[-1]]) for path, p in before.items())
    assert chain.log_normalizer(weight) == pytest.approx(math.log(mass), abs=1e-12)
    assert all(after[q] == pytest.approx(p * math.exp(weight[q[-1]]) / mass, rel=1e-10) for q, p in before.items())
    kl = sum(p * math.log(p / before[q]) for q, p in after.items())
    assert sum(chain.conditioned(weight).path_kl(chain)) == pytest.approx(kl, rel=1e-10)
    ends = chain.conditioned(weight).marginals()[-1]
    scaled = chain.scaled(conditioning.label_weight(labels, [2.0, 0.5]) / 3, 3.0).marginals()[-1]
    assert np.abs(ends - scaled).max() > 0.01
    assert chain.scaled(weight, 1.0).marginals()[-1] == pytest.approx(ends, abs=1e-12)


def test_two_steps_of_conditioning_are_one():
    chain, one, two = a_chain(seed=3), np.log([0.9, 0.2, 0.5, 0.1]), np.log([0.2, 0.9, 0.4, 0.3])
    twice, joint = chain.conditioned(one).conditioned(two), chain.conditioned(one + two)
    assert np.exp(twice.log_kernels) == pytest.approx(np.exp(joint.log_kernels), abs=1e-12)


def test_impossible_labels_and_bad_chains():
    chain = a_chain()
    only = np.array([0.0, -np.inf, -np.inf, -np.inf])
    assert chain.conditioned(only).marginals()[-1] == pytest.approx([1, 0, 0, 0], abs=1e-12)
    with pytest.raises(NoTilt, match="E w"):
        chain.conditioned(np.full(4, -np.inf))
    with pytest.raises(BadInput, match="NaN"):
        chain.log_values([0.0, np.nan, 0.0, 0.0])
    with pytest.raises(BadInput, match="one a state"):
        chain.log_values([0.0])
    with pytest.raises(BadInput, match="sum of 1"):
        FiniteChain.of([0.5, 0.6], [np.eye(2)])
    with pytest.raises(BadInput, match="kernels of shape"):
        FiniteChain.of([0.5, 0.5], np.eye(2))
    with pytest.raises(BadInput, match="strength"):
        conditioning.label_weight([only], [np.nan])


# ------------------------------------------------------------------------------------------- bad input


def test_bad_pairs():
    x, y = torch.randn(6, 2, dtype=torch.float64), T([0, 1, 2, 0, 1, 2])
    with pytest.raises(BadInput, match="no pair of class 3"):
        Pairs(x, y, 4)
    assert Pairs(x, y, 4, empty=True).counts.tolist() == [2, 2, 2, 0]
    with pytest.raises(BadInput, match="labels from 0 to 2"):
        Pairs(x, y, 2)
    with pytest.raises(BadInput, match="labels from -1"):
        Pairs(x, y - 1, 3)
    with pytest.raises(BadInput, match="integers"):
        Pairs(x, y.double(), 3)
    with pytest.raises(BadInput, match="one for each"):
        Pairs(x, y[:5], 3)
    with pytest.raises(BadInput, match="NaN"):
        Pairs(x * float("nan"), y, 3)
    with pytest.raises(BadInput, match="floating"):
        TargetPairs(x, y)
    with pytest.raises(BadInput, match="NaN"):
        TargetPairs(x, y.double() / 0)
    with pytest.raises(BadInput, match="held out"):
        Pairs(x, y, 3).split(0.01)
    with pytest.raises(BadInput, match="between 0 and 1"):
        Pairs(x, y, 3).split(1.5)
    train, held = Pairs(x, y, 3).split(0.5)
    assert len(train) == len(held) == 3
    assert sorted(torch.cat([train.x, held.x]).tolist()) == sorted(x.tolist())


def test_bad_classifiers():
    pairs = labelled(MODES, 60)
    classifier = Classifier(mlp(2, 3, hidden=0), 3)
    with pytest.raises(BadInput, match="one logit a class"):
        conditioning.fit_classifier(Classifier(mlp(2, 4), 3), pairs, progress=False)
    with pytest.raises(BadInput, match="pairs of 3 classes"):
        conditioning.fit_classifier(Classifier(mlp(2, 4), 4), pairs, progress=False)
    for wrong in (3, -1, 1.0, True):
        with pytest.raises(BadInput, match="label"):
            classifier.reward(wrong)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(BadInput, match="strength"):
            classifier.reward(0, wrong)
        with pytest.raises(BadInput, match="strength"):
            conditioning.scaled_drift(on_the_line(sc.ClassPosterior(LINE, 0)), wrong)
    with pytest.raises(BadInput, match="torch module"):
        Classifier(lambda x: x, 2)
    with pytest.raises(BadInput, match="classes"):
        Classifier(mlp(2, 1), 1)
    with pytest.raises(BadInput, match="minibatch"):
        conditioning.fit_classifier(classifier, pairs, n=0, progress=False)
    with pytest.raises(BadInput, match="label"):
        conditioning.NoisedClassifier(sc.VP(), 1, 2).of(2)
    with pytest.raises(BadInput, match="target"):
        Regression(mlp(2, 1)).reward(float("nan"))


def test_calibration_without_an_error_has_no_temperature():
    """Every held-out pair classified right: the likelihood grows as the temperature falls to zero."""
    x = T([[-2.0], [-1.0], [1.0], [2.0]], dtype=torch.float64)

    class Sign(torch.nn.Module):
        def forward(self, x):
            return torch.cat([-x, x], 1)

    with pytest.raises(BadInput, match="no finite best temperature"):
        Classifier(Sign(), 2).calibrate(Pairs(x, T([0, 0, 1, 1]), 2))
