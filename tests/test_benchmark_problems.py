"""The reference problems: exact answers against printed values, quadrature in the radius, differences and ODEs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact_oracles import hjb_residual
from scipy.integrate import quad, solve_ivp
from scipy.linalg import solve_banded
from scipy.stats import chi2, ncx2

import sdecontrol as sc
from sdecontrol.errors import NoClosedForm, NotDefined, UnknownName

P = sc.problems


def at(*x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


def origin(dim: int) -> torch.Tensor:
    return torch.zeros(1, dim, dtype=torch.float64)


# ---------------------------------------------------------------------- log-quadratic


@pytest.mark.parametrize(
    ("dim", "strength", "printed"),
    [(100, 1, 4.5901617246), (100, 10, 4.49292949135), (1, 1, -0.08735381309), (10, 1, 2.15702246482),
     (1000, 1, 6.90625515787)],
)  # fmt: skip
def test_log_quadratic_printed_values(dim: int, strength: float, printed: float) -> None:
    value = float(P.log_quadratic_hjb(dim, strength).exact.value(0.0, origin(dim)))
    assert value == pytest.approx(-printed, abs=2e-10)  # the last printed digit


def radial_mean(f, dim: int, tau: float, square: float) -> float:
    """E f(|x + sqrt(2 tau) Z|^2) by adaptive quadrature over the (noncentral) chi-square law, |x|^2 = square."""
    law = ncx2(dim, square / (2 * tau)) if square else chi2(dim)
    edges = [0.0, *law.ppf([1e-9, 1e-3, 0.1, 0.5, 0.9, 0.999]), float(law.ppf(1 - 1e-14)) * 1.5]
    return sum(
        quad(lambda y: f(2 * tau * y) * law.pdf(y), a, b, epsabs=0, epsrel=1e-12, limit=400)[0]
        for a, b in zip(edges, edges[1:])
    )


@pytest.mark.parametrize(
    ("dim", "strength", "t", "offset"),
    [(5, 2.0, 0.0, 0.0), (5, 2.0, 0.3, 0.7), (3, 0.5, 0.8, 1.5), (40, 8.0, 0.1, 0.0)],
)
def test_log_quadratic_against_the_radius(dim: int, strength: float, t: float, offset: float) -> None:
    problem, x = P.log_quadratic_hjb(dim, strength), torch.full((1, dim), offset, dtype=torch.float64)
    h = radial_mean(lambda rho: (2 / (1 + rho)) ** strength, dim, 1 - t, dim * offset**2)
    assert float(problem.exact.value(t, x)) == pytest.approx(math.log(h) / strength, rel=1e-9, abs=1e-10)


def test_log_quadratic_path_kl_and_terminal() -> None:
    problem = P.log_quadratic_hjb(6, 3.0)
    weight = lambda rho: (2 / (1 + rho)) ** 3  # noqa: E731
    c = radial_mean(weight, 6, 1.0, 0.0)
    tilted = radial_mean(lambda rho: weight(rho) * math.log(weight(rho)), 6, 1.0, 0.0) / c
    assert problem.exact.log_normalizer == pytest.approx(math.log(c), abs=1e-10)
    assert problem.exact.path_kl == pytest.approx(tilted - math.log(c), abs=1e-9)
    line = P.log_quadratic_hjb(1, 2.0).exact
    for law in (line.terminal, line.marginal(0.4)):  # the normaliser given against quadrature on the line
        assert law.line.log_normalizer == pytest.approx(law.log_normalizer, abs=1e-10)


# ---------------------------------------------------------------------- Ornstein-Uhlenbeck


@pytest.mark.parametrize(("kind", "printed"), [("easy", 4.055382123), ("hard", 20.697248488)])
def test_quadratic_ou(kind: str, printed: float) -> None:
    problem = P.quadratic_ou(kind)
    a, p, q = {"easy": (0.2, 0.2, 0.1), "hard": (1.0, 1.0, 0.5)}[kind]
    assert float(problem.exact.value(0.0, origin(20))) == pytest.approx(-printed, abs=1e-9)
    f = solve_ivp(lambda t, y: -2 * a * y + 2 * y * y - p, (1, 0.3), [q], rtol=1e-11, atol=1e-12).y[0, -1]
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)[None]
    assert torch.allclose(problem.exact.control(0.3, x), -2 * f * x, atol=1e-8)


def test_linear_ou() -> None:
    problem = P.linear_ou()
    assert float(problem.exact.value(0.0, origin(10))) == pytest.approx(2.161661791908, abs=1e-11)
    assert torch.allclose(problem.exact.control(0.4, origin(10)), -torch.full((1, 10), math.exp(-0.6)).double())


# ---------------------------------------------------------------------- wells


def backward_equation(force, f, tau: float, nodes: int, steps: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """h_tau = h''/2 + force h', h(0) = f, reflecting ends: central differences, Crank-Nicolson after four steps."""
    x = np.linspace(-reach, reach, nodes)
    dx, b = x[1] - x[0], force(x)
    lower, upper = 1 / (2 * dx**2) - b / (2 * dx), 1 / (2 * dx**2) + b / (2 * dx)
    middle = -(lower + upper)
    upper[0], lower[-1] = upper[0] + lower[0], lower[-1] + upper[-1]
    h = f(x)

    def apply(h: np.ndarray) -> np.ndarray:
        out = middle * h
        out[1:] += lower[1:] * h[:-1]
        out[:-1] += upper[:-1] * h[1:]
        return out

    def implicit(h: np.ndarray, dt: float, theta: float) -> np.ndarray:
        side = h + (1 - theta) * dt * apply(h) if theta < 1 else h
        bands = np.zeros((3, nodes))
        bands[0, 1:], bands[1], bands[2, :-1] = (
            -theta * dt * upper[:-1],
            1 - theta * dt * middle,
            -theta * dt * lower[1:],
        )
        return solve_banded((1, 1), bands, side)

    dt = tau / steps
    for _ in range(4):
        h = implicit(h, dt / 4, 1.0)
    for _ in range(steps - 1):
        h = implicit(h, dt, 0.5)
    return x, h


