"""A problem checks what it is given before any work, and whether its optimum exists."""

import math

import numpy as np
import pytest
import torch

from sdecontrol.errors import BadInput, NoClosedForm, NoTilt, ValueBlowUp
from sdecontrol.laws import Gaussian, GaussianMixture, Isotropic, SubspaceGaussian
from sdecontrol.models import Score
from sdecontrol.problems.base import Problem
from sdecontrol.processes import DiffusionProcess, ReverseProcess
from sdecontrol.rewards import Linear, Quadratic
from sdecontrol.schedules import VE, VP

FLAT = VP(1.0, 1.0)


def one_dimensional(curvature, temperature=1.0, initial="standard", law=None):
    return Problem(
        ReverseProcess(FLAT, law or Gaussian(0.0, 4.0), initial), Quadratic([0.0], curvature), temperature
    )


def test_existence_is_decided_by_the_output_law_not_by_the_data():
    """S = 4, VP with beta = 1 up to T = 1, k/alpha = -0.32: no tilted data law, yet p_ft and v exist (theory
    1.3).
    """
    exact = one_dimensional(-0.32).exact
    with pytest.raises(NoTilt):
        Gaussian(0.0, 4.0).tilt(Quadratic([0.0], -0.32), 1.0)
    a2, h = math.exp(-1), 1 - math.exp(-1)
    output = 4 * h / (4 * a2 + h) + a2 * 16 / (4 * a2 + h) ** 2
    assert float(exact.reference.covariance) == pytest.approx(output, rel=1e-12)
    assert float(exact.terminal.covariance) == pytest.approx(output / (1 - 0.32 * output), rel=1e-12)
    assert exact.log_normalizer == pytest.approx(-0.5 * math.log(1 - 0.32 * output), rel=1e-12)
    for temperature in (0.05, 10.0):
        same = one_dimensional(-0.32 * temperature, temperature).exact
        assert same.log_normalizer == pytest.approx(exact.log_normalizer, rel=1e-12)


def test_no_tilt_names_the_eigenvalue_and_the_largest_curvature():
    a2, h = math.exp(-1), 1 - math.exp(-1)
    output = 4 * h / (4 * a2 + h) + a2 * 16 / (4 * a2 + h) ** 2
    with pytest.raises(NoTilt) as error:
        one_dimensional(-0.5)
    assert not isinstance(error.value, ValueBlowUp)  # the window: v finite, (3.15) infinite
    assert error.value.eigenvalue == pytest.approx(1 - 0.5 * output, rel=1e-10)
    assert error.value.largest_curvature == pytest.approx(1 / output, rel=1e-10)
    assert one_dimensional(-0.999 / output).exact.log_normalizer > 0
    with pytest.raises(NoTilt):
        one_dimensional(-1.001 / output)
    with pytest.raises(NoTilt) as matched:
        one_dimensional(-0.32, initial="marginal")
    assert matched.value.largest_curvature == pytest.approx(0.25, rel=1e-12)


def test_value_blow_up_names_the_time():
    """|k|/alpha >= 1/P_T: the value is infinite from the level where P_s = alpha/|k|, a^2 = (S - pi)/(S - pi
    + pi S).
    """
    k = 1.2
    with pytest.raises(ValueBlowUp) as error:
        one_dimensional(-k)
    pi = 1 / k
    level = -math.log((4 - pi) / (4 - pi + 4 * pi))  # a^2 = e^{-s}
    assert error.value.time == pytest.approx(1 - level, rel=1e-10)
    assert isinstance(error.value, NoTilt) and error.value.largest_curvature < 0.5
    assert f"t <= {1 - level:.6g}" in str(error.value)


def test_existence_for_a_mixture_from_a_gaussian_is_that_of_its_widest_component():
    """In the tails p_pre is governed by the widest component: the threshold of N(0, 4) alone."""
    a2, h = math.exp(-1), 1 - math.exp(-1)
    output = 4 * h / (4 * a2 + h) + a2 * 16 / (4 * a2 + h) ** 2
    law = GaussianMixture([0.3, 0.7], [[-1.0], [2.0]], [1.0, 4.0])
    assert math.isfinite(one_dimensional(-0.32, law=law).exact.log_normalizer)
    assert math.isfinite(one_dimensional(-0.99 / output, law=law).exact.log_normalizer)
    with pytest.raises(NoTilt) as error:
        one_dimensional(-0.45, law=law)
    assert error.value.largest_curvature == pytest.approx(1 / output, rel=1e-8)
    with pytest.raises(NoTilt):
        one_dimensional(-0.26, law=law, initial="marginal")
    with pytest.raises(ValueBlowUp):
        one_dimensional(-1.2, law=law)


