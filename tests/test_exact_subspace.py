"""Data on a subspace: the ambient answers against the latent problem built by hand, and against moment
equations.
"""

import math

import numpy as np
import pytest
import torch
from exact_oracles import gaussian_kl, hjb_residual, vp

from sdecontrol.errors import NoClosedForm
from sdecontrol.exact.continuum.subspace import SubspaceControl
from sdecontrol.laws import (
    Dirac,
    Gaussian,
    GaussianMixture,
    Isotropic,
    Subspace,
    SubspaceGaussian,
    TiltedLaw,
    kl,
)
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import Quadratic, Step
from sdecontrol.schedules import VE, VP

D, d = 7, 2
RNG = np.random.default_rng(4)
BASIS = np.linalg.qr(RNG.normal(size=(D, d)))[0]
OFFSET = RNG.normal(size=D)
LATENT = Gaussian([0.5, -0.3], [[0.8, 0.3], [0.3, 0.5]])
MIXTURE = GaussianMixture(
    [0.4, 0.6], [[-1.0, 0.2], [0.8, 0.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]]
)
CURVATURE = RNG.normal(size=(D, D))
REWARD = Quadratic(RNG.normal(size=D), 0.2 * (CURVATURE + CURVATURE.T), 0.1)
NORMAL = RNG.normal(size=D)
STEP = Step(NORMAL, float(NORMAL @ OFFSET) + 0.3, 1.5)
SCHEDULE, TEMPERATURE = VP(1.0, 1.0), 0.6


def ambient(law=LATENT, initial="standard", reward=REWARD):
    return Problem(ReverseProcess(SCHEDULE, Subspace(BASIS, law, OFFSET), initial), reward, TEMPERATURE)


def by_hand(law=LATENT, initial="standard", reward=REWARD):
    """The problem of z = B'(y - a offset), whose start is B'Y_0 - a_T B'offset."""
    a = vp(1.0, 1.0, 1.0)[0]
    start = initial if initial == "marginal" else Gaussian(-a * BASIS.T @ OFFSET, np.eye(d))
    restricted = reward.restrict(torch.tensor(BASIS), torch.tensor(OFFSET))
    return Problem(ReverseProcess(SCHEDULE, law, start), restricted, TEMPERATURE)


