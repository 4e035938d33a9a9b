"""The loop: what it returns, that it resumes with the same bits after any interruption, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sdecontrol as sc
import sdecontrol.finetune as ft

GRID = sc.TimeGrid.uniform(8)
ROOT = Path(__file__).parents[1]


def problem() -> sc.Problem:
    process = sc.DiffusionProcess(sc.Affine([[0.2, 0.5], [-0.4, 0.1]]), 1.0, sc.Gaussian([0.0, 0.2], 0.4))
    return sc.Problem(
        process, sc.Quadratic([0.6, -0.2], [[0.8, 0.1], [0.1, 0.5]]), 0.9, sc.Quadratic(curvature=0.3 * torch.eye(2))
    )


def parameters(module: torch.nn.Module) -> Tensor:
    return torch.cat([torch.zeros(0), *(p.detach().flatten().double() for p in module.parameters())])


LOSSES = {
    "relative entropy": lambda: ft.RelativeEntropy(),
    "adjoint matching": lambda: ft.AdjointMatching(),
    "adjoint matching, sticking": lambda: ft.AdjointMatching(sticking=True),
    "soc matching": lambda: ft.SOCMatching(ft.Reparametrisation(2, 8)),
    "trajectory balance": lambda: ft.TrajectoryBalance(),
    "cross entropy": lambda: ft.CrossEntropy(),
    "log variance": lambda: ft.LogVariance(),
}


# ------------------------------------------------------------------------------------------------ learned controls


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_brings_an_affine_control_near_the_best_mean_shift(name: str) -> None:
    """The pretrained model has error 1. The chain's value, objective and the score use no code of the losses."""
    p = problem()
    chain = p.discretise(grid=GRID).exact
    control, record = ft.fit(
        p, ft.AffineFamily(2, ft.Polynomials(3)), LOSSES[name](), steps=80, n=512, rate=0.08, grid=GRID, progress=False
    )
    assert record.iterations == 80 and not record.interrupted
    start = p.process.initial_law()
    error = ft.control_error(p, control, chain.control, start, grid=GRID, n=2000)
    assert error.value < 0.03
    found = sc.moments(p.process, sc.EulerMaruyama(), GRID, control=control)
    kl_gap = chain.control_objective_untilted - objective(p, found)
    best = sc.moments(p.process, sc.EulerMaruyama(), GRID, control=chain.control)
    assert objective(p, best) == pytest.approx(chain.control_objective_untilted, abs=1e-10)
    assert 0 < kl_gap < 0.03 * p.temperature * float(best.energy.sum())


def objective(p: sc.Problem, moments: Any) -> float:
    """E reward - temperature KL from exact moments."""
    total = quadratic_mean(p.reward, moments.means[-1], moments.covariances[-1])
    for k, dt in enumerate(GRID.resolve(p.process).dt):
        total += float(dt) * quadratic_mean(p.running_reward, moments.means[k], moments.covariances[k])
    return total - p.temperature * moments.kl


def quadratic_mean(q: Any, mean: Tensor, covariance: Tensor) -> float:
    second = covariance + torch.outer(mean, mean)
    return float(q.constant + q.linear @ mean - (q.curvature * second).sum() / 2)


def test_families_work_wherever_a_control_does() -> None:
    """simulate, replay and evaluate agree on the log ratio; a control of float32 weights answers float64 states."""
    law = sc.Gaussian([0.3, -0.2], [[1.0, 0.2], [0.2, 0.7]])
    p = sc.Problem(sc.ReverseProcess(sc.VP(0.1, 6.0), law, "marginal"), sc.Linear([0.5, 0.4]), 1.0)
    hinted = ft.MLPFamily(2, 16, 1, ft.Decays(4), hint=torch.sin)
    based = ft.Added(sc.AffineControl(0.1 * torch.eye(2)), ft.MLPFamily(2, 16, 1))
    linear = [ft.AffineFamily(2), ft.DiagonalFamily(2), ft.CoordinateFamily(2), ft.RidgeValue(2, 10)]
    families = [*linear, hinted, ft.DenoiserFamily(2, 16, 1), ft.PulledFamily(2, 16, 1), ft.QuadraticValue(2),
                ft.NetworkValue(2, 16, 1), based]  # fmt: skip
    grid = sc.TimeGrid.log_snr(12)
    for family in families:
        with torch.no_grad():
            for i, q in enumerate(family.parameters()):
                q.add_(torch.sin(1.0 + i + torch.arange(q.numel(), dtype=q.dtype)).view_as(q), alpha=0.05)
        path = sc.simulate(p.process, family, grid=grid, n=300)
        assert path.terminal.dtype == torch.float64
        assert torch.allclose(path.replay(family), path.log_ratio(), atol=1e-5)
        assert float(path.log_ratio().std()) > 1e-3
        found = sc.evaluate(p, family, grid=grid, n=300)
        assert float(found.kl) == pytest.approx(float(sc.path_kl(path)), abs=1e-6)


