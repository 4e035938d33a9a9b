"""Samplers of the tilt against the chain's own closed forms: what is exact, what is biased and by how much."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import Tensor

import sdecontrol as sc
from sdecontrol.errors import BadInput, NotDefined, NotFinite, UnknownName
from sdecontrol.steering.potentials import potential_of
from sdecontrol.steering.resampling import Choice, Systematic, comb
from sdecontrol.steering.scores import gelbrich
from sdecontrol.steering.smc import value_to_go
from sdecontrol.steering.suprema import supremum
from sdecontrol.step import StepView

KERNEL = sc.Ancestral()
Z_MAX = 4.5  # standard errors: one such test fails by chance once in 150 000 runs


def line(g: float = 1.0, k: float = 0.3, temperature: float = 0.3, variance: float = 1.0) -> sc.Problem:
    process = sc.ReverseProcess(sc.VP(), sc.Gaussian([0.5], [[variance]]))
    return sc.Problem(process, sc.Quadratic([g], [[k]]), temperature)


def grid(steps: int = 6) -> sc.TimeGrid:
    return sc.TimeGrid.log_snr(steps, s_min=2e-2)


def chain_of(problem: sc.Problem, steps: int = 6) -> Any:
    return problem.discretise(KERNEL, grid(steps)).exact


def draw(sampler: Any, n: int, steps: int = 6, seed: int = 0) -> Any:
    return sampler.run(sampler.problem, grid=grid(steps), kernel=KERNEL, n=n, noise=sc.Noise(seed))


def first(x: Tensor) -> Tensor:
    return x[:, 0]


def z_of_normalizer(particles: Any, truth: float) -> float:
    """z of the mean over populations of Z_hat / Z - 1, which is unbiased where log Z_hat is not."""
    weights = (particles.log_weights - truth).exp().reshape(particles.populations, -1).mean(1)
    return float(sc.Estimate.mean(weights).z(1.0))


def counting(particles: Any) -> float:
    """Effective number of populations, by the weights of their log Z."""
    return sc.effective_sample_size(particles.log_weights.reshape(particles.populations, -1).logsumexp(1))


# ------------------------------------------------------------------ exactness of the weights


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_z_is_unbiased_for_every_potential_and_threshold(threshold, potential):
    problem = line(temperature=2.0 if potential == "sum" else 0.6)  # colder sums: few populations count, see below
    truth = chain_of(problem).log_normalizer
    sampler = sc.steering.fk(problem, 8, threshold=threshold, potential=potential)
    particles = draw(sampler, 64_000, seed=int(10 * threshold))
    assert counting(particles) > 0.5 * particles.populations  # else z would say nothing
    assert abs(z_of_normalizer(particles, truth)) < Z_MAX
    assert abs(particles.log_normalizer.z(truth)) < Z_MAX
    # the whole unnormalised measure, not only its mass: E mean(w f) = Z E_tilt f
    w = (particles.log_weights - truth).exp()
    products = (w * first(particles.x)).reshape(particles.populations, -1).mean(1)
    assert abs(sc.Estimate.mean(products).z(float(chain_of(problem).terminal.mean))) < Z_MAX


def test_the_route_says_when_few_populations_count():
    cold = line(temperature=0.6)
    for potential, least, most in (("sum", 0.0, 0.2), ("max", 0.8, 1.0)):
        particles = draw(sc.steering.fk(cold, 8, threshold=1.0, potential=potential), 64_000)
        share = counting(particles) / particles.populations
        assert least < share < most
        assert f"{counting(particles):.3g} of 8000 populations count" in particles.log_normalizer.route


@pytest.mark.parametrize("form", ["value", "score"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_z_is_unbiased_under_a_proposal(threshold, form):
    problem = line(g=0.5, temperature=0.6)
    particles = draw(sc.steering.twisted(problem, 8, form=form, threshold=threshold), 64_000, 12)
    assert abs(z_of_normalizer(particles, chain_of(problem, 12).log_normalizer)) < Z_MAX


@pytest.mark.parametrize("kernel", [sc.SecondOrder(), sc.EulerMaruyama(), sc.DDIM(0.5)], ids=lambda k: type(k).__name__)
def test_z_for_kernels_of_two_calls_with_a_noisy_end_and_with_memory(kernel):
    problem, fine = line(g=0.5, temperature=0.6), sc.TimeGrid.uniform(30)
    sampler = sc.steering.fk(problem, 8, threshold=1.0, potential="max", every=4)
    particles = sampler.run(problem, grid=fine, kernel=kernel, n=48_000, noise=sc.Noise(1))
    assert abs(z_of_normalizer(particles, problem.discretise(kernel, fine).exact.log_normalizer)) < Z_MAX


def test_the_proposals_of_twisted_sampling_are_those_of_doob_where_the_plug_in_is_exact():
    problem = line(k=0.0)  # a linear reward and Gaussian data: grad r(x0_hat) = grad v
    transition = KERNEL.transition(problem.process, 0.5, 0.6)
    step = StepView(
        problem.process,
        transition,
        0,
        problem.process.state(0.5, torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]),
    )
    grad_v = sc.guidance.doob(problem).gradient(0.5, step.x)
    proposal = {form: sc.steering.twisted(problem, 4, form=form).scheme.proposal for form in ("value", "score")}
    assert torch.allclose(proposal["value"](step), transition.std * grad_v / (0.3 * step.dt**0.5), rtol=1e-10)
    assert torch.allclose(proposal["score"](step), sc.guidance.doob(problem, form="score")(step), rtol=1e-10)


def test_z_under_a_proposal_of_the_wrong_sign_another_start_and_rare_readings():
    problem = line(g=0.4, temperature=0.8)
    start = sc.Gaussian([0.3], [[1.2]])
    proposal = -0.5 * sc.guidance.plug_in(problem)
    sampler = sc.steering.fk(problem, 6, proposal=proposal, initial=start, every=3, threshold=0.9)
    assert abs(z_of_normalizer(draw(sampler, 90_000), chain_of(problem).log_normalizer)) < Z_MAX


class Dropping(Systematic):
    """The published bug: the weights of a population that is not resampled are forgotten."""

    def choose(self, log_weights: Tensor, u: Tensor) -> Choice:
        chosen = super().choose(log_weights, u)
        stay = torch.arange(log_weights.shape[1]).expand(log_weights.shape)
        level = log_weights.logsumexp(1, keepdim=True) - math.log(log_weights.shape[1])
        return Choice(stay if chosen is None else chosen.ancestors, torch.ones_like(level) > 0, level)


def test_dropped_weights_leave_the_mean_where_it_was_and_accumulated_ones_do_not():
    problem = line(g=0.5, k=0.0, temperature=1.5)  # mild enough that no population is ever poor
    chain, sampler = chain_of(problem), sc.steering.fk(problem, 64)
    dropped = sc.steering.FeynmanKac(problem, replace(sampler.scheme, rule=Dropping(0.5)))
    tilted, reference = float(chain.terminal.mean), float(chain.reference.mean)
    right, wrong = (draw(s, 64_000).expect(first) for s in (sampler, dropped))
    assert abs(right.z(tilted)) < Z_MAX  # bias 1/64 of an effect that is itself 0.1
    assert wrong.z(tilted) < -10 and abs(wrong.z(reference)) < Z_MAX


def test_the_exact_value_and_the_exact_kernel_give_constant_weights():
    problem = line(k=0.0)  # a linear reward: the optimal kernel is a shift of the mean
    chain = chain_of(problem)
    for threshold in (0.0, 0.5, 1.0):
        exact = dict(value=chain, proposal=chain.control, initial=chain.initial, threshold=threshold)
        particles = draw(sc.steering.fk(problem, 4, **exact), 4_000)
        # float32 normals, float64 arithmetic: weights of size |log Z| + sum |w . xi|, some tens of terms
        assert float((particles.log_weights - chain.log_normalizer).abs().max()) < 1e-10
        assert torch.allclose(particles.ess, torch.full((1_000,), 4.0, dtype=torch.float64), rtol=1e-9)
        untilted = draw(sc.steering.fk(problem, 4, value=chain, proposal=chain.control, threshold=threshold), 4_000)
        assert float(untilted.log_weights.std()) > 0.01  # the start is not p_noise
    wrong = draw(sc.steering.fk(problem, 4, **(exact | dict(proposal=0.9 * chain.control))), 4_000)
    assert float(wrong.log_weights.std()) > 0.01


def test_a_running_reward_is_part_of_the_weights_and_of_the_start():
    process = sc.DiffusionProcess(sc.Affine([[-1.0]]), 1.0, sc.Gaussian([0.3], [[0.5]]))
    running = sc.Quadratic([0.4], [[1.6]])
    problem = sc.Problem(process, sc.Linear([0.5]), temperature=0.5, running_reward=running)
    uniform, kernel = sc.TimeGrid.uniform(8), sc.EulerMaruyama()
    chain = problem.discretise(kernel, uniform).exact
    for value in (chain, lambda t, x: 0.3 * first(x)):
        sampler = sc.steering.fk(problem, 8, value=value, threshold=1.0)
        particles = sampler.run(problem, grid=uniform, kernel=kernel, n=64_000, noise=sc.Noise(3))
        assert abs(z_of_normalizer(particles, chain.log_normalizer)) < Z_MAX
    drawn = sc.steering.rejection(problem, bound=0.5)
    with pytest.raises(BadInput, match="above bound"):  # the linear reward has no bound: found out, not ignored
        drawn.run(problem, grid=uniform, kernel=kernel, n=20_000)
    bounded = sc.Problem(process, sc.Quadratic([0.5], [[1.0]]), temperature=0.5, running_reward=running)
    chain = bounded.discretise(kernel, uniform).exact
    with pytest.raises(NotDefined, match="bound="):
        sc.steering.rejection(bounded).run(bounded, grid=uniform, kernel=kernel, n=10)
    accepted = sc.steering.rejection(bounded, bound=0.125 + 0.05).run(bounded, grid=uniform, kernel=kernel, n=20_000)
    assert abs(accepted.expect(first).z(float(chain.terminal.mean))) < Z_MAX
    assert abs(accepted.proposals.z(accepted.expected)) < Z_MAX
    total = 0.5 * (chain.path_kl + chain.log_normalizer)
    assert abs(accepted.expect(lambda x: accepted.rewards).z(total)) < Z_MAX


# ------------------------------------------------------------------ rates


def slope(sizes: list[int], values: list[float], errors: list[float]) -> tuple[float, float]:
    """Slope of log value against log size by weighted least squares, with its standard error."""
    x, y = np.log(sizes), np.log(values)
    w = (np.array(values) / np.array(errors)) ** 2
    centre = np.average(x, weights=w)
    spread = float(w @ (x - centre) ** 2)
    return float(w @ ((x - centre) * y)) / spread, spread**-0.5


@pytest.mark.parametrize(
    "make, steps, populations",
    [(sc.steering.fk, 6, 7_000), (sc.steering.twisted, 10, 20_000)],
    ids=["fk", "twisted"],
)
def test_bias_falls_as_one_over_n_and_the_error_as_its_root(make, steps, populations):
    problem = line()
    truth = float(chain_of(problem, steps).terminal.mean)
    sizes, bias, error, rms, rms_error = [8, 16, 32], [], [], [], []
    for size in sizes:
        particles = draw(make(problem, size), populations * size, steps, seed=size)
        gap = particles.means(particles.x)[:, 0] - truth
        mean, square = sc.Estimate.mean(gap), sc.Estimate.mean(gap**2)
        bias.append(-mean.value)
        error.append(mean.stderr)
        rms.append(square.value**0.5)
        rms_error.append(square.stderr / 2 / square.value**0.5)
    found, sigma = slope(sizes, bias, error)
    assert sigma < 0.125 and abs(found + 1) < 4 * sigma  # a bias of order N^-1/2 would be 4 sigma away
    found, sigma = slope(sizes, rms, rms_error)
    # the variance is V/N (1 + c/N): a relative change of c/16 in its root over two octaves, with |c| < 1 here
    assert abs(found + 0.5) < 4 * sigma + 1 / 16 / math.log(4)


# ------------------------------------------------------------------ resampling


def test_systematic_resampling_copies_by_weight():
    rng = np.random.default_rng(0)
    w = torch.tensor(rng.dirichlet(np.full(7, 0.4), size=50))
    w[0] = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.5, 0.0, 0.0])
    counts = torch.zeros(50, 7, dtype=torch.float64)
    points = 2_000
    for i in range(points):  # the mean over u by the midpoint rule, exact up to one jump an edge
        ancestors = comb(w, torch.full((50,), (i + 0.5) / points, dtype=torch.float64), 7)
        copies = torch.nn.functional.one_hot(ancestors, 7).sum(1).double()
        assert bool((copies - 7 * w).abs().max() < 1 + 1e-12)
        counts += copies
    assert float((counts / points - 7 * w).abs().max()) < 2 / points
    assert bool((counts[w == 0] == 0).all())


def test_populations_are_chosen_one_by_one():
    rng = np.random.default_rng(1)
    log_w, u = torch.tensor(rng.normal(size=(20, 6)) * 2), torch.tensor(rng.uniform(size=20))
    rule, order = Systematic(0.5), torch.tensor(rng.permutation(20))
    one, other = rule.choose(log_w, u), rule.choose(log_w[order], u[order])
    assert one is not None and other is not None
    assert 0 < int(one.resampled.sum()) < 20
    assert torch.equal(one.ancestors[order], other.ancestors) and torch.equal(one.level[order], other.level)
    kept = one.ancestors[~one.resampled[:, 0]]
    assert torch.equal(kept, torch.arange(6).expand_as(kept))
    assert rule.choose(torch.zeros(3, 4), u[:3]) is None


def test_populations_never_mix_and_the_same_noise_gives_the_same_samples():
    mixture = sc.GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [1.5, 1.0]], [[0.3, 0.4], [0.5, 0.2]])
    problem = sc.Problem(sc.ReverseProcess(sc.VP(), mixture), sc.Linear([1.0, -2.0]), 0.4)
    for sampler in (sc.steering.twisted(problem, 5), sc.steering.svdd(problem, 5, temperature=0.4)):
        many, again = draw(sampler, 40, seed=2), draw(sampler, 40, seed=2)
        assert torch.equal(many.x, again.x) and torch.equal(many.log_weights, again.log_weights)
        few = draw(sampler, 15, seed=2)
        assert torch.allclose(few.x, many.x[: len(few.x)], rtol=1e-11, atol=1e-11)
        assert not torch.equal(draw(sampler, 40, seed=3).x, many.x)
    blocks = sc.Noise(0).block_size((2_000, 2))
    large = sc.steering.fk(problem, 2_000)  # a population is larger than a block of paths, several blocks of them
    assert torch.allclose(draw(large, 2_000).x, draw(large, 2_000 * (blocks + 1)).x[:2_000], rtol=1e-11, atol=1e-11)


def test_the_default_value_is_the_reward_at_the_posterior_mean_and_what_this_step_collects():
    gaussian = sc.ReverseProcess(sc.VP(), sc.Gaussian([0.5], [[1.0]]))
    problem = sc.Problem(gaussian, sc.Linear([2.0]), running_reward=lambda t, x: t + first(x))
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    step = StepView(gaussian, KERNEL.transition(gaussian, 0.5, 0.6), 0, gaussian.state(0.5, x))
    a, h = gaussian.schedule.alpha(0.5), gaussian.schedule.h(0.5)
    posterior_mean = (0.5 * h + a * first(x)) / (a * a + h)
    assert torch.allclose(value_to_go(problem, None)(step), 2 * posterior_mean + 0.1 * (0.5 + first(x)), rtol=1e-12)


class Rotating(Systematic):
    """Particle j takes the place of j + 1, with the mean weight."""

    def choose(self, log_weights: Tensor, u: Tensor) -> Choice:
        p, n = log_weights.shape
        ancestors = ((torch.arange(n) + 1) % n).expand(p, n)
        return Choice(ancestors, torch.ones(p, 1) > 0, log_weights.logsumexp(1, keepdim=True) - math.log(n))


def test_every_quantity_follows_its_particle():
    """Against a loop in numpy: Heun's scheme, a proposal, a running reward and a potential with a memory."""
    process = sc.DiffusionProcess(sc.Affine([[-1.0]]), 1.0, sc.Gaussian([0.3], [[0.5]]))
    problem = sc.Problem(process, sc.Linear([0.5]), 0.5, running_reward=sc.Quadratic([0.4], [[1.6]]))
    sampler = sc.steering.fk(
        problem, 3, potential="max", value=lambda t, x: (0.3 + t) * first(x), proposal=lambda step: 0.7 * step.x
    )
    sampler = sc.steering.FeynmanKac(problem, replace(sampler.scheme, rule=Rotating(1.0)))
    steps, noise = 5, sc.Noise(4)
    uniform = sc.TimeGrid.uniform(steps)
    seen = sampler.run(problem, grid=uniform, kernel=sc.SecondOrder(), n=3, noise=noise)

    block = noise.block("initial", 0, 1, (3, 1))
    x = first(process.initial.draw(replace(block, size=3 * block.size)))[:3].numpy()
    normals = noise.steps(0, (3, 1), np.linspace(0, 1, steps + 1))
    log_w, phi, best, collected, dt = np.zeros(3), np.zeros(3), np.full(3, -np.inf), np.zeros(3), 1 / steps
    for k in range(steps):
        xi = next(normals)[0, :, 0].double().numpy()
        best = np.maximum(best, (collected + (0.3 + k * dt) * x) / 0.5)
        log_w, phi = log_w + best, phi + best
        collected = collected + dt * (0.4 * x - 0.8 * x**2)
        log_w = np.full(3, np.log(np.mean(np.exp(log_w))))
        x, phi, best, collected = (np.roll(a, -1) for a in (x, phi, best, collected))
        w = np.sqrt(dt) * 0.7 * x
        end = x - dt * x + np.sqrt(dt) * (xi + w)
        x = end + dt / 2 * (x - end)
        log_w = log_w - w * xi - w**2 / 2
    log_w = log_w - phi + (collected + 0.5 * x) / 0.5
    assert np.allclose(first(seen.x).numpy(), x, rtol=1e-12)
    assert np.allclose(seen.log_weights.numpy(), log_w, rtol=1e-12)