def extrapolated(force, f, tau: float, where: float, reach: float) -> tuple[float, float]:
    """h at a node from steps 1, 1/2, 1/4 of second order: the limit and what it may have left."""
    found = []
    for k in (1, 2, 4):
        x, h = backward_equation(force, f, tau, 800 * k + 1, 400 * k, reach)
        found.append(h[np.abs(x - where).argmin()])
    fine, coarse = (4 * found[2] - found[1]) / 3, (4 * found[1] - found[0]) / 3
    return fine, abs(fine - coarse)


@pytest.mark.parametrize(
    ("depth", "pull", "where", "tau"), [(5.0, 3.0, 0.0, 1.0), (1.0, 1.0, 0.6, 0.5), (5.0, 3.0, 0.75, 0.2)]
)
def test_wells_against_finite_differences(depth: float, pull: float, where: float, tau: float) -> None:
    force = lambda x: -4 * depth * x * (x * x - 1)  # noqa: E731
    reward = lambda x: -pull * (x * x - 1) ** 2  # noqa: E731
    problem = P.double_well(1, 1 if depth == 5 else 0)
    h, left = extrapolated(force, lambda x: np.exp(reward(x)), tau, where, 3.0)
    error = abs(float(problem.exact.value(1 - tau, at(where))) - math.log(h))
    assert error <= 4 * left / h
    assert left / h < 1e-5  # the route can see a wrong digit
    if tau == 1.0:
        mean, left_mean = extrapolated(force, lambda x: reward(x) * np.exp(reward(x)), tau, where, 3.0)
        assert abs(problem.exact.path_kl - (mean / h - math.log(h))) <= 8 * (left + left_mean) / h


