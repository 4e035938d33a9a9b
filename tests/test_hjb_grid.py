"""`solve_hjb` against the closed forms, Riccati equations and Monte Carlo; planted bugs are seen to fail.

The closed forms know components, the schemes know densities or drifts on nodes: they share no formula.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sdecontrol as sc
from sdecontrol.laws import TiltedLaw
from sdecontrol.value import FiniteDifference, Monotone, Smoothing, axes_for
from sdecontrol.value.hjb_axes import coarser, derivative_matrices, points_of
from sdecontrol.value.hjb_differences import Equation
from sdecontrol.value.hjb_marching import Clock, Record
from sdecontrol.value.hjb_monotone import implicit

ROUNDING = 1e-12  # a thousand roundings of sums of order one
TIMES = (0.0, 0.4, 0.8, 0.95, 0.995)


def double_peak(initial: str = "marginal") -> sc.Problem:
    law = sc.GaussianMixture([0.6, 0.4], [[-0.8], [0.9]], [0.25, 0.35])
    return sc.Problem(sc.ReverseProcess(sc.VP(0.1, 5.0), law, initial), sc.Quadratic([0.7], 0.3), 0.8)


def plane(schedule: sc.VP | sc.VE) -> sc.Problem:
    covariances = [np.diag([0.2, 0.4]), [[0.3, 0.1], [0.1, 0.2]]]
    law = sc.GaussianMixture([0.5, 0.5], [[-0.8, 0.0], [0.9, 0.6]], np.array(covariances))
    return sc.Problem(sc.ReverseProcess(schedule, law), sc.Quadratic([0.6, -0.3], [[0.4, 0.1], [0.1, -0.2]]), 0.8)


def space() -> sc.Problem:
    law = sc.GaussianMixture([0.5, 0.5], [[-0.7, 0.0, 0.3], [0.6, 0.4, -0.3]], [0.3, 0.4])
    return sc.Problem(sc.ReverseProcess(sc.VP(0.1, 5.0), law), sc.Linear([0.6, -0.3, 0.2]), 0.8)


def on_paths(problem: sc.Problem, t: float, n: int = 100) -> Tensor:
    """Points where Y_t lives, plain and tilted: noised draws of the data law and of its tilt."""
    process, law = problem.process, problem.process.data_law
    s = process.noise_level(t)
    tilted = law.tilt(problem.reward, problem.temperature)
    x = torch.cat([law.sample(n, sc.Noise(1)), tilted.sample(n, sc.Noise(2))]).double()
    z = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return process.schedule.alpha(s) * x + process.schedule.sigma(s) * z


def errors(solution: sc.value.HJBSolution, t: float, x: Tensor) -> tuple[float, float]:
    """Largest errors of v and of u against the closed forms, relative to 1 + their size."""
    exact = solution.problem.exact
    v, u = exact.value(t, x), exact.control(t, x)
    return (float(((solution.value(t, x) - v) / (1 + v.abs())).abs().max()),
            float((solution.control(t, x) - u).abs().max() / (1 + u.abs().max())))  # fmt: skip


# --- Smoothing


@pytest.mark.parametrize(("make", "points"), [(double_peak, 96), (lambda: plane(sc.VP(0.1, 8.0)), 80),
                                              (lambda: plane(sc.VE(0.01, 5.0)), 80)])  # fmt: skip
def test_smoothing_is_exact_to_rounding(make, points):
    problem = make()
    solution = sc.solve_hjb(problem, axes_for(problem, points))
    assert isinstance(solution.scheme, Smoothing)
    for t in TIMES:
        v, u = errors(solution, t, on_paths(problem, t))
        assert v < ROUNDING and u < 100 * ROUNDING / problem.process.schedule.sigma(1 - t)
    x = on_paths(problem, 1.0)
    assert torch.equal(solution.value(1.0, x), problem.reward(x))
    assert solution.order == math.inf  # two coarser grids agree to rounding as well


def test_smoothing_in_three_dimensions():
    """Trapezoidal sums of 0.75 node distances^2 at least: e^{-2 pi^2 0.75} = 4e-7 relative."""
    problem = space()
    solution = sc.solve_hjb(problem, axes_for(problem, 24))
    for t in (0.2, 0.8):
        v, u = errors(solution, t, on_paths(problem, t, 20))
        assert v < 1e-6 and u < 1e-4
    found = solution.field.nodes(0.5)  # the route of simulations: axis after axis on a tensor grid
    inner = points_of([x[8:-8] for x in found.axes])
    assert torch.allclose(found.value[8:-8, 8:-8, 8:-8].flatten(), problem.exact.value(0.5, inner), atol=1e-6)


def test_smoothing_needs_only_a_log_density():
    """N(0.2, 0.5) written as a tilted law without a noised form or a score: the Gaussian's answers."""
    gaussian, reward = sc.Gaussian([0.2], [[0.5]]), sc.Quadratic([0.5], 0.4)
    weight = sc.Quadratic([0.4], [[1.0]])  # N(0, 1) tilted by 0.4 x - x^2/2
    law = TiltedLaw(sc.Gaussian([0.0], [[1.0]]), lambda x: weight(x))
    schedule = sc.VP(0.1, 5.0)
    closed = sc.Problem(sc.ReverseProcess(schedule, gaussian), reward, 0.7).exact
    problem = sc.Problem(sc.ReverseProcess(schedule, law), reward, 0.7)
    solution = sc.solve_hjb(problem, axes_for(problem, 96))
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    for t in TIMES:
        assert torch.allclose(solution.value(t, x), closed.value(t, x), rtol=0, atol=ROUNDING)
        assert torch.allclose(solution.control(t, x), closed.control(t, x), rtol=0, atol=1e-9)