def test_potentials_are_those_of_the_paper():
    v = np.array([0.3, -0.2, 1.1, 0.9])
    best = np.maximum.accumulate(v)
    wanted = {"difference": v, "max": best.cumsum(), "sum": v.cumsum().cumsum()}
    for name, expected in wanted.items():
        potential = potential_of(name)
        phi, memory = torch.zeros(1, dtype=torch.float64), torch.full((1,), potential.start, dtype=torch.float64)
        seen = []
        for promise in v:
            phi, memory = potential.accumulate(phi, memory, torch.tensor([promise]))
            seen.append(float(phi))
        assert np.allclose(seen, expected, rtol=1e-14)


# ------------------------------------------------------------------ networks, other events, cost


class Counting:
    """The exact score of N(0.5, 1) on the line as a network that counts the rows it is asked for."""

    def __init__(self) -> None:
        self.rows, self.law, self.schedule = 0, sc.Gaussian([0.5], [[1.0]]), sc.VP()

    def __call__(self, x: Tensor, s: float) -> Tensor:
        self.rows += len(x)
        a, h = self.schedule.alpha(s), self.schedule.h(s)
        return (0.5 * a - x) / (a * a + h)


def test_networks_give_the_same_particles_at_one_call_a_step():
    network = Counting()
    process = sc.ReverseProcess(sc.VP(), sc.Score(network), event_shape=(1,))
    problem = sc.Problem(process, sc.Quadratic([1.0], [[0.3]]), 0.3)
    for make in (sc.steering.fk, sc.steering.twisted):
        network.rows = 0
        noise = sc.Noise(1, dtype=torch.float64)
        options = dict(grid=grid(), kernel=KERNEL, n=80, noise=noise)
        seen = make(problem, 8).run(problem, **options)
        assert network.rows == 80 * grid().steps
        assert not seen.x.requires_grad
        exact = make(line(), 8)
        truth = exact.run(exact.problem, **options)
        assert torch.allclose(seen.x.double(), truth.x, atol=1e-3)  # float32 states
    network.rows = 0
    draw(sc.steering.svdd(problem, 7), 10)
    assert network.rows == 10 * 7 * grid().steps