def test_existence_on_a_subspace_sees_only_the_subspace():
    basis = np.eye(3)[:, :1]
    process = ReverseProcess(FLAT, SubspaceGaussian(basis, [0.0], [[4.0]]), "standard")
    assert Problem(process, Quadratic(curvature=np.diag([-0.32, -50.0, -50.0]))).exact.log_normalizer > 0
    with pytest.raises(NoTilt):
        Problem(process, Quadratic(curvature=np.diag([-0.5, 50.0, 50.0])))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf, "hot", None])
def test_bad_temperatures(temperature):
    with pytest.raises(BadInput, match="temperature"):
        one_dimensional(1.0, temperature)


def planar():
    return ReverseProcess(VP(), Gaussian([0.0, 0.0], 1.0))


@pytest.mark.parametrize(
    ("reward", "seen"),
    [
        (3.0, "float"),
        (Linear([1.0, 2.0, 3.0]), "dimension 3"),
        (lambda x: x, r"\(2, 2\)"),
        (lambda x: x.sum(), r"shape \(\)"),
        (lambda x: x.sum(1, keepdim=True), r"\(2, 1\)"),
        (lambda x: 1.0, "float"),
        (lambda x: x[:, 0] * math.nan, "nan"),
        (lambda x: x[:, 0] / 0, "inf"),
    ],
)
def test_bad_rewards(reward, seen):
    with pytest.raises(BadInput, match=seen):
        Problem(planar(), reward)
    with pytest.raises(BadInput, match="reward"):
        Problem(
            planar(),
            Linear([1.0, 0.0]),
            1.0,
            reward if isinstance(reward, (float, Linear)) else lambda t, x: reward(x),
        )


def test_bad_process():
    with pytest.raises(BadInput, match="Gaussian"):
        Problem(Gaussian(0.0, 1.0), Linear([1.0]))


def test_running_rate_takes_both_kinds():
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    quadratic = Quadratic([1.0, 0.0], [[1.0, 0.0], [0.0, 2.0]])
    problem = Problem(planar(), Linear([1.0, 0.0]), 1.0, quadratic)
    assert torch.equal(problem.running_rate(0.3, x), quadratic(x))
    problem = Problem(planar(), Linear([1.0, 0.0]), 1.0, lambda t, x: t * x[:, 1])
    assert torch.equal(problem.running_rate(0.3, x), 0.3 * x[:, 1])
    with pytest.raises(BadInput, match="without a running reward"):
        Problem(planar(), Linear([1.0, 0.0])).running_rate(0.3, x)


def test_what_is_not_closed_says_why():
    with pytest.raises(NoClosedForm, match="not Quadratic, Step or ClassPosterior"):
        Problem(planar(), lambda x: x[:, 0].sin()).exact.value(0.5, torch.zeros(1, 2))
    network = ReverseProcess(VP(), Score(lambda x, s: -x), event_shape=(2,))
    with pytest.raises(NoClosedForm, match="exact score"):
        Problem(network, Linear([1.0, 0.0])).exact.log_normalizer  # noqa: B018
    drift = DiffusionProcess(lambda t, x: x.sin(), 1.0, Gaussian([0.0, 0.0], 1.0))
    with pytest.raises(NoClosedForm, match="affine"):
        Problem(drift, Linear([1.0, 0.0])).exact.control  # noqa: B018
    for name in ("path_kl", "kl_initial", "energy", "initial", "terminal", "reference", "untilted_terminal"):
        with pytest.raises(NoClosedForm):
            getattr(Problem(drift, Linear([1.0, 0.0])).exact, name)


def test_times_outside_the_horizon():
    exact = one_dimensional(0.5).exact
    for t in (-0.1, 1.1, math.nan):
        with pytest.raises(BadInput, match="generation time"):
            exact.value(t, torch.zeros(1, 1))
        with pytest.raises(BadInput, match="generation time"):
            exact.control(t, torch.zeros(1, 1))


def test_an_isotropic_data_law_is_a_gaussian():
    isotropic = Problem(
        ReverseProcess(VE(0.01, 2.0), Isotropic(3, 0.7)), Quadratic([1.0, 0, 0], np.eye(3))
    ).exact
    gaussian = Problem(
        ReverseProcess(VE(0.01, 2.0), Gaussian([0.0] * 3, 0.49)), Quadratic([1.0, 0, 0], np.eye(3))
    ).exact
    assert isotropic.log_normalizer == pytest.approx(gaussian.log_normalizer, rel=1e-13)


def test_the_value_at_the_end_is_the_reward():
    x = torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = one_dimensional(0.3)
    assert torch.equal(problem.exact.value(1.0, x), problem.reward(x))
    assert torch.allclose(problem.exact.control(1.0, x), problem.reward.gradient(x), rtol=1e-14)
