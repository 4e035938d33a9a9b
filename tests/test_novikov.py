"""Novikov thresholds against Fredholm determinants of the Ornstein-Uhlenbeck covariance.

For a centred Gaussian path with covariance operator C and u* = B(t) Y, E exp(1/2 int |u*|^2) = det(I - B C B)^{-1/2} if
the largest eigenvalue of B C B is below 1, else infinite. Nystrom's method with Gauss nodes, extrapolated: no Riccati
equation anywhere.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

import sdecontrol as sc
from sdecontrol.errors import NoClosedForm
from sdecontrol.novikov import novikov

STATIONARY = sc.ReverseProcess(
    sc.VP(1.0, 1.0), sc.Gaussian(0.0, 1.0)
)  # dY = -Y/2 dt + dB, Y_0 ~ N(0, 1): theory, section 2


def stationary(horizon):
    return sc.ReverseProcess(sc.VP(1.0, 1.0, horizon), sc.Gaussian(0.0, 1.0))


@dataclass
class Bare:
    """A problem without sc.Problem's refusal of rewards whose tilt does not exist."""

    process: sc.ReverseProcess
    reward: sc.Quadratic
    temperature: float = 1.0
    running_reward: None = None


def diagnose(curvature, process=STATIONARY, temperature=1.0):
    d = process.event_shape[0]
    reward = sc.Quadratic(curvature=curvature * torch.eye(d, dtype=torch.float64))
    return novikov(Bare(process, reward, temperature))


def gain(k, t, horizon=1.0):
    """u* = -gain(t) y for r = -k x^2/2: gain = k a^2 / (1 + k (1 - a^2)), a^2 = e^{t - horizon} (theory 1.2)."""
    a2 = np.exp(t - horizon)
    return k * a2 / (1 + k * (1 - a2))