def test_image_events_and_a_plain_function_as_reward():
    shape, temperature = (2, 4, 4), 2.0
    process = sc.ReverseProcess(sc.VP(), sc.Score(lambda x, s: -x), event_shape=shape)
    problem = sc.Problem(process, lambda x: x.flatten(1).sum(1), temperature)
    scalar = sc.ReverseProcess(sc.VP(), sc.Gaussian([0.0], [[1.0]]))
    variance = float(sc.moments(scalar, KERNEL, grid()).covariances[-1])
    particles = draw(sc.steering.twisted(problem, 8), 16_000)
    assert particles.x.shape == (16_000, *shape)
    assert abs(z_of_normalizer(particles, 32 * variance / (2 * temperature**2))) < Z_MAX


# ------------------------------------------------------------------ best of n and SVDD


@pytest.mark.parametrize("n", [2, 8])
def test_the_best_of_n_is_an_order_statistic(n):
    problem = line(k=0.0)
    reference = chain_of(problem).reference
    sampler = sc.steering.best_of(problem, n)
    particles = draw(sampler, 20_000)
    top = integrate.quad(lambda z: z * n * stats.norm.pdf(z) * stats.norm.cdf(z) ** (n - 1), -9, 9)[0]
    truth = float(reference.mean) + top * float(reference.covariance) ** 0.5
    assert abs(particles.expect(lambda x: particles.rewards).z(truth)) < Z_MAX
    assert torch.allclose(particles.rewards, first(particles.x))
    entropy = integrate.quad(lambda u: n * u ** (n - 1) * math.log(n * u ** (n - 1)) if u else 0.0, 0, 1)[0]
    assert sampler.kl_bound == pytest.approx(entropy, abs=1e-9)
    mild = line(k=0.0, temperature=1.0)
    assert abs(draw(sc.steering.best_of(mild, n), 20_000).log_normalizer.z(chain_of(mild).log_normalizer)) < Z_MAX