def test_smoothing_with_a_reward_of_no_closed_form():
    """v = temperature log E e^{r/temperature}: scipy's quadrature of the posterior at single points."""
    from scipy.integrate import quad

    law, reward = sc.Gaussian([0.1], [[0.8]]), lambda x: torch.sin(3 * x[:, 0]) - 0.2 * x[:, 0] ** 4
    problem = sc.Problem(sc.ReverseProcess(sc.VP(0.1, 5.0), law), reward, 0.5)
    solution = sc.solve_hjb(problem, axes_for(problem, 160))
    t, y = 0.7, 0.6
    posterior = law.posterior(problem.process.schedule.alpha(0.3), problem.process.schedule.h(0.3))
    mean, variance = (
        float(posterior.offsets[0, 0] + posterior.gains[0, 0, 0] * y),
        float(posterior.covariances[0, 0, 0]),
    )

    def integrand(x):
        density = math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
        return density * math.exp((math.sin(3 * x) - 0.2 * x**4) / 0.5)

    expected = 0.5 * math.log(
        quad(integrand, mean - 12, mean + 12, epsabs=0, epsrel=1e-12, limit=400, points=[mean])[0]
    )
    assert float(solution.value(t, torch.tensor([[y]], dtype=torch.float64))) == pytest.approx(expected, abs=1e-11)


# --- finite differences


def ornstein_uhlenbeck(rate: float = 1.0, dim: int = 1) -> sc.Problem:
    """Outward drift and a running reward: the hard quadratic problem of the literature, in few dimensions."""
    eye = np.eye(dim)
    process = sc.DiffusionProcess(sc.Affine(rate * eye), 0.8, sc.Gaussian(np.zeros(dim), 0.05))
    return sc.Problem(process, sc.Quadratic([0.4] * dim, eye), 0.9, sc.Quadratic([0.3] * dim, 1.5 * eye))


