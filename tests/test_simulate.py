"""The loop: the chain's exact moments, Girsanov as an identity, resources, and every refusal."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sdecontrol as sc
from sdecontrol.path_divergence import PathDivergence

LAW = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
CONTROL = sc.AffineControl([[-0.4, 0.1], [0.0, -0.2]], [0.5, -0.3])
GRID = sc.TimeGrid.log_snr(20, s_min=1e-2)
Z = 5.0  # 5 standard errors: a false-alarm rate below 1e-4 over all comparisons of this file


def process(schedule=None, **options):
    return sc.ReverseProcess(schedule or sc.VP(), LAW, **options)


def assert_moments(x: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> None:
    assert np.max(np.abs(sc.Estimate.mean(x).z(mean.numpy()))) < Z
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :]
    assert np.max(np.abs(sc.Estimate.mean(products).z(covariance.numpy()))) < Z


@pytest.mark.parametrize(
    "kernel",
    [sc.EulerMaruyama(), sc.Exponential(), sc.Ancestral(), sc.DDIM(0.5), sc.SecondOrder(), sc.ExactTransition()],
    ids=repr,
)
@pytest.mark.parametrize("initial", ["standard", "marginal"])
def test_simulated_chain_has_its_own_exact_moments(kernel, initial):
    p = process(initial=initial)
    path = sc.simulate(p, CONTROL, grid=GRID, kernel=kernel, n=40_000)
    exact = sc.moments(p, kernel, GRID, control=CONTROL)
    for k in (5, 10, 20):
        assert_moments(path.states[k], exact.means[k], exact.covariances[k])
    assert abs(sc.path_kl(path).z(exact.kl)) < Z
    assert abs(sc.Estimate.mean(path.log_ratio()).z(exact.kl)) < Z


def test_general_diffusion_and_its_euler_chain():
    p = sc.DiffusionProcess(
        sc.Affine(lambda t: [[-1.0 - t]], lambda t: [0.5 * t]), lambda t: 1.0 + 0.5 * t, sc.Dirac([1.0])
    )
    for kernel in (sc.EulerMaruyama(), sc.SecondOrder()):
        path = sc.simulate(p, grid=sc.TimeGrid.uniform(7), kernel=kernel, n=40_000, keep="ends")
        exact = sc.moments(p, kernel, sc.TimeGrid.uniform(7))
        assert_moments(path.terminal, exact.means[-1], exact.covariances[-1])


def test_likelihood_ratio_is_a_density_between_path_laws():
    """E_u f e^{-L} = E_Q f for any f of the path: here its terminal mean and second moment."""
    p = process(sc.VP(beta_min=1.0, beta_max=1.0))
    start = sc.Gaussian([0.2, 0.1], [[0.9, 0.0], [0.0, 0.8]])
    path = sc.simulate(p, CONTROL, start, grid=GRID, n=100_000)
    weights = (-path.log_ratio()).exp()
    exact = sc.moments(p, p.default_kernel, GRID)
    assert abs(sc.Estimate.mean(weights).z(1.0)) < Z
    assert np.max(np.abs(sc.Estimate.mean(weights[:, None] * path.terminal).z(exact.means[-1].numpy()))) < Z


def test_replay_of_the_same_control_is_the_same_log_ratio():
    start = sc.Gaussian([0.2, 0.1], [[0.9, 0.0], [0.0, 0.8]])
    for kernel in (sc.Ancestral(), sc.SecondOrder(), sc.ExactTransition()):
        path = sc.simulate(process(), CONTROL, start, grid=GRID, kernel=kernel, n=50)
        assert torch.allclose(path.replay(CONTROL, start), path.log_ratio(), rtol=1e-6, atol=1e-8)
        assert torch.allclose(path.replay(None), torch.zeros(50, dtype=torch.float64))


def test_replay_gives_the_reverse_kl():
    p = process()
    path = sc.simulate(p, grid=GRID, n=40_000)
    exact = PathDivergence(p, p.default_kernel, GRID, (CONTROL, None), (None, None))
    assert abs(sc.reverse_path_kl(path, CONTROL).z(exact.reverse_kl)) < Z
    assert abs(sc.Estimate.mean(-path.replay(CONTROL)).z(exact.reverse_kl)) < Z


def test_girsanov_reference_values():
    """KL of Euler chains of two Ornstein-Uhlenbeck processes, to the printed digits of the recursion."""
    for h, wanted in ((0.1, 0.2570746305719569), (0.05, 0.2535454048539287)):
        # Q': dX = -X dt + sqrt 2 dW as a control on dX = -2X dt + sqrt 2 dW: u = x / sqrt 2
        p = sc.DiffusionProcess(sc.Affine([[-2.0]]), np.sqrt(2), sc.Dirac([1.0]))
        control, grid = sc.AffineControl([[1 / np.sqrt(2)]]), sc.TimeGrid.uniform(round(1 / h))
        assert sc.moments(p, sc.EulerMaruyama(), grid, control=control).kl == pytest.approx(wanted, rel=1e-13)
        path = sc.simulate(p, control, grid=grid, kernel=sc.EulerMaruyama(), n=40_000, keep="ends")
        assert abs(sc.path_kl(path).z(wanted)) < Z


def test_the_last_noiseless_step_is_not_controlled():
    seen = []
    control = lambda step: seen.append(step.k) or torch.zeros_like(step.x)  # noqa: E731
    sc.simulate(process(), control, grid=sc.TimeGrid.uniform(4), kernel=sc.Ancestral(), n=3)
    assert seen == [0, 1, 2]


def test_a_control_on_a_noiseless_inner_step_is_refused_before_work():
    called = []
    control = lambda step: called.append(1) or step.x  # noqa: E731
    with pytest.raises(sc.InfiniteKL, match="step 0"):
        sc.simulate(process(), control, grid=GRID, kernel=sc.DDIM(0.0), n=10)
    assert not called
    sc.simulate(process(), grid=GRID, kernel=sc.DDIM(0.0), n=10)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_state_that_is_not_finite_names_step_time_and_culprit(workers):
    bad = sc.StateControl(lambda t, x: torch.full_like(x, np.nan) if t > 0.5 else 0 * x)
    with pytest.raises(sc.NotFinite, match="the control .* at step 6") as caught:
        sc.simulate(process(), bad, grid=sc.TimeGrid.uniform(10), n=40_000, workers=workers)
    assert caught.value.time == pytest.approx(0.6)
    exploding = sc.DiffusionProcess(sc.Affine([[1e200]]), 1.0, sc.Gaussian([0.0], [[1.0]]))
    with pytest.raises(sc.NotFinite, match="drift or score .* at step 1"):
        sc.simulate(exploding, grid=sc.TimeGrid.uniform(10), n=40_000, workers=workers)
    network = sc.ReverseProcess(sc.VP(), sc.Score(lambda x, s: x * (np.nan if s < 0.55 else 1.0), event_shape=(1,)))
    with pytest.raises(sc.NotFinite, match="score .* at step 5"):
        sc.simulate(network, grid=sc.TimeGrid.uniform(10), n=10)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(keep="some"), "keep"),
        (dict(n=0), "positive number of paths"),
        (dict(noise=3), "Noise"),
        (dict(initial=sc.Gaussian([0.0], [[1.0]])), "event shape"),
        (dict(initial=torch.zeros(3, 2)), "one state a path"),
        (dict(control=5), "control"),
        (dict(control=lambda step: step.x[:, :1]), "a control of shape"),
        (dict(observe=lambda k, t, x: x[:2]), "observer result"),
        (dict(observe=lambda k, t, x: x * (np.nan if k == 2 else 1)), "observer .* at step 2"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises((sc.BadInput, sc.NotFinite), match=message):
        sc.simulate(process(), grid=GRID, **{"n": 10, **options})


def test_log_ratio_needs_a_law():
    path = sc.simulate(process(), initial=torch.zeros(10, 2), grid=GRID, n=10)
    with pytest.raises(sc.NotDefined, match="law"):
        path.log_ratio()
    assert torch.equal(path.initial, torch.zeros(10, 2))


def test_an_initial_law_without_density_has_infinite_kl():
    with pytest.raises(sc.InfiniteKL, match="density"):
        sc.simulate(process(), initial=sc.SubspaceGaussian([[1.0], [0.0]], [0.0], [[1.0]]), grid=GRID, n=10)


def test_observers_see_every_state():
    path = sc.simulate(process(), grid=GRID, n=30, observe=lambda k, t, x: x.sum(1))
    assert torch.allclose(path.observed, path.states.sum(-1))


def test_gradients_flow_through_the_path():
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    control = lambda step: theta * step.x  # noqa: E731
    grid, options = sc.TimeGrid.uniform(4), dict(n=5, kernel=sc.EulerMaruyama(), noise=sc.Noise(2))

    def objective(value: torch.Tensor) -> torch.Tensor:
        path = sc.simulate(process(), lambda step: value * step.x, grid=grid, grad=True, **options)
        return path.terminal.sum() + path.log_ratio().sum()

    path = sc.simulate(process(), control, grid=grid, grad=True, **options)
    (path.terminal.sum() + path.log_ratio().sum()).backward()
    with torch.no_grad():
        step = 1e-6
        slope = (objective(theta + step) - objective(theta - step)) / (2 * step)
    assert float(theta.grad) == pytest.approx(float(slope), rel=1e-7)


def test_networks_in_three_conventions_are_the_same_process():
    vp = sc.VP()
    noised = lambda s: LAW.noised(vp.alpha(s), vp.h(s))  # noqa: E731
    score = sc.Score(lambda x, s: noised(s).score(x), event_shape=(2,))
    noise = sc.NoisePrediction(lambda x, s: -vp.sigma(s) * noised(s).score(x), event_shape=(2,))
    clean = sc.Denoiser(lambda x, s: (x + vp.h(s) * noised(s).score(x)) / vp.alpha(s), event_shape=(2,))
    exact = sc.simulate(process(), grid=GRID, n=20).terminal
    for model in (score, noise, clean):
        ours = sc.simulate(sc.ReverseProcess(vp, model), grid=GRID, n=20, dtype=torch.float64).terminal
        assert torch.allclose(ours, exact, atol=1e-9)


def test_pullback_of_a_network_is_that_of_the_exact_score():
    vp, c = sc.VP(), torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    network = sc.Score(lambda x, s: LAW.noised(vp.alpha(s), vp.h(s)).score(x), event_shape=(2,))
    x = torch.tensor([[0.1, 0.2], [1.0, -1.0]], dtype=torch.float64)
    exact = process().state(0.6, x).pullback(c)
    for jacobian in (False, True):
        ours = sc.ReverseProcess(vp, network).state(0.6, x, jacobian=jacobian).pullback(c)
        assert torch.allclose(ours, exact, rtol=1e-10)


def test_bare_networks_are_not_guessed():
    with pytest.raises(sc.BadInput, match="convention"):
        sc.ReverseProcess(sc.VP(), lambda x, s: -x)
    with pytest.raises(sc.BadInput, match="event shape"):
        sc.ReverseProcess(sc.VP(), sc.Score(lambda x, s: -x))
    with pytest.raises(sc.BadInput, match="marginal"):
        sc.ReverseProcess(sc.VP(), sc.Score(lambda x, s: -x, event_shape=(2,)), initial="marginal")


MEMORY = """
import torch, sdecontrol as sc
process = sc.ReverseProcess(sc.VP(), sc.Gaussian([0.0, 0.0], [[1.0, 0.2], [0.2, 1.0]]))
sc.simulate(process, sc.AffineControl(torch.eye(2) * 0.1), n=1_000_000, grid=sc.TimeGrid.uniform(STEPS), keep="ends")
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


@pytest.mark.parametrize("steps", [20, pytest.param(1_000, marks=pytest.mark.slow)])
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory of a process is read from /proc")
def test_a_million_paths_with_ends_only_fit_in_a_gigabyte(steps):
    """Memory does not grow with the steps: 20 in every run, 1 000 in the slow one."""
    out = subprocess.run(
        [sys.executable, "-c", MEMORY.replace("STEPS", str(steps))], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) * 1024 < 1e9