def test_svdd_is_not_the_tilt():
    problem = line()
    chain = chain_of(problem)
    tilt, kept = float(chain.terminal.mean), float(chain.untilted_terminal.mean)
    # soft with the exact value: towards the reference, less with more candidates; the start stays p_noise
    gaps = []
    for candidates in (2, 16):
        soft = sc.steering.svdd(problem, candidates, temperature=problem.temperature, value=chain)
        gaps.append(draw(soft, 20_000).expect(first) + -kept)
    assert gaps[0].z(0.0) < -10 and gaps[0].value < 5 * gaps[1].value
    # hard: past the tilt, and narrow
    hard = draw(sc.steering.svdd(problem, 16), 20_000)
    assert hard.expect(first).z(tilt) > 20
    assert float(hard.x.var()) < 0.5 * float(chain.terminal.covariance)
    assert hard.log_normalizer is None


def test_soft_svdd_approaches_the_optimal_kernels_from_an_untilted_start():
    process = sc.ReverseProcess(sc.VP(0.1, 2.0), sc.Gaussian([0.5], [[1.0]]))  # the sample remembers its start
    problem = sc.Problem(process, sc.Quadratic([1.0], [[0.3]]), 0.3)
    chain = chain_of(problem)
    limit, tilt, reference = (float(law.mean) for law in (chain.untilted_terminal, chain.terminal, chain.reference))
    soft = sc.steering.svdd(problem, 64, temperature=problem.temperature, value=chain)
    found = draw(soft, 8_000).expect(first)
    # the choice among M candidates is biased by O(1/M): here 3 % of what they move is allowed
    assert abs(found.value - limit) < 4.5 * found.stderr + 0.03 * (limit - reference)
    assert abs(found.value - tilt) > 10 * found.stderr + 0.03 * (limit - reference)


