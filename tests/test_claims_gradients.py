"""eq-3.29: the claim sees what is wrong with the answers, with the weight, and with the estimators."""

from __future__ import annotations

import pytest
import torch

from sdecontrol.claims.base import get_claim
from sdecontrol.claims.entropy import gradients, gradients_sampled
from sdecontrol.problems.builtin import resolve
from sdecontrol.value import Bismut, gradient_rules

CLAIM = get_claim("eq-3.29")


def violated(problem: str, rung: str) -> set[str]:
    report = CLAIM.run(resolve(problem).problem, quick=True, rungs=[rung])
    return {row.quantity for row in report.rows if row.verdict == "violated"}


def test_rungs() -> None:
    for name, rungs in {"gaussian-4d-vp": 3, "mixture-2d-ve": 3, "digits-mixture": 3, "quadratic-ou-2d": 0}.items():
        report = CLAIM.run(resolve(name).problem, quick=True)
        assert len({row.rung for row in report.rows}) == rungs, (name, report.skipped)


def test_weights_that_do_not_sum_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's estimator with psi of mass 0.8."""
    right = Bismut._shares
    monkeypatch.setattr(Bismut, "_shares", lambda self, path: 0.8 * right(self, path))
    assert len(violated("gaussian-1d-vp", "monte carlo")) == 2
    assert violated("mixture-2d-vp", "monte carlo")


def test_first_variation_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Z = I in the library's estimator, and in the second route over a step, where the order falls to one."""
    right = gradient_rules._sweep

    def frozen(chain, x, xi, level, shares):
        path = chain.simulated(x, xi, level, grad=False, keep="all")
        a = shares(path)
        parts = [float(a[k]) * noise / tr.std for k, (tr, noise) in enumerate(zip(path.transitions, xi)) if a[k] > 0]
        return (*right(chain, x, xi, level, shares)[:1], torch.stack(parts).sum(0), torch.zeros_like(x))

    monkeypatch.setattr(gradient_rules, "_exact_chain", lambda task: (task.chain, [0, 1, 2]))
    monkeypatch.setattr(gradient_rules, "_sweep", frozen)
    assert violated("gaussian-1d-vp", "monte carlo")

    def unturned(bench, t, x, step, kick):
        return kick / bench.process.default_kernel.transition(bench.process, t, step.t_next).std

    monkeypatch.setattr(gradients, "_pulled_back", unturned)
    assert violated("mixture-2d-vp", "discrete")


def test_wrong_odds_of_the_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients_sampled, "ODDS", 3.0)
    right = gradients_sampled._above
    monkeypatch.setattr(gradients_sampled, "_above", lambda *a: (right(*a)[0], 1.2 * right(*a)[1]))
    assert len(violated("gaussian-1d-ve", "monte carlo")) == 1
