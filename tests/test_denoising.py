"""A score network: exact where nothing is to be learnt, better by learning, and resumed with the same bits."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
import torch

import sdecontrol as sc
import sdecontrol.finetune as ft
from sdecontrol.errors import BadInput

SCHEDULE = sc.VP(0.1, 8.0)
MIXTURE = sc.GaussianMixture([0.5, 0.5], [[-1.0, 0.3], [1.2, 0.0]], [0.05, 0.1])


def test_before_training_it_is_the_posterior_mean_of_isotropic_data() -> None:
    law = sc.Gaussian([0.5, -1.0], [0.7, 0.7])
    network = ft.DenoiserNetwork.of(law, SCHEDULE, width=8, blocks=1)
    x = torch.tensor([[0.3, -0.2], [2.0, 1.0]], dtype=torch.float64)
    for s in (0.01, 0.4, 1.0):
        exact = law.posterior(SCHEDULE.alpha(s), SCHEDULE.h(s)).mean(x)
        assert (network(x, s) - exact).abs().max() < 1e-6
        variance = law.posterior(SCHEDULE.alpha(s), SCHEDULE.h(s)).covariances[0, 0, 0]
        assert network.error(s) ** 2 == pytest.approx(float(variance))


def test_the_loss_is_one_for_the_best_linear_guess() -> None:
    law = sc.Gaussian([0.5, -1.0], [0.7, 0.7])
    network = ft.DenoiserNetwork.of(law, SCHEDULE, width=8, blocks=1)
    with torch.no_grad():
        batches = [ft.Batch(512, sc.Noise(seed)) for seed in range(40)]
        losses = torch.tensor([float(ft.ScoreMatching(law)(network, batch)) for batch in batches])
    assert abs(sc.Estimate.mean(losses).z(1.0)) < 4


def test_it_learns_the_score_of_a_mixture() -> None:
    """Of the error that the linear guess leaves above the exact score, less than a tenth is left."""
    network = ft.DenoiserNetwork.of(MIXTURE, SCHEDULE, width=48, blocks=2)
    begin = excess(network)
    network, record = ft.fit_score(MIXTURE, network, steps=300, n=256, rate=5e-3, progress=False)
    assert record.iterations == 300 and excess(network) < 0.1 * begin


def excess(network: ft.DenoiserNetwork) -> float:
    """E |x0_hat - E[X_0 | x]|^2 in units of the network's own error, averaged over levels."""
    found = []
    for s in (0.05, 0.2, 0.5):
        a, h = SCHEDULE.alpha(s), SCHEDULE.h(s)
        x = MIXTURE.noised(a, h).sample(2_000, sc.Noise(1))
        with torch.no_grad():
            gap = network(x, s) - MIXTURE.posterior(a, h).mean(x)
        found.append(float(gap.square().mean()) / network.error(s) ** 2)
    return math.fsum(found)


def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = lambda: ft.DenoiserNetwork.of(MIXTURE, SCHEDULE, width=8, blocks=1)  # noqa: E731
    whole, _ = ft.fit_score(MIXTURE, make(), steps=12, n=64, progress=False)
    calls = []

    class Stopping(ft.ScoreMatching):
        def forward(self, network: ft.DenoiserNetwork, batch: ft.Batch) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 5:
                signal.raise_signal(signal.SIGINT)
            return super().forward(network, batch)

    options = dict(steps=12, n=64, checkpoint=tmp_path, progress=False)
    _, stopped = ft.fit_score(MIXTURE, make(), loss=Stopping(MIXTURE), **options)
    assert stopped.interrupted and stopped.iterations == 5
    resumed, record = ft.fit_score(MIXTURE, make(), **options)
    assert record.iterations == 12
    for a, b in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(a, b)


def test_bad_input_is_named() -> None:
    network = ft.DenoiserNetwork.of(MIXTURE, SCHEDULE, width=8, blocks=1)
    with pytest.raises(BadInput, match="those of the law"):
        ft.fit_score(sc.Gaussian([0.0], [[1.0]]), network, progress=False)
    with pytest.raises(BadInput, match="8 levels"):
        ft.fit_score(MIXTURE, network, n=4, progress=False)
    with pytest.raises(BadInput, match="variance"):
        ft.DenoiserNetwork(SCHEDULE, torch.zeros(2), 0.0)