# ------------------------------------------------------------------ rejection


def test_rejection_draws_are_exact_and_their_cost_is_as_said():
    problem = line(temperature=0.5)
    chain = chain_of(problem)
    particles = draw(sc.steering.rejection(problem), 6_000)
    law = stats.norm(float(chain.terminal.mean), float(chain.terminal.covariance) ** 0.5)
    reference = stats.norm(float(chain.reference.mean), float(chain.reference.covariance) ** 0.5)
    draws = first(particles.x).numpy()
    assert stats.kstest(draws, law.cdf).pvalue > 1e-4
    assert stats.kstest(draws, reference.cdf).pvalue < 1e-12
    assert particles.expected == pytest.approx(math.exp(1 / 0.3 / 2 / 0.5 - chain.log_normalizer), rel=1e-9)
    assert abs(particles.proposals.z(particles.expected)) < Z_MAX
    assert abs(particles.log_normalizer.z(chain.log_normalizer)) < Z_MAX
    # waiting times are geometric: standard deviation sqrt(1 - p)/p
    spread = particles.expected * math.sqrt(1 - 1 / particles.expected)
    assert particles.proposals.stderr * 6_000**0.5 == pytest.approx(spread, rel=0.1)
    assert torch.equal(draw(sc.steering.rejection(problem), 6_000).x, particles.x)