@pytest.mark.parametrize("reward", [REWARD, STEP], ids=["quadratic", "step"])
@pytest.mark.parametrize("initial", ["standard", "marginal"])
@pytest.mark.parametrize("law", [LATENT, MIXTURE], ids=["gaussian", "mixture"])
def test_the_ambient_problem_is_the_latent_one(law, initial, reward):
    exact, latent = ambient(law, initial, reward).exact, by_hand(law, initial, reward).exact
    x = torch.randn(6, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0.0, 0.5, 0.95):
        a = vp(1 - t, 1.0, 1.0)[0]
        z = (x - a * torch.tensor(OFFSET)) @ torch.tensor(BASIS)
        assert torch.allclose(exact.value(t, x), latent.value(t, z), rtol=1e-11, atol=1e-12)
        u = exact.control(t, x)
        assert torch.allclose(u, latent.control(t, z) @ torch.tensor(BASIS).mT, rtol=1e-11, atol=1e-12)
        normal = u - u @ torch.tensor(BASIS @ BASIS.T)
        assert float(normal.abs().max()) < 1e-13  # u* lies in the span
    for name in ("log_normalizer", "path_kl", "kl_initial", "energy", "objective_untilted"):
        assert getattr(exact, name) == pytest.approx(getattr(latent, name), rel=1e-10), name
    u = torch.randn(5, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for name in ("terminal", "reference"):
        assert torch.allclose(
            getattr(exact, name).latent.log_prob(u), getattr(latent, name).log_prob(u), atol=1e-10
        )


@pytest.mark.parametrize(
    "options",
    [{"initial": "standard"}, {"initial": "marginal"}, {"reward": STEP}],
    ids=["standard", "marginal", "step"],
)
def test_the_initial_law_is_the_tilted_prior(options):
    problem = ambient(**options)
    exact = problem.exact
    x = torch.randn(6, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = problem.process.initial_law().log_prob(x) + exact.value(0, x) / TEMPERATURE - exact.log_normalizer
    assert torch.allclose(exact.initial.log_prob(x), expected, atol=1e-10)


def test_hjb_residual_off_the_subspace_too():
    x = torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert hjb_residual(ambient(), x, times=(0.2, 0.7), step=1e-3) < 1e-6


def test_marginals_against_the_joint_gaussian_of_data_and_noise():
    """Gaussian latent law: (X_0, X_s, X_T) is Gaussian on R^D; condition on X_T, put p_noise there, tilt by
    r(X_0).
    """
    exact, s = ambient().exact, 0.4
    a, h, _ = vp(1.0, 1.0, 1.0)
    b, k, _ = vp(s, 1.0, 1.0)
    cov0, mean0 = BASIS @ LATENT.covariance.numpy() @ BASIS.T, OFFSET + BASIS @ LATENT.mean.numpy()
    inner = b * b * cov0 + k * np.eye(D)
    end = a * a * cov0 + h * np.eye(D)
    cross = np.vstack([a * cov0, a / b * inner])  # Cov((X_0, X_s), X_T)
    joint = np.block([[cov0, b * cov0], [b * cov0, inner]])
    gain = cross @ np.linalg.inv(end)
    covariance = joint - gain @ cross.T + gain @ gain.T  # p_noise = N(0, I)
    mean = np.concatenate([mean0, b * mean0]) - gain @ (a * mean0)
    pick = np.eye(2 * D)[:D]
    bent = pick.T @ REWARD.curvature.numpy() @ pick / TEMPERATURE
    solve = np.linalg.inv(np.eye(2 * D) + covariance @ bent)
    tilted_covariance = solve @ covariance
    tilted_mean = solve @ (mean + covariance @ (pick.T @ REWARD.linear.numpy()) / TEMPERATURE)
    assert np.allclose(exact.reference.mean, mean[:D], atol=1e-10)
    assert np.allclose(exact.reference.covariance, covariance[:D, :D], atol=1e-10)
    assert np.allclose(exact.terminal.mean, tilted_mean[:D], atol=1e-10)
    assert np.allclose(exact.terminal.covariance, tilted_covariance[:D, :D], atol=1e-10)
    law = exact.marginal(1 - s)
    assert np.allclose(law.mean, tilted_mean[D:], atol=1e-10)
    assert np.allclose(law.covariance, tilted_covariance[D:, D:], atol=1e-10)
    x = law.sample(2000, Noise(0))
    assert np.allclose(
        x.double().mean(0), tilted_mean[D:], atol=5 * math.sqrt(np.diag(tilted_covariance)[D:].max() / 2000)
    )
    latent = by_hand().exact
    assert exact.path_kl == pytest.approx(
        gaussian_kl(
            *(
                np.asarray(v)
                for law in (latent.terminal, latent.reference)
                for v in (law.mean, law.covariance)
            )
        ),
        rel=1e-9,
    )
    assert exact.path_kl == pytest.approx(float(kl(exact.terminal, exact.reference)), rel=1e-9)


def test_a_start_that_is_not_isotropic():
    root = RNG.normal(size=(D, D)) / 3
    start = Gaussian(RNG.normal(size=D), root @ root.T + 0.3 * np.eye(D))
    problem = ambient(initial=start)
    exact, x = (
        problem.exact,
        torch.randn(6, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
    )
    expected = start.log_prob(x) + exact.value(0, x) / TEMPERATURE - exact.log_normalizer
    assert torch.allclose(exact.initial.log_prob(x), expected, atol=1e-9)
    with pytest.raises(NoClosedForm, match="isotropic"):
        exact.marginal(0.5)
    assert exact.kl_initial == pytest.approx(float(kl(exact.initial, start)), rel=1e-9)


def test_a_start_from_a_point_and_an_isotropic_law():
    exact = ambient(initial=Dirac(np.ones(D))).exact
    assert exact.initial.mean.tolist() == [1.0] * D and exact.kl_initial == 0
    same = ambient(initial=Isotropic(D, 1.0)).exact
    assert same.log_normalizer == pytest.approx(ambient().exact.log_normalizer, rel=1e-12)
    x = torch.randn(3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    law = exact.marginal(0.3)
    assert torch.isfinite(law.log_prob(x)).all()


def test_a_mixture_start_and_a_start_without_closed_forms():
    start = GaussianMixture([0.5, 0.5], np.stack([np.ones(D), -np.ones(D)]), [0.7, 0.4])
    for reward in (REWARD, STEP):
        problem = ambient(initial=start, reward=reward)
        exact, a = problem.exact, vp(1.0, 1.0, 1.0)[0]
        latent = start.affine(torch.tensor(BASIS.T), torch.tensor(-a * BASIS.T @ OFFSET))
        line = torch.linspace(-8, 8, 161, dtype=torch.float64)
        y = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
        growth = exact.latent.value(0.0, y) / TEMPERATURE
        log_p = latent.log_prob(y) + 2 * math.log(float(line[1] - line[0]))
        log_c = float((log_p + growth).logsumexp(0))
        assert exact.log_normalizer == pytest.approx(log_c, rel=1e-9)
        nu = (log_p + growth - log_c).exp()
        assert exact.kl_initial == pytest.approx(float(nu @ growth) - log_c, rel=1e-8)
        assert exact.objective_untilted == pytest.approx(TEMPERATURE * float(log_p.exp() @ growth), rel=1e-8)
    x = torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    nu = ambient(initial=start).exact.initial
    expected = start.log_prob(x) + ambient(initial=start).exact.value(0, x) / TEMPERATURE
    gap = nu.log_prob(x) - expected
    assert float((gap - gap[0]).abs().max()) < 1e-9

    tilted = TiltedLaw(Gaussian(np.zeros(D), 1.0), lambda x: -x[:, 0].abs())
    open_start, standard = ambient(initial=tilted).exact, ambient().exact
    assert torch.equal(open_start.value(0.3, x), standard.value(0.3, x))  # the value does not know the start
    assert torch.equal(open_start.control(0.3, x), standard.control(0.3, x))
    with pytest.raises(NoClosedForm, match="marginal"):
        open_start.log_normalizer  # noqa: B018


def test_affine_gain_and_the_cheap_control_agree():
    control = ambient().exact.control
    assert isinstance(control, SubspaceControl)
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    gain, offset = control.affine_at(0.4)
    assert torch.allclose(control(0.4, x), x @ gain.mT + offset, atol=1e-12)
    assert control(0.4, x.float()).dtype == torch.float32


def test_a_wide_space_costs_its_latent_dimension():
    """In D = 20 000 nothing of size D x D is made."""
    wide = 20_000
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(wide, 3, dtype=torch.float64, generator=generator))[0]
    law = SubspaceGaussian(basis, np.zeros(3), np.diag([1.0, 0.5, 0.2]))
    process = ReverseProcess(VE(0.01, 3.0), law, "standard")
    exact = Problem(process, Step(basis[:, 0] + basis[:, 1], 0.1, 1.0), 0.5).exact
    latent = ReverseProcess(VE(0.01, 3.0), law.latent, "standard")
    by_latent = Problem(latent, Step([1.0, 1.0, 0.0], 0.1, 1.0), 0.5).exact
    x = torch.randn(4, wide, dtype=torch.float64, generator=generator)
    z = x @ basis
    assert torch.allclose(exact.value(0.5, x), by_latent.value(0.5, z), rtol=1e-10)
    assert torch.allclose(exact.control(0.5, x), by_latent.control(0.5, z) @ basis.mT, rtol=1e-8, atol=1e-13)
    expected = process.initial_law().log_prob(x) + exact.value(0, x) / 0.5 - exact.log_normalizer
    assert torch.allclose(exact.initial.log_prob(x), expected, rtol=1e-12)