def test_double_well_printed_values() -> None:
    exact = P.double_well().exact
    assert float(exact.value(0.0, origin(10))) == pytest.approx(-2.087425975, abs=1e-9)
    x = origin(10)
    x[0, 0], x[0, 9] = 0.2, 0.6
    assert float(exact.control(0.9, x)[0, 0]) == pytest.approx(2.281340082, abs=2e-9)
    assert float(exact.control(0.5, x)[0, 9]) == pytest.approx(0.101354283, abs=2e-9)
    assert exact.optimum == float(exact.value(0.0, origin(10))) == exact.objective_untilted


def test_many_well_is_a_product() -> None:
    """The bowls have the closed form of an Ornstein-Uhlenbeck coordinate; the wells add up."""
    exact, tau = P.many_well(3, 2).exact, 0.6
    mean, variance = 0.8 * math.exp(-tau), (1 - math.exp(-2 * tau)) / 2
    bowl = -math.log(1 + variance) / 2 - mean**2 / (2 * (1 + variance))
    assert float(P.many_well(1, 0).exact.value(1 - tau, at(0.8))) == pytest.approx(bowl, abs=1e-11)
    wells = float(P.many_well(1, 1).exact.value(1 - tau, at(0.3))) + float(
        P.many_well(1, 1).exact.value(1 - tau, at(-0.9))
    )
    assert float(exact.value(1 - tau, at(0.3, -0.9, 0.8))) == pytest.approx(wells + bowl, abs=1e-11)
    slope = -mean * math.exp(-tau) / (1 + variance)
    assert float(exact.control(1 - tau, at(0.3, -0.9, 0.8))[0, 2]) == pytest.approx(slope, abs=1e-8)


def test_wells_say_where_they_know_nothing() -> None:
    with pytest.raises(NotDefined, match="lost its digits"):
        P.double_well(1, 1).exact.value(0.5, at(2.1))
    with pytest.raises(NotDefined, match="lost its digits"):
        P.double_well(1, 1).exact.control(0.5, at(9.0))


# ---------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "problem",
    [P.log_quadratic_hjb(2, 2.0), P.double_well(2, 1), P.many_well(2, 1), P.linear_ou(2), P.step_reward(),
     P.gaussian_mixture()],
    ids=lambda p: p.name,
)  # fmt: skip
def test_hjb_equation_and_control(problem: sc.Problem) -> None:
    """Residual of the HJB equation and u* = amplitude grad v / temperature, by differences of order 4."""
    x = 0.6 * torch.randn(6, problem.process.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert hjb_residual(problem, x, step=5e-4) < 1e-5  # wells: sixth derivatives times (2.5e-3)^4
    wrong = sc.Problem(problem.process, problem.reward, problem.temperature, exact=lambda p: Skewed(problem.exact))
    assert hjb_residual(wrong, x, step=5e-4) > 2e-3


class Skewed:
    """Answers of which the value forgets 10 % of its size and the control with it."""

    def __init__(self, exact):
        self.value = lambda t, x: 0.9 * exact.value(t, x)
        self.control = lambda t, x: 0.9 * exact.control(t, x)

    def check_existence(self) -> None:
        pass


def test_problems_bring_their_own_answers() -> None:
    process, reward = P.linear_ou(1).process, lambda x: -x[:, 0].abs()
    with pytest.raises(NoClosedForm):
        _ = sc.Problem(process, reward).exact.log_normalizer
    asked = []
    own = sc.Problem(process, reward, exact=lambda problem: asked.append(problem) or P.linear_ou(1).exact)
    assert own.exact.log_normalizer == P.linear_ou(1).exact.log_normalizer
    assert asked == [own]


def test_names() -> None:
    with pytest.raises(UnknownName, match="easy"):
        P.quadratic_ou("eesy")
    with pytest.raises(sc.BadInput):
        P.log_quadratic_hjb(3, -1.0)
    with pytest.raises(sc.BadInput):
        P.double_well(2, 5)