def test_what_is_always_accepted_takes_one_proposal():
    problem = sc.Problem(line().process, sc.Step([1.0], 0.3, 0.0))
    particles = draw(sc.steering.rejection(problem), 50)
    assert particles.proposals.value == 1.0 and particles.proposals.stderr == 0.0 and particles.expected == 1.0
    assert torch.equal(
        particles.x, sc.simulate(problem.process, grid=grid(), kernel=KERNEL, n=50, keep="ends").terminal
    )


def test_rejection_goes_on_in_rounds_where_the_normaliser_is_not_known():
    mixture = sc.GaussianMixture([0.4, 0.6], [[-1.0], [1.5]], [[[0.3]], [[0.5]]])
    problem = sc.Problem(sc.ReverseProcess(sc.VP(), mixture), sc.Step([1.0], 2.5, 1.5), 0.5)
    particles = draw(sc.steering.rejection(problem), 3_000)
    assert particles.expected is None and len(particles.x) == 3_000
    assert len(first(particles.x).unique()) == 3_000 and particles.log_normalizer.n > 4096  # no round repeats another
    measured = math.exp(1.5 / 0.5 - particles.log_normalizer.value)
    error = math.hypot(particles.proposals.stderr, measured * particles.log_normalizer.stderr)
    assert abs(particles.proposals.value - measured) < Z_MAX * error
    reference = sc.simulate(problem.process, grid=grid(), kernel=KERNEL, n=40_000, noise=sc.Noise(9)).terminal
    w = torch.where(first(reference) > 2.5, math.exp(3.0), 1.0).double()
    paid = (w * (first(reference) > 2.5)).sum() / w.sum()  # another route: importance weights on other noise
    seen = (first(particles.x) > 2.5).double()
    assert abs(float(seen.mean() - paid)) < Z_MAX * math.hypot(float(seen.std()) / 3_000**0.5, 0.01)


def test_the_largest_reward_on_the_space_and_on_a_subspace():
    rng = np.random.default_rng(3)
    root, g = rng.normal(size=(3, 3)), rng.normal(size=3)
    reward = sc.Quadratic(g, root @ root.T + 0.1 * np.eye(3), 0.7)
    problem = sc.Problem(sc.ReverseProcess(sc.VP(), sc.Gaussian(np.zeros(3), np.ones(3))), reward)
    top = -optimize.minimize(lambda x: -float(reward(torch.tensor(x)[None])), np.zeros(3), tol=1e-12).fun
    assert supremum(problem, KERNEL, grid()) == pytest.approx(top, rel=1e-6)
    basis = torch.linalg.qr(torch.tensor(rng.normal(size=(6, 2)))).Q
    offset = torch.tensor(rng.normal(size=6))
    flat = sc.Quadratic(
        torch.tensor(rng.normal(size=6)), basis @ torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64)) @ basis.T
    )
    process = sc.ReverseProcess(sc.VP(), sc.SubspaceGaussian(basis, torch.zeros(2), torch.ones(2), offset))
    low = sc.Problem(process, flat, 1.0)
    on_span = lambda u: -float(flat((offset + basis @ torch.tensor(u))[None]))  # noqa: E731
    top = -optimize.minimize(on_span, np.zeros(2), tol=1e-12).fun
    assert supremum(low, KERNEL, grid()) == pytest.approx(top, rel=1e-6)
    with pytest.raises(
        NotDefined, match="Wald"
    ):  # Euler's last step leaves the subspace, where the reward is unbounded
        supremum(low, sc.EulerMaruyama(), grid())
    step = sc.Problem(problem.process, sc.Step([1.0, 0, 0], 0.3, -2.0))
    assert supremum(step, KERNEL, grid()) == 0.0