def operator_eigenvalues(k, panels, start=0.0, horizon=1.0, from_point=False):
    """Eigenvalues of gain C gain on [start, horizon]; C = e^{-|t-s|/2}, less e^{-(s+t-2 start)/2} from a point."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    edges = np.linspace(start, horizon, panels + 1)
    t = np.concatenate([(b - a) / 2 * nodes + (a + b) / 2 for a, b in zip(edges, edges[1:])])
    w = np.concatenate([(b - a) / 2 * weights for a, b in zip(edges, edges[1:])])
    covariance = np.exp(-np.abs(t[:, None] - t) / 2) - from_point * np.exp(start - (t[:, None] + t) / 2)
    scaled = np.sqrt(w) * gain(k, t, horizon)
    return np.linalg.eigvalsh(scaled[:, None] * covariance * scaled)


def extrapolated(f):
    """Limit of f(panels): the kink of C on the diagonal makes an error that is a series in panels^-2."""
    column = [f(p) for p in (8, 16, 32)]
    for power in (2, 4):
        column = [(2**power * b - a) / (2**power - 1) for a, b in zip(column, column[1:])]
    return column[-1]


def threshold_by_eigenvalues(sign, upper, horizon=1.0):
    def of(panels):
        return brentq(lambda k: operator_eigenvalues(sign * k, panels, 0.0, horizon)[-1] - 1, 0.01, upper, xtol=1e-13)

    return extrapolated(of)


def test_threshold_of_the_concave_side():
    """r = -k x^2/2: the tilt N(0, 1/(1+k)) exists for every k, Novikov only below a finite k."""
    expected = threshold_by_eigenvalues(1, 200.0)
    found = diagnose(1.0)
    assert found.novikov_holds and found.martingale and found.tilt_exists and found.explosion_time is None
    assert found.threshold == pytest.approx(expected, rel=1e-7)
    below, above = diagnose(expected * (1 - 1e-5)), diagnose(expected * (1 + 1e-5))
    assert below.novikov_holds and math.isfinite(below.log_moment)
    assert not above.novikov_holds and above.log_moment == math.inf
    assert above.tilt_exists and above.martingale and above.martingale_defect < 1e-9
    assert above.explosion_time == 0.0  # the moment from every fixed start is finite, its average over p_noise is not


def test_threshold_of_the_convex_side_comes_before_that_of_the_tilt():
    """r = +k x^2/2 on a long horizon: the tilt exists for k < 1, Novikov fails earlier."""
    process = stationary(3.0)
    expected = threshold_by_eigenvalues(-1, 0.999, 3.0)
    found = diagnose(-0.1, process)
    assert expected < 1 and 0.1 * found.threshold == pytest.approx(expected, rel=1e-7)
    between = diagnose(-(expected + 1) / 2, process)
    assert not between.novikov_holds and between.tilt_exists and between.martingale
    assert between.martingale_defect < 1e-9


def test_critical_horizon_of_the_convex_side():
    """At k = 1 the gain is 1, and the largest eigenvalue of e^{-|t-s|/2} is 1 at horizon 2 pi / (3 sqrt 3): there both
    thresholds meet (derived: omega tan(omega T/2) = 1/2, omega^2 = 3/4); on shorter horizons Novikov outlives the tilt.
    """
    critical = 2 * math.pi / (3 * math.sqrt(3))
    assert 0.5 * diagnose(-0.5, stationary(critical)).threshold == pytest.approx(1, abs=1e-8)
    assert 0.5 * diagnose(-0.5, stationary(1.0)).threshold > 1
    without_tilt = diagnose(-1.01)
    assert not without_tilt.tilt_exists and without_tilt.novikov_holds and without_tilt.martingale


def test_no_martingale_where_the_value_does_not_exist():
    """v(0, .) is infinite beyond k = 1/P_T = 1/(1 - e^-1), and just finite below."""
    limit = 1 / (1 - math.exp(-1.0))
    below, above = diagnose(-0.99 * limit), diagnose(-1.01 * limit)
    assert below.martingale and not below.tilt_exists
    assert not above.martingale and above.martingale_defect == math.inf and above.explosion_time > 0


@pytest.mark.parametrize("k", [0.5, 2.0, -0.5])
def test_moment_is_a_fredholm_determinant(k):
    """log E exp(1/2 int |u*|^2) = -1/2 log det(I - gain C gain)."""
    expected = extrapolated(lambda p: -0.5 * np.log1p(-operator_eigenvalues(k, p)).sum())
    assert diagnose(k).log_moment == pytest.approx(expected, rel=1e-7)
    assert diagnose(k * 0.7, temperature=0.7).log_moment == pytest.approx(expected, rel=1e-7)


def test_explosion_from_a_point_is_at_an_inner_time():
    """From (t, y) the moment is infinite once the largest eigenvalue on [t, 1], started at a point, reaches 1."""
    k = 60.0
    found = diagnose(k)
    assert found.explosion_time is not None and 0 < found.explosion_time < 1

    def largest(start, panels):
        return operator_eigenvalues(k, panels, start, from_point=True)[-1]

    expected = extrapolated(lambda panels: brentq(lambda t: largest(t, panels) - 1, 0.0, 0.999, xtol=1e-14))
    assert found.explosion_time == pytest.approx(expected, abs=1e-6)


def test_discrete_exponential_moment_converges_to_it():
    """E exp(1/2 sum dt |u|^2) on exact transitions is one determinant a chain; first order, extrapolated."""
    k, values = 2.0, []
    for steps in (100, 200, 400, 800, 1600):
        t = np.arange(steps) / steps
        scaled = gain(k, t) / math.sqrt(steps)
        covariance = np.exp(-np.abs(t[:, None] - t) / 2)
        values.append(-0.5 * np.linalg.slogdet(np.eye(steps) - scaled[:, None] * covariance * scaled)[1])
    column = np.array(values)
    for power in (1, 2, 3, 4):
        column = (2**power * column[1:] - column[:-1]) / (2**power - 1)
    assert diagnose(k).log_moment == pytest.approx(column[-1], rel=2e-9)


def test_several_dimensions_and_linear_terms():
    """Independent coordinates add; a linear reward has constant u*, so log E exp(1/2 int |u*|^2) is its energy."""
    pair = sc.ReverseProcess(sc.VP(1.0, 1.0), sc.Gaussian([0.0, 0.0], 1.0))
    assert diagnose(1.5, pair).log_moment == pytest.approx(2 * diagnose(1.5).log_moment, rel=1e-9)
    assert diagnose(1.0, pair).threshold == pytest.approx(diagnose(1.0).threshold, rel=1e-8)
    g = 0.8
    linear = novikov(sc.Problem(STATIONARY, sc.Linear([g])))
    assert linear.log_moment == pytest.approx(g**2 * (1 - math.exp(-1.0)) / 2, rel=1e-9)  # int (g a)^2 / 2
    assert linear.threshold == math.inf and linear.martingale


def test_correlated_data_and_a_shifted_reward_keep_the_martingale():
    process = sc.ReverseProcess(sc.VP(0.3, 4.0), sc.Gaussian([1.0, -0.5], [[0.8, 0.3], [0.3, 0.5]]))
    reward = sc.Quadratic([0.7, -0.4], [[6.0, 1.0], [1.0, -0.2]], 0.3)
    found = novikov(sc.Problem(process, reward, temperature=0.6))
    assert found.tilt_exists and found.martingale and found.martingale_defect < 1e-8


def test_what_is_not_closed_says_so():
    with pytest.raises(NoClosedForm, match="quadratic"):
        novikov(sc.Problem(STATIONARY, sc.Step([1.0], 0.0, 1.0)))
    with pytest.raises(NoClosedForm, match="running"):
        novikov(sc.Problem(STATIONARY, sc.Linear([1.0]), running_reward=sc.Linear([1.0])))