def test_families_start_at_the_pretrained_model_and_know_their_gradients() -> None:
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)
    for family in (ft.AffineFamily(2), ft.DiagonalFamily(2), ft.MLPFamily(2, 16, 1)):
        assert not bool(family(0.3, x).any())
    value = ft.NetworkValue(2, 16, 2, dtype=torch.float64)
    with torch.no_grad():
        for i, q in enumerate(value.parameters()):
            q.add_(torch.sin(1.0 + i + torch.arange(q.numel(), dtype=q.dtype)).view_as(q), alpha=0.1)
    h = 1e-5  # central differences: h^2 and 1e-16/h
    with torch.no_grad():
        for i, e in enumerate(torch.eye(2, dtype=torch.float64)):
            difference = (value.value(0.4, x + h * e) - value.value(0.4, x - h * e)) / (2 * h)
            assert torch.allclose(value.slope(0.4, x)[:, i], difference, atol=1e-8)
    quadratic = ft.QuadraticValue(2, ft.Polynomials(3))
    with torch.no_grad():
        for q in quadratic.parameters():
            q.copy_(torch.cos(torch.arange(q.numel(), dtype=q.dtype)).view_as(q))
    y = x.clone().requires_grad_()
    by_autograd = torch.autograd.grad(quadratic.value(0.4, y).sum(), y)[0]
    assert torch.allclose(quadratic.slope(0.4, x), by_autograd, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ score


def test_control_error_is_the_closed_ratio() -> None:
    """Two affine controls: numerator and denominator from exact moments of the reference's chain."""
    p = problem()
    chain = p.discretise(grid=GRID).exact
    wrong = sc.AffineControl([[0.1, 0.0], [0.3, -0.4]], [0.2, 0.1])
    found = ft.control_error(p, wrong, chain.control, chain.initial, grid=GRID, n=40_000)
    moments = sc.moments(p.process, sc.EulerMaruyama(), GRID, chain.initial, chain.control)
    difference = wrong - chain.control
    top = sum(square(difference, float(t), dt, moments, k) for k, (t, dt) in enumerate(zip(moments.times, [1 / 8] * 8)))
    assert abs(found.z(top / (2 * float(moments.energy.sum())))) < 4  # 6e-5 by chance
    assert found.stderr < 0.01 * found.value
    assert ft.control_error(p, chain.control, chain.control, grid=GRID, n=16).value == 0.0
    with pytest.raises(sc.NotDefined, match="zero everywhere"):
        ft.control_error(p, wrong, sc.AffineControl(torch.zeros(2, 2)), grid=GRID, n=16)


def square(control: Any, t: float, dt: float, moments: Any, k: int) -> float:
    gain, offset = control.affine_at(t)
    m, v = moments.means[k], moments.covariances[k]
    return dt * float((gain @ m + offset).square().sum() + ((gain @ v) * gain).sum())


# ----------------------------------------------------------------------------------------------------------- resuming

SCRIPT = """
import sys, torch
import sdecontrol as sc, sdecontrol.finetune as ft
sys.path.insert(0, {tests!r})
from test_fit import GRID, LOSSES, problem
torch.set_num_threads(1)
ft.fit(problem(), ft.MLPFamily(2, 16, 1), LOSSES[{name!r}](), steps={steps}, n=64, rate=1e-2, grid=GRID,
       checkpoint={folder!r}, save_every=0.0, progress=False)
"""
STEPS = 60


def run_to_the_end(name: str, folder: Path | None = None, steps: int = STEPS) -> tuple[ft.Family, ft.FitRecord, Any]:
    loss = LOSSES[name]()
    control, record = ft.fit(
        problem(), ft.MLPFamily(2, 16, 1), loss, steps=steps, n=64, rate=1e-2, grid=GRID, checkpoint=folder,
        progress=False,
    )  # fmt: skip
    return control, record, loss


FIVE = [pytest.param(name, 5, marks=pytest.mark.slow) for name in LOSSES]


@pytest.mark.parametrize(("name", "kills"), [("trajectory balance", 1), *FIVE])
def test_a_killed_run_resumes_with_the_same_bits(name: str, kills: int, tmp_path: Path) -> None:
    """SIGKILL at random moments, then to the end: weights, the loss's own and the record are those of one run."""
    code = SCRIPT.format(tests=str(ROOT / "tests"), name=name, folder=str(tmp_path), steps=STEPS)
    moments = random.Random(5)
    for _ in range(kills):
        wanted = iterations(tmp_path) + moments.randrange(4, 12)
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        while iterations(tmp_path) < wanted and process.poll() is None:
            time.sleep(0.003 * moments.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and wanted <= iterations(tmp_path) < STEPS
    resumed, record, loss = run_to_the_end(name, tmp_path)
    assert record.iterations == STEPS
    whole, record_whole, loss_whole = run_to_the_end(name)
    assert torch.equal(parameters(resumed), parameters(whole))
    assert torch.equal(parameters(loss), parameters(loss_whole))
    assert record.loss == record_whole.loss and record.gradient_norm == record_whole.gradient_norm
    assert all(a <= b for a, b in zip(record.seconds, record.seconds[1:]))


def iterations(folder: Path) -> int:
    try:
        return json.loads((folder / "record.json").read_text())["iterations"]
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("name", ["soc matching", "relative entropy"])
def test_ctrl_c_keeps_what_is_done(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in the middle of an iteration stops after it; the rest gives the bits of one run."""
    kind, calls = type(LOSSES[name]()), []
    forward = kind.forward

    def interrupted(*arguments: Any) -> Tensor:
        calls.append(0)
        if len(calls) == 13:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(*arguments)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", interrupted)
        _, stopped, _ = run_to_the_end(name, tmp_path, 40)
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.interrupted and stopped.iterations == 13
    assert json.loads((tmp_path / "record.json").read_text())["interrupted"] is True
    resumed, record, loss = run_to_the_end(name, tmp_path, 40)
    assert record.iterations == 40 and not record.interrupted
    assert record.loss[:13] == stopped.loss
    whole, _, loss_whole = run_to_the_end(name, steps=40)
    assert torch.equal(parameters(resumed), parameters(whole)) and torch.equal(parameters(loss), parameters(loss_whole))


def test_a_user_s_optimiser_resumes_too(tmp_path: Path) -> None:
    def run(steps: int, folder: Path | None, stop: int | None = None) -> Tensor:
        control = ft.AffineFamily(2, ft.Polynomials(3))
        optimiser = torch.optim.SGD(control.parameters(), lr=0.05, momentum=0.9)
        loss = StopAt(stop) if stop else ft.RelativeEntropy()
        ft.fit(problem(), control, loss, optimiser=optimiser, steps=steps, n=64, grid=GRID, checkpoint=folder,
               save_every=0.0, progress=False)  # fmt: skip
        return parameters(control)

    class StopAt(ft.RelativeEntropy):
        """Fails as a crash would at one iteration."""

        def __init__(self, at: int):
            super().__init__()
            self.left = at
            self.__class__.__name__ = "RelativeEntropy"

        def forward(self, *args: Any) -> Tensor:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("power cut")
            return super().forward(*args)

    with pytest.raises(RuntimeError, match="power cut"):
        run(20, tmp_path, stop=11)
    assert torch.equal(run(20, tmp_path), run(20, None))


def test_checkpoints_of_another_fit_are_refused(tmp_path: Path) -> None:
    run_to_the_end("log variance", tmp_path, 3)
    with pytest.raises(sc.BadInput, match="loss = 'LogVariance\\(\\)'"):
        run_to_the_end("cross entropy", tmp_path, 3)
    with pytest.raises(sc.BadInput, match="steps = 3"):
        run_to_the_end("log variance", tmp_path, 4)
    _, record = ft.fit(problem(), ft.MLPFamily(2, 16, 1), ft.CrossEntropy(), steps=2, n=64, grid=GRID, resume=False,
                       checkpoint=tmp_path, progress=False)  # fmt: skip
    assert record.iterations == 2
    assert not any(b"pickle" in f.read_bytes() for f in tmp_path.iterdir())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["record.json", "state.safetensors"]


# ------------------------------------------------------------------------------------------------- the initial law


def test_the_learned_initial_law_is_nu_star() -> None:
    """Under the best mean shift the best start is the chain's nu*, a closed Gaussian; p_noise is far from it."""
    p, grid = problem(), GRID
    chain = p.discretise(grid=grid).exact
    start, record = ft.fit_initial(p, chain.control, steps=150, n=256, rate=0.05, grid=grid, progress=False)
    law = start.law()
    before = sc.laws.kl(p.process.initial_law(), chain.initial)
    assert sc.laws.kl(law, chain.initial) < 1e-3 * before
    found = sc.evaluate(p, chain.control, law, grid=grid, n=4000)
    kept = sc.evaluate(p, chain.control, grid=grid, n=4000)
    assert found.excess is not None and kept.excess is not None
    assert abs(found.excess.value) < 4 * found.excess.stderr + 1e-3
    assert kept.excess.value > 5 * kept.excess.stderr
    assert record.loss[-1] < record.loss[0]


def test_an_affine_flow_of_a_mixture_is_a_mixture() -> None:
    """The law of L y + m against the change of variables, at points."""
    eye = torch.eye(2, dtype=torch.float64)
    base = sc.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], torch.stack([0.2 * eye, 0.4 * eye]))
    start = ft.AffineStart(base)
    with torch.no_grad():
        start.offset.copy_(torch.tensor([0.3, -0.4]))
        start.log_diagonal.copy_(torch.tensor([0.2, -0.3]))
        start.lower.copy_(torch.tensor([[9.0, 9.0], [0.7, 9.0]]))
    y = torch.linspace(-2, 2, 10, dtype=torch.float64).view(5, 2)
    x = start.push(y)
    expected = base.log_prob(y) - math.log(abs(torch.linalg.det(start.matrix).item()))
    assert torch.allclose(start.law().log_prob(x.detach()), expected, atol=1e-12)
    assert torch.allclose(start.log_prob_frozen(x), expected, atol=1e-12)


# ------------------------------------------------------------------------------------------------------- refusals


class NaNFrom(ft.AffineFamily):
    """NaN at one step."""

    def __init__(self, step: int):
        super().__init__(2, ft.Polynomials(2))
        self.step = step

    def shift(self, step: Any) -> Tensor:
        u = super().shift(step)
        return u * float("nan") if step.k == self.step else u


@pytest.mark.parametrize("loss", [ft.RelativeEntropy(), ft.AdjointMatching(), ft.LogVariance()])
def test_a_control_that_is_not_finite_is_named_with_its_step(loss: ft.Loss) -> None:
    with pytest.raises(sc.NotFinite, match="the control produced .* at step 5") as caught:
        ft.fit(problem(), NaNFrom(5), loss, steps=3, n=16, grid=GRID, progress=False)
    assert caught.value.step == 5


def test_a_gradient_that_is_not_finite_is_named_with_its_iteration() -> None:
    process = problem().process
    kink = sc.Problem(process, lambda x: (x - x.detach()).square().sum(1).sqrt())  # 0 with a gradient 0/0
    with pytest.raises(sc.NotFinite, match="iteration 0"):
        ft.fit(kink, ft.AffineFamily(2), ft.RelativeEntropy(), steps=3, n=16, grid=GRID, progress=False)


def test_wrong_arguments_are_refused_before_work() -> None:
    p, family = problem(), ft.AffineFamily(2)
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    refused: list[tuple[dict[str, Any], str]] = [
        (dict(control=sc.AffineControl(torch.eye(2)), loss=ft.LogVariance()), "a torch module that is an sc.Control"),
        (dict(control=torch.nn.Linear(2, 2), loss=ft.LogVariance()), "a torch module that is an sc.Control"),
        (dict(control=family, loss=ft.LogVariance), "an instance"),
        (dict(control=family, loss=ft.LogVariance(), n=1), "two paths"),
        (dict(control=family, loss=ft.LogVariance(), steps=0), "positive integer"),
        (dict(control=family, loss=ft.ValueRegression()), "value family"),
        (dict(control=family, loss=ft.LogVariance(), optimiser=other), "theta"),
    ]
    for arguments, message in refused:
        with pytest.raises(sc.BadInput, match=message):
            ft.fit(p, **{"steps": 1, "progress": False, **arguments})
    law = sc.Gaussian([0.0], [[1.0]])
    silent = sc.Problem(sc.ReverseProcess(sc.VP(), law), sc.Linear([1.0]))
    with pytest.raises(sc.InfiniteKL):
        ft.fit(silent, ft.AffineFamily(1), ft.LogVariance(), kernel=sc.DDIM(0.0), progress=False)
    with pytest.raises(sc.NotDefined, match="schedule"):
        ft.fit(p, ft.DenoiserFamily(2), ft.LogVariance(), grid=GRID, steps=1, progress=False)
    dirac = sc.Problem(sc.DiffusionProcess(sc.Affine([[0.0]]), 1.0, sc.Dirac([0.0])), sc.Linear([1.0]))
    with pytest.raises(sc.BadInput, match="point"):
        ft.fit_initial(dirac, progress=False)


def test_the_page_on_learning_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks of docs/learning.md as they stand: 1e-2, 1e-4, a gap of 0.1 nats where it was one, 1e-2."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "learning.md").read_text(), re.DOTALL | re.MULTILINE)
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "learning.md", "exec"), namespace)
    error, gap, quick, guided, distance = capsys.readouterr().out.splitlines()
    assert 0 < float(error.split()[0]) < 0.01 and 0 <= float(distance) < 0.01
    assert abs(float(gap.split()[0])) < 0.02  # its estimate may lie below zero by chance
    assert 0 < float(quick.split()[0]) < 1e-4
    assert abs(float(guided.split()[0])) < 0.1