def test_rejection_refuses_before_work():
    unbounded = line(k=0.0)
    with pytest.raises(NotDefined, match="Wald.*fk"):
        draw(sc.steering.rejection(unbounded), 10)
    dear = line(g=3.0, k=0.3, temperature=0.2)
    with pytest.raises(BadInput, match="proposals a draw expected .*budget"):
        draw(sc.steering.rejection(dear), 10**9)  # at once, or this test would not end
    with pytest.raises(BadInput, match="above bound"):
        draw(sc.steering.rejection(line(), bound=0.5), 100)


# ------------------------------------------------------------------ evaluate and compare


def test_evaluate_scores_samplers_and_says_what_is_not_defined():
    problem = line(temperature=0.5)
    options = dict(grid=grid(), kernel=KERNEL, n=16_000)
    exact = sc.evaluate(problem, sc.steering.rejection(problem), **options)
    assert abs(exact.reward_bias.z(0.0)) < Z_MAX
    assert exact.distance.value < 4 * math.sqrt(float(chain_of(problem).terminal.covariance) / 16_000)
    assert exact.optimum.value == chain_of(problem).optimum and exact.optimum.stderr == 0
    best = sc.evaluate(problem, sc.steering.best_of(problem, 16), **options)
    assert best.reward_bias.z(0.0) > 20 and best.distance.z(0.0) > 20
    few = sc.evaluate(problem, sc.steering.fk(problem, 4), **options)
    assert few.reward_bias.z(0.0) < -5
    for name in ("kl", "gap", "tv_bound", "objective", "certificate_rms"):
        with pytest.raises(NotDefined, match="sampler"):
            getattr(few, name)
    assert set(few.to_dict()) == {"reward", "log_normalizer", "optimum", "reward_bias", "distance", "ess"}


def test_compare_takes_samplers_beside_controls(tmp_path):
    problem = line(temperature=0.5)
    entries = {"none": None, "fk": sc.steering.fk(problem, 8), "svdd": sc.steering.svdd(problem, 4)}
    table = sc.compare(problem, entries, grid=grid(), kernel=KERNEL, n=800, show=False)
    assert {row.optimum.value for row in table.rows.values()} == {chain_of(problem).optimum}
    assert all(name in str(table) for name in entries) and "–" in str(table)
    table.plot(tmp_path / "front.png")
    alone = sc.compare(problem, {"svdd": entries["svdd"]}, grid=grid(), kernel=KERNEL, n=100, show=False)
    with pytest.raises(BadInput, match="samplers only"):
        alone.plot(tmp_path / "none.png")
    with pytest.raises(BadInput, match="initial law"):
        sc.compare(problem, {"fk": (entries["fk"], sc.Gaussian([0.0], [[1.0]]))}, n=10, show=False)
    mixture = sc.GaussianMixture([0.4, 0.6], [[-1.0], [1.5]], [[[0.3]], [[0.5]]])
    open_ended = sc.Problem(sc.ReverseProcess(sc.VP(), mixture), sc.Linear([0.5]))
    own = sc.evaluate(open_ended, sc.steering.fk(open_ended, 4), grid=grid(), kernel=KERNEL, n=400)
    assert own.optimum.value == own.log_normalizer.value and own.reward_bias is None


def test_the_distance_of_moments_and_its_error():
    problem = sc.Problem(
        sc.ReverseProcess(sc.VP(), sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])), sc.Linear([0.5, 0.4]), 0.7
    )
    seen = [draw(sc.steering.fk(problem, 8), 2_000, seed=seed) for seed in range(30)]
    target = sc.Gaussian([0.0, 0.3], [[2.0, -0.4], [-0.4, 0.6]])
    answers = [gelbrich(particles, target.mean, target.covariance) for particles in seen]
    w, x = seen[0].weights.reshape(-1).numpy() / seen[0].populations, seen[0].x.double().numpy()
    own = sc.Gaussian(w @ x, np.cov(x.T, aweights=w, ddof=0))
    assert answers[0].value == pytest.approx(sc.laws.w2(own, target), rel=1e-7)
    spread = float(np.std([a.value for a in answers], ddof=1))
    stated = float(np.mean([a.stderr for a in answers]))
    assert 0.6 < stated / spread < 1.7  # 30 runs know a standard deviation to 13 %, the jackknife each to about as much


def test_one_particle_of_each_population_is_a_draw():
    problem = line(temperature=0.6)
    particles = draw(sc.steering.fk(problem, 16), 64_000)
    picked = particles.pick(sc.Noise(5))
    assert picked.shape == (4_000, 1)
    gap = sc.Estimate.mean(first(picked)) + -particles.expect(first).value
    assert abs(gap.z(0.0)) < Z_MAX
    one = draw(sc.steering.fk(problem, 16), 16)
    assert math.isnan(one.log_normalizer.stderr) and "one population" in one.log_normalizer.route


