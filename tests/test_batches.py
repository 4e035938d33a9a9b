"""One sample does not depend on the others: any split, permutation or size of the batch, for every law and sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sdecontrol as sc
from sdecontrol import guidance, steering
from sdecontrol.step import StepView

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(4, 4))
LAW = sc.Gaussian(RNG.normal(size=4), ROOT @ ROOT.T / 4 + 0.2 * np.eye(4))
BASIS = np.linalg.qr(RNG.normal(size=(7, 4)))[0]
G = RNG.normal(size=7)
GRID, KERNEL = sc.TimeGrid.log_snr(8, s_min=1e-2), sc.Ancestral()
SMALL, LARGE = 24, 70


def problem(kind: str) -> sc.Problem:
    if kind == "gaussian":
        return sc.Problem(sc.ReverseProcess(sc.VP(), LAW), sc.GaussianLabel(G[:4], 1.0, 0.5), 1.0)
    if kind == "mixture":
        means, covariances = torch.stack([LAW.mean - 1, LAW.mean + 1]), torch.stack([LAW.covariance] * 2)
        law = sc.GaussianMixture([0.3, 0.7], means, covariances)
        return sc.Problem(sc.ReverseProcess(sc.VP(), law, "marginal"), sc.GaussianLabel(G[:4], 1.0, 0.5), 1.0)
    law = sc.SubspaceGaussian(BASIS, LAW.mean, LAW.covariance)
    return sc.Problem(sc.ReverseProcess(sc.VP(), law), sc.GaussianLabel(G, 1.0, 0.5), 1.0)


def dim(p: sc.Problem) -> int:
    return p.process.dim


LAWS = {
    "doob, lookahead": guidance.doob,
    "doob, value": lambda p: guidance.doob(p, form="value"),
    "doob, score": lambda p: guidance.doob(p, form="score"),
    "plug-in": guidance.plug_in,
    "dps": guidance.dps,
    "dps, norm": lambda p: guidance.dps(p, squared=False, scale=0.1),
    "pigdm": guidance.pigdm,
    "exact variance": guidance.exact_variance,
    "g_loss, code": guidance.g_loss,
    "g_loss, exact": lambda p: guidance.g_loss(p, "exact"),
    "surrogate loss": lambda p: guidance.surrogate_loss(p, p.process.noised(0.9).sample(64, sc.Noise(9))),
    "naive": guidance.naive,
    "classifier": lambda p: guidance.classifier(p, lambda x, s: -(x * x).sum(1)),
    "cfg": lambda p: guidance.cfg(p, sc.Gaussian(np.zeros(dim(p)), np.ones(dim(p))), 0.5),
    "a sum": lambda p: 0.5 * guidance.plug_in(p) + guidance.g_loss(p),
}
KINDS = ("gaussian", "mixture", "subspace")


def test_every_public_law_is_here():
    named = {"doob", "plug_in", "dps", "pigdm", "exact_variance", "g_loss", "naive", "classifier", "cfg",
             "surrogate_loss"}  # fmt: skip
    assert named == {name for name in guidance.__all__ if name not in ("ascent", "optimise")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAWS)
def test_a_law_does_not_mix_the_samples_of_a_step(name, kind):
    made = problem(kind)
    control, t = LAWS[name](made), 0.6
    states = made.process.noised(t).sample(16, sc.Noise(3))

    def at(rows):
        transition = KERNEL.transition(made.process, t, 0.65)
        return control(StepView(made.process, transition, 0, made.process.state(t, states[rows], jacobian=True)))

    whole, order = at(slice(None)), torch.randperm(16, generator=torch.Generator().manual_seed(1))
    for rows in (slice(0, 1), slice(5, 16), slice(None, None, 3), order):
        assert torch.allclose(at(rows), whole[rows], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAWS)
def test_a_path_does_not_depend_on_how_many_there_are(name, kind):
    made = problem(kind)
    control = LAWS[name](made)

    def paths(n):
        options = {"grid": GRID, "kernel": KERNEL, "noise": sc.Noise(5), "keep": "ends"}
        return sc.simulate(made.process, control, n=n, **options).terminal

    assert torch.allclose(paths(LARGE)[:SMALL], paths(SMALL), rtol=1e-9, atol=1e-10)


SAMPLERS = {
    "fk": lambda p: steering.fk(p, 4),
    "fk, max": lambda p: steering.fk(p, 4, potential="max", threshold=1.0),
    "twisted": lambda p: steering.twisted(p, 4),
    "twisted, score": lambda p: steering.twisted(p, 4, form="score"),
    "svdd, argmax": lambda p: steering.svdd(p, 4),
    "svdd, soft": lambda p: steering.svdd(p, 4, temperature=1.0),
    "best of": lambda p: steering.best_of(p, 4),
    "rejection": lambda p: steering.rejection(p, budget=1e4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_population_does_not_depend_on_how_many_there_are(name, kind):
    """Resampling is within a population; its noise has its own address. A permutation of populations is one of them."""
    made = problem(kind)
    sampler = SAMPLERS[name](made)

    def drawn(n):
        return sampler.run(made, grid=GRID, kernel=KERNEL, n=n, noise=sc.Noise(7))

    small, large = drawn(SMALL), drawn(LARGE + 2)
    assert torch.allclose(large.x[:SMALL], small.x, rtol=1e-9, atol=1e-10)
    assert torch.allclose(large.log_weights[:SMALL], small.log_weights, rtol=1e-9, atol=1e-9)