@pytest.mark.parametrize(("dim", "points"), [(1, 49), (2, 33)])
def test_quadratic_values_are_exact_in_space(dim, points):
    """Riccati by DOP853. Space is exact for quadratics, so a step's tolerance times the steps is what may be lost."""
    problem = ornstein_uhlenbeck(dim=dim)
    solution = sc.solve_hjb(problem, [(-7.0, 7.0, points)] * dim)
    assert isinstance(solution.scheme, FiniteDifference)
    x = 4 * torch.rand(50, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 2
    allowed = solution.scheme.tolerance * len(solution.field.slices)
    for t in (0.0, 0.3, 0.9):
        v, u = errors(solution, t, x)
        assert v < allowed and u < 10 * allowed
    far = torch.full((3, dim), 9.0, dtype=torch.float64)  # outside: the second-order Taylor polynomial is the value
    v, u = errors(solution, 0.3, far)
    assert v < 100 * allowed and u < 100 * allowed


def bugged(name: str):
    """Equation with one planted bug."""

    class Bugged(Equation):
        def forces(self, t):
            drift, running = super().forces(t)
            g = self.process.amplitude(t)
            if name == "g for g^2":
                return [b * g for b in drift], running * g
            return drift, 0.0 * running if name == "no running reward" else running

        def rate(self, clock):
            right = super().rate(clock)
            if name != "sign of the quadratic term":
                return right
            return lambda tau, v: right(tau, v) - sum(p.square() for p in self.gradient(v)) / self.temperature

    return Bugged


@pytest.mark.parametrize("name", ["none", "g for g^2", "sign of the quadratic term", "no running reward"])
def test_planted_bugs_are_seen(monkeypatch, name):
    problem = ornstein_uhlenbeck(rate=-0.5)
    monkeypatch.setattr("sdecontrol.value.hjb_differences.Equation", bugged(name))
    solution = sc.solve_hjb(problem, [(-5.0, 5.0, 33)])
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    v, u = errors(solution, 0.2, x)
    assert (v < 1e-5 and u < 1e-5) if name == "none" else (v > 1e-2 and u > 1e-2)


def test_eighth_order_on_a_mixture():
    """Three grids, each 1.5 times finer: differences fall by 1.5^8 = 26 when resolved; 1.5^6 = 11 is asked for."""
    problem = double_peak()
    low, high = axes_for(problem, 16, FiniteDifference())[0][[0, -1]]
    x = on_paths(problem, 0.8)
    found = [errors(sc.solve_hjb(problem, [(low, high, n)], FiniteDifference()), 0.8, x) for n in (57, 85, 127)]
    for (v_coarse, u_coarse), (v_fine, u_fine) in zip(found, found[1:]):
        assert v_coarse > 11 * v_fine and u_coarse > 8 * u_fine
    assert found[-1][0] < 1e-6 and found[-1][1] < 5e-5


@pytest.mark.parametrize(("make", "points", "order"), [(lambda: plane(sc.VP(0.1, 5.0)), (22, 32), 4),
                                                       (space, (17, 25), 4)])  # fmt: skip
def test_order_in_two_and_three_dimensions(make, points, order):
    """Second order at least is asked for; the fourth-order stencils give it on coarse grids already."""
    problem = make()
    box, x, found = [(-4.5, 4.5)] * problem.process.dim, on_paths(problem, 0.5), []
    for n in points:
        scheme = FiniteDifference(order=order, tolerance=1e-5)
        found.append(errors(sc.solve_hjb(problem, [(a, b, n) for a, b in box], scheme), 0.5, x))
    ratio = math.log((points[1] - 1) / (points[0] - 1))
    assert math.log(found[0][0] / found[1][0]) / ratio > 2
    assert math.log(found[0][1] / found[1][1]) / ratio > 2


def test_an_imperfect_score_and_a_stretched_axis():
    """0.8 score + 0.3 on a Gaussian: the Riccati route; nodes denser in the middle keep the accuracy."""
    model = sc.PerturbedScore(sc.Gaussian([0.3], [[0.5]]), 0.8, 0.3)
    problem = sc.Problem(sc.ReverseProcess(sc.VP(0.1, 5.0), model), sc.Quadratic([0.5], 0.4), 0.7)
    axis = 2.0 * np.sinh(np.linspace(-1.8, 1.8, 61))
    solution = sc.solve_hjb(problem, [axis])
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    allowed = solution.scheme.tolerance * len(solution.field.slices)
    for t in (0.0, 0.6, 0.95):
        v, u = errors(solution, t, x)
        assert v < allowed and u < 10 * allowed


def test_a_float32_network():
    """The exact score of a Gaussian as a network: its rounding, 6e-8 of the drift, over a clock of 2.6, stays below."""
    schedule, law, reward = sc.VP(0.1, 5.0), sc.Gaussian([0.3], [[0.5]]), sc.Quadratic([0.5], 0.4)
    linear = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(linear.weight)

    def score(x: Tensor, s: float) -> Tensor:
        a, h = schedule.alpha(s), schedule.h(s)
        return -(linear(x) - 0.3 * a) / (0.5 * a**2 + h)

    problem = sc.Problem(sc.ReverseProcess(schedule, sc.Score(score), event_shape=(1,)), reward, 0.7)
    closed = sc.Problem(sc.ReverseProcess(schedule, law), reward, 0.7).exact
    solution = sc.solve_hjb(problem, axes_for(problem, 48))
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    for t in (0.0, 0.5, 0.9):
        assert torch.allclose(solution.value(t, x), closed.value(t, x), rtol=0, atol=1e-6)
        assert torch.allclose(solution.control(t, x), closed.control(t, x), rtol=0, atol=1e-5)
    assert solution.control(0.5, x.float()).dtype == torch.float32


def test_derivatives_are_exact_for_their_degree():
    x = np.cumsum(np.random.default_rng(0).uniform(0.5, 1.5, 24))
    first, second = (m.numpy() for m in derivative_matrices(x, 8))
    scaled = (x - x.mean()) / 12
    for degree in range(9):
        d1, d2 = (np.polynomial.Polynomial.basis(degree).deriv(k)(scaled) / 12**k for k in (1, 2))
        rows = slice(4, -4) if degree > 2 else slice(None)
        assert np.allclose((first @ scaled**degree)[rows], d1[rows], atol=1e-11)
        assert np.allclose((second @ scaled**degree)[rows], d2[rows], atol=1e-11)


# --- the monotone scheme


def test_a_step_reward_converges_at_first_order():
    problem = sc.Problem(sc.ReverseProcess(sc.VP(0.1, 5.0), sc.Gaussian([0.3], [[0.6]])), sc.Step([1.0], 0.5, 1.0), 0.5)
    axes, x = axes_for(problem, 257), torch.linspace(-2, 2, 81, dtype=torch.float64)[:, None]
    fine, coarse = sc.solve_hjb(problem, axes), sc.solve_hjb(problem, coarser(axes, 2))
    assert isinstance(fine.scheme, Monotone)
    for t in (0.0, 0.5, 0.9):
        (v, u), (v_coarse, u_coarse) = errors(fine, t, x), errors(coarse, t, x)
        assert v < 0.6 * v_coarse and u < 0.7 * u_coarse  # 0.5 is first order
    assert errors(fine, 0.5, x)[0] < 3e-3
    values = fine.field.on_nodes(0.9, fine.axes)
    assert float(values.min()) > -ROUNDING and float(values.max()) < 1 + ROUNDING
    assert float(values.diff().min()) > -ROUNDING


def test_the_monotone_scheme_in_the_plane():
    problem = sc.Problem(sc.ReverseProcess(sc.VP(0.1, 5.0), sc.Gaussian([0.3, 0.0], [0.6, 0.4])),
                         sc.Step([1.0, 0.5], 0.5, 1.0), 0.5)  # fmt: skip
    solutions = [sc.solve_hjb(problem, axes_for(problem, n)) for n in (41, 81)]
    x = 3 * torch.rand(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1.5
    (v_coarse, _), (v_fine, _) = (errors(s, 0.5, x) for s in solutions)
    assert v_fine < 0.6 * v_coarse and v_fine < 0.01


def test_the_monotone_scheme_adds_the_running_reward():
    """Riccati; without the running reward the error would be above 0.1 and would not fall with the node distance."""
    process = sc.DiffusionProcess(sc.Affine([[-0.5]]), 0.8, sc.Gaussian([0.0], [[0.1]]))
    problem = sc.Problem(process, sc.Quadratic([0.4], 0.5), 0.9, sc.Quadratic([0.3], 0.5))
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    coarse, fine = (sc.solve_hjb(problem, [(-5.0, 5.0, n)], Monotone()) for n in (81, 161))
    assert errors(fine, 0.2, x)[0] < 0.6 * errors(coarse, 0.2, x)[0] < 0.02


def test_implicit_step_solves_its_equation_and_keeps_order():
    """Against a dense solve; and the inverse has no negative entry, whatever the step and the drift."""
    rng = np.random.default_rng(1)
    x, b = np.cumsum(rng.uniform(0.1, 0.3, 12)), torch.from_numpy(rng.normal(scale=30, size=(12, 1)))
    eye = torch.eye(12, dtype=torch.float64)
    inverse = implicit(x, b.expand(12, 12).contiguous(), eye, 5.0)
    generator = (eye - torch.linalg.inv(inverse)) / 5.0
    assert float(inverse.min()) >= 0
    assert torch.allclose(generator.sum(1), torch.zeros(12, dtype=torch.float64), atol=1e-8)  # constants are kept
    drift = generator @ torch.from_numpy(x)
    assert torch.allclose(drift[1:-1], b[1:-1, 0], rtol=1e-8)  # local consistency: the mean motion of the chain


# --- blow-up, residual, orders


@pytest.mark.parametrize(("scheme", "tolerance"), [(Smoothing(), 1e-9), (FiniteDifference(), 1e-7)])
@pytest.mark.parametrize("curvature", [-1.2, -0.9])
def test_blow_up_is_where_the_riccati_equation_says(scheme, tolerance, curvature):
    process = sc.ReverseProcess(sc.VP(0.1, 5.0), sc.Gaussian([0.5], [[2.0]]))
    quadratic = sc.Quadratic([0.3], [[curvature]])
    with pytest.raises(sc.ValueBlowUp) as closed:
        sc.Problem(process, quadratic, 0.9)
    hidden = sc.Problem(process, lambda x: quadratic(x), 0.9)
    with pytest.raises(sc.ValueBlowUp) as found:
        scheme.solve(hidden, [np.linspace(-8, 8, 49)])
    assert found.value.time == pytest.approx(closed.value.time, abs=tolerance)


def test_no_blow_up_where_there_is_none():
    """Just below the threshold, on a box that holds the wide tilt."""
    process = sc.ReverseProcess(sc.VP(0.1, 5.0), sc.Gaussian([0.5], [[2.0]]))
    quadratic = sc.Quadratic([0.3], [[-0.40]])
    expected = sc.Problem(process, quadratic, 0.9).exact
    hidden = sc.Problem(process, lambda x: quadratic(x), 0.9)
    x = torch.linspace(-2, 2, 21, dtype=torch.float64)[:, None]
    for scheme in (Smoothing(), FiniteDifference()):
        field = scheme.solve(hidden, [np.linspace(-24, 24, 193)])
        assert torch.allclose(field.read(0.0, x)[0], expected.value(0.0, x), atol=1e-5)


def test_a_kink_at_the_border_is_not_called_a_blow_up():
    """Two Gaussians, upward curvature: the value is infinite up to t = 0.345 (closed form), but finite differences fail
    before, where the modes meet at the border; that is a failure of the grid, and said to be one.
    """
    law = sc.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [[1.0, 0.5], [0.4, 1.6]])
    process, quadratic = sc.ReverseProcess(sc.VP(0.1, 5.0), law), sc.Quadratic([0.3, 0.1], -np.eye(2))
    with pytest.raises(sc.ValueBlowUp) as closed:
        sc.Problem(process, quadratic, 0.9)
    hidden, axes = sc.Problem(process, lambda x: quadratic(x), 0.9), [np.linspace(-8, 8, 48)] * 2
    with pytest.raises(sc.NotFinite, match="in a part of the box"):
        FiniteDifference(tolerance=1e-5).solve(hidden, axes)
    with pytest.raises(sc.ValueBlowUp) as found:  # the growth of the density far out is not deceived
        Smoothing().solve(hidden, axes)
    assert found.value.time == pytest.approx(closed.value.time, abs=1e-9)


def test_the_residual_tells_right_from_wrong():
    problem = double_peak()
    solution = sc.solve_hjb(problem, axes_for(problem, 160))
    middle = slice(40, 120)
    right = float(solution.residual(0.5)[middle].abs().max())
    wrong = sc.Problem(problem.process, problem.reward, 0.7)  # the same v under the equation of another temperature
    solution.problem = wrong
    assert right < 1e-5 < 1e-2 < float(solution.residual(0.5)[middle].abs().max())
    with pytest.raises(sc.BadInput, match="strictly between"):
        solution.residual(0.0)


def test_observed_order_and_error_estimate():
    problem = double_peak()
    low, high = axes_for(problem, 16, FiniteDifference())[0][[0, -1]]
    solution = sc.solve_hjb(problem, [(low, high, 100)], FiniteDifference())
    x = torch.linspace(low / 2, high / 2, 101, dtype=torch.float64)[:, None]
    true = max(float((solution.value(t, x) - problem.exact.value(t, x)).abs().max()) for t in (0.0, 0.5, 0.9))
    assert solution.order > 4
    assert true < solution.error < 1000 * true


# --- the control at work, the clock, what is refused


def test_the_grid_control_has_the_gap_of_the_exact_one():
    """The same noise: the difference of the gaps is paired. Splines of 96 nodes are off by 1e-5 of u at most."""
    problem = double_peak()
    solution = sc.solve_hjb(problem, axes_for(problem, 96))
    controls = {"exact": problem.exact.control, "grid": solution.control, "scaled": 0.6 * solution.as_control()}
    entries = {name: (control, problem.exact.initial) for name, control in controls.items()}
    rows = sc.compare(problem, entries, grid=sc.TimeGrid.log_snr(40), n=4000, show=False).rows
    gap = {name: row.gap for name, row in rows.items()}
    assert abs(gap["grid"].value - gap["exact"].value) < 0.01 * gap["exact"].stderr
    assert gap["scaled"].value - gap["exact"].value > 5 * gap["scaled"].stderr  # a planted factor is seen


def test_clock():
    clock = Clock(double_peak().process)
    assert clock.total == pytest.approx(0.1 + 4.9 / 2, rel=1e-11)
    assert clock.tau(1 - 0.3) == pytest.approx(0.1 * 0.3 + 4.9 * 0.3**2 / 2, rel=1e-11)
    assert clock.time(clock.tau(0.37)) == pytest.approx(0.37, abs=1e-11)


def test_the_page_runs():
    page = (Path(__file__).parents[1] / "docs" / "hjb.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(compile(block, "docs/hjb.md", "exec"), names)
    assert isinstance(names["solution"], sc.value.HJBSolution)


def test_the_page_says_what_was_recorded():
    root = Path(__file__).parents[1]
    page = (root / "docs" / "hjb.md").read_text()
    for row in json.loads((root / "experiments" / "results" / "hjb_grid.json").read_text())["table"]:
        pattern = rf"\| `{row['scheme']}` \| [^|]* \| {row['points']} \| {row['value']:.1e} \| {row['control']:.1e} \|"
        assert len(re.findall(pattern, page)) == 1, row


def test_a_law_without_a_density():
    """Data on a line in the plane, its drift singular at t = T: entered at s = 1e-6, steps geometric by themselves."""
    process = sc.ReverseProcess(sc.VP(0.1, 5.0), sc.SubspaceGaussian([[0.8], [0.6]], [0.2], [[0.5]]))
    problem = sc.Problem(process, sc.Quadratic([0.5, 0.2], np.diag([0.3, 0.2])), 0.8)
    solution = sc.solve_hjb(problem, axes_for(problem, 24), FiniteDifference(order=4, tolerance=1e-5))
    x = 2 * torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    for t in (0.0, 0.5, 0.9):
        v, u = errors(solution, t, x)
        assert v < 1e-4 and u < 1e-3


def test_refusals_come_before_work():
    problem, axis = double_peak(), (-5.0, 5.0, 64)
    for axes, words in [
        ([axis, axis], "2 axes"),
        ([(-5.0, 5.0, 8)], "8 points"),
        ([(-5.0, 5.0)], "tuple of 2"),
        ([np.zeros(64)], "does not increase"),
        ([(-1.0, 1.0, 64)], "% of the tilted law outside"),
    ]:
        with pytest.raises(sc.BadInput, match=words):
            sc.solve_hjb(problem, axes)
    with pytest.raises(sc.BadInput, match="% of the tilted law outside"):
        sc.solve_hjb(problem, [(-1.0, 1.0, 64)], FiniteDifference())
    with pytest.raises(sc.BadInput, match="order = 7"):
        sc.solve_hjb(problem, [axis], FiniteDifference(order=7))
    with pytest.raises(sc.NotDefined, match="running reward"):
        sc.solve_hjb(sc.Problem(problem.process, problem.reward, 0.8, sc.Linear([1.0])), [axis], Smoothing())
    with pytest.raises(sc.NotDefined, match="exact score"):
        sc.solve_hjb(ornstein_uhlenbeck(), [axis], Smoothing())
    four = sc.Problem(sc.ReverseProcess(sc.VP(), sc.Gaussian(np.zeros(4), 1.0)), sc.Linear(np.ones(4)), 1.0)
    with pytest.raises(sc.BadInput, match=r"states of shape \(4,\)"):
        sc.solve_hjb(four, [axis] * 4)
    solution = sc.solve_hjb(problem, [axis])
    with pytest.raises(sc.BadInput, match="leaves the box"):
        solution.value(0.9, torch.tensor([[40.0]], dtype=torch.float64))
    with pytest.raises(sc.BadInput, match="points of shape"):
        solution.value(0.9, torch.zeros(3, 2))
    for read in (solution.value, solution.control):
        with pytest.raises(sc.BadInput, match="generation time"):
            read(1.5, torch.zeros(3, 1))
    silent = sc.DiffusionProcess(lambda t, x: -x, lambda t: max(t - 0.5, 0.0), sc.Gaussian([0.0], [[1.0]]))
    with pytest.raises(sc.BadInput, match="an amplitude between 0"):
        sc.solve_hjb(sc.Problem(silent, sc.Linear([1.0]), 1.0), [(-8.0, 8.0, 64)])


def test_a_box_for_wells_is_not_wider_than_their_tails():
    """Two wells at -1 and 1, a tenth wide: the box ends where the tails do; errors against the spectrum, path law."""
    problem = sc.problems.double_well(1, 1)
    (axis,) = axes_for(problem, 192, FiniteDifference())
    assert -2.0 < axis[0] < -1.4 and 1.4 < axis[-1] < 2.0
    solution = sc.solve_hjb(problem, [1.2 * axis], FiniteDifference())
    gap, size = torch.zeros(2, 2, dtype=torch.float64)
    path = sc.simulate(problem.process, problem.exact.control, n=500)
    for k in range(0, len(path.times) - 1, 20):
        t, x = float(path.times[k]), path.states[k].double()
        for i, (found, exact) in enumerate([(solution.value(t, x), problem.exact.value(t, x)),
                                            (solution.control(t, x), problem.exact.control(t, x))]):  # fmt: skip
            gap[i] += (found - exact).square().sum()
            size[i] += exact.square().sum()
    v, u = (gap / size).sqrt().tolist()
    assert v < 1e-8 and u < 1e-7


def test_the_record_thins_itself(monkeypatch):
    """Four rows: what is left is evenly spaced, starts at 0 and ends with the last."""
    monkeypatch.setattr("sdecontrol.value.hjb_marching._FEWEST_KEPT", 4)
    monkeypatch.setattr("sdecontrol.value.hjb_marching._MOST_KEPT", 4)
    record = Record(torch.zeros(2, dtype=torch.float64))
    for k in range(11):
        record.offer(float(k), torch.full((2,), float(k), dtype=torch.float64), last=k == 10)
    taus, values = zip(*record.slices())
    assert taus == (0.0, 4.0, 8.0, 10.0) and [float(v[1]) for v in values] == list(taus)