# ------------------------------------------------------------------ the page


def test_the_page_runs_as_it_stands(capsys):
    page = (Path(__file__).parents[1] / "docs" / "steering.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    (shown,) = re.findall(r"^```text\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    exec(compile(code, "docs/steering.md", "exec"), {})
    number = re.compile(r"[+-]?\d+\.\d+")
    printed = capsys.readouterr().out
    assert number.sub("", printed) == number.sub("", shown)
    seen, written = (np.array([float(x) for x in number.findall(text)]) for text in (printed, shown))
    assert np.allclose(seen, written, atol=0.002)  # the last digits, should a resampling turn on rounding


# ------------------------------------------------------------------ errors


def bad(kind: str) -> Callable[[Tensor], Tensor]:
    def reward(x: Tensor) -> Tensor:
        if len(x) <= 2:  # the probe of the constructor
            return x.sum(1)
        return {"nan": x.sum(1) * math.nan, "none": x.sum(1) * 0 - math.inf, "shape": x}[kind]

    return reward


@pytest.mark.parametrize(
    "kind, error, message",
    [
        ("nan", NotFinite, "reward.* at step 0 .*-infinity"),
        ("none", NotFinite, "all zero in population 0 at step 0 .*more particles"),
        ("shape", BadInput, "shape .* at step 0"),
    ],
)
def test_bad_rewards_are_named(kind, error, message):
    problem = sc.Problem(sc.ReverseProcess(sc.VP(), sc.Gaussian([0.5], [[1.0]])), bad(kind))
    with pytest.raises(error, match=message):
        draw(sc.steering.fk(problem, 4), 8)


def test_a_reward_of_minus_infinity_is_a_weight_of_zero():
    process = sc.ReverseProcess(sc.VP(), sc.Gaussian([0.5], [[1.0]]))
    outside = sc.Problem(process, lambda x: torch.where(first(x) > 0.5, 0.0, -math.inf) if len(x) > 2 else first(x))
    sampler = sc.steering.fk(outside, 32, value=lambda t, x: 0.0 * first(x))
    particles = draw(sampler, 32_000)
    assert abs(z_of_normalizer(particles, math.log(0.5))) < Z_MAX  # p_pre is symmetric about 0.5 here
    assert float(particles.expect(first).value) > 0.5
    assert particles.expect(lambda x: particles.rewards).value == 0.0


def test_bad_arguments_are_refused_at_once():
    problem, other = line(), line(g=2.0)
    wrong: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: sc.steering.fk(problem, 1), BadInput, "at least 2"),
        (lambda: sc.steering.fk(problem, 4, threshold=1.5), BadInput, r"\[0, 1\]"),
        (lambda: sc.steering.fk(problem, 4, potential="diff"), UnknownName, "difference"),
        (lambda: sc.steering.fk(problem, 4, value=3), BadInput, "value"),
        (lambda: sc.steering.fk(problem, 4, every=0), BadInput, "every"),
        (lambda: sc.steering.fk(problem, 4, initial=torch.zeros(4)), BadInput, "law"),
        (lambda: sc.steering.fk(problem, 4, proposal=sc.guidance.plug_in(other)), BadInput, "proposal"),
        (lambda: sc.steering.twisted(problem, 4, form="mean"), BadInput, "value"),
        (lambda: sc.steering.svdd(problem, 1), BadInput, "candidates"),
        (lambda: sc.steering.svdd(problem, 4, temperature=-1.0), BadInput, "argmax"),
        (lambda: sc.steering.best_of(problem, 1), BadInput, "at least 2"),
        (lambda: sc.steering.rejection(problem, bound=math.inf), BadInput, "finite"),
        (lambda: sc.steering.fk(problem, 4).run(other), BadInput, "sampler was made"),
        (lambda: sc.evaluate(other, sc.steering.fk(problem, 4)), BadInput, "sampler was made"),
        (lambda: sc.steering.fk(problem, 4).run(problem, n=0), BadInput, "samples"),
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()
    step = sc.Problem(problem.process, sc.Step([1.0], 0.3, 1.0))
    with pytest.raises(NotDefined, match="gradient"):
        sc.steering.twisted(step, 4)
    general = sc.Problem(sc.DiffusionProcess(sc.Affine([[-1.0]]), 1.0, sc.Gaussian([0.3], [[0.5]])), sc.Linear([1.0]))
    for make in (sc.steering.fk, sc.steering.svdd):
        with pytest.raises(NotDefined, match="value="):
            make(general, 4)
    with pytest.raises(sc.InfiniteKL, match="step 0"):
        sc.steering.twisted(problem, 4).run(problem, grid=grid(), kernel=sc.DDIM(0.0), n=8)
