"""Addressed noise: the same bits at the same address, independent bits elsewhere, the right law, coupled grids."""

import numpy as np
import pytest
import torch
from scipy import stats

import sdecontrol as sc
from sdecontrol.noise import STEPS_PER_KEY, block_size

TIMES = np.linspace(0, 1, 101)


def steps(seed: int, count: int, event=(2,), index=0, start=0, dtype=torch.float32) -> torch.Tensor:
    source = sc.Noise(seed, dtype).steps(index, event, TIMES, start)
    return torch.stack([next(source) for _ in range(count)])


def test_normals_are_standard_normal_over_steps_blocks_and_seeds():
    z = torch.cat([steps(seed, 8, (16,), index).ravel() for seed in (0, 1, 2**63) for index in (0, 7)]).numpy()
    # a Kolmogorov-Smirnov gap of 0.003 is seen at this size with a false-alarm rate of 1e-6
    assert stats.kstest(z, "norm").pvalue > 1e-6
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / z.size)


@pytest.mark.parametrize(
    "other",
    [dict(seed=1), dict(seed=2**32), dict(index=1), dict(start=1), dict(start=STEPS_PER_KEY)],
    ids=["next seed", "seeds equal in 32 bits", "block", "step", "key"],
)
def test_different_addresses_give_independent_normals(other):
    here = steps(0, 1)
    there = steps(**{"seed": 0, "count": 1, **other})
    correlation = float((here * there).mean()) * np.sqrt(here.numel())
    assert abs(correlation) < 5


def test_streams_are_independent():
    a, b = (sc.Noise(0).block(name, 0, 10, (2,)).normal((2,)) for name in ("initial", "sample"))
    assert abs(float((a * b).mean())) * np.sqrt(a.numel()) < 5


def test_a_resumed_run_sees_the_same_bits():
    whole = steps(3, 80)
    for start in (1, STEPS_PER_KEY - 1, STEPS_PER_KEY, STEPS_PER_KEY + 5):
        assert torch.equal(steps(3, 3, start=start), whole[start : start + 3])


@pytest.mark.parametrize("event", [(1,), (2,), (3,), (64,)])
def test_path_noise_is_bit_identical_for_any_number_of_paths_and_workers(event):
    process = sc.ReverseProcess(sc.VP(), sc.Gaussian(np.zeros(event), np.ones(event)))
    counts = (10, 1_000, 100_000) if event[0] < 64 else (10, 1_000, 5_000)
    runs = {
        (n, workers): sc.simulate(process, grid=sc.TimeGrid.uniform(3), n=n, workers=workers)
        for n in counts
        for workers in (1, 2)
    }
    full = runs[counts[-1], 1]
    for (n, _), run in runs.items():
        assert torch.equal(run.noises, full.noises[:, :n])
        assert torch.equal(run.states, full.states[:, :n])


def test_image_sized_events_get_a_block_each():
    assert block_size((4, 64, 64)) == 1
    assert block_size((1,)) == 2**15


def test_coarse_noise_is_the_same_brownian_path():
    fine_grid = sc.TimeGrid.geometric(13, s_min=1e-2).refine(4)
    process = sc.ReverseProcess(sc.VP(), sc.Gaussian([0.0], [[1.0]]))
    fine = fine_grid.resolve(process).times
    coarse = sc.TimeGrid.geometric(13, s_min=1e-2).resolve(process).times
    noise = sc.Noise(5)
    increments = [z * np.sqrt(dt) for z, dt in zip(noise.steps(0, (1,), fine), np.diff(fine), strict=False)]
    brownian = torch.cumsum(torch.stack(increments).double(), 0)
    ours = [
        z * np.sqrt(dt) for z, dt in zip(noise.coarsened(fine).steps(0, (1,), coarse), np.diff(coarse), strict=False)
    ]
    for k, total in enumerate(torch.cumsum(torch.stack(ours).double(), 0)):
        at = int(np.searchsorted(fine, coarse[k + 1])) - 1
        assert torch.allclose(total, brownian[at], atol=1e-5)


def test_coarse_noise_needs_nested_grids():
    noise = sc.Noise(0).coarsened(np.linspace(0, 1, 11))
    with pytest.raises(sc.BadInput, match="nested"):
        next(noise.steps(0, (1,), np.linspace(0, 1, 4)))


def test_laws_sample_the_same_prefix():
    law = sc.Gaussian([1.0, 2.0], [[1.0, 0.2], [0.2, 1.0]])
    assert torch.equal(law.sample(10, sc.Noise(1)), law.sample(40_000, sc.Noise(1))[:10])


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, "a"])
def test_bad_seeds(seed):
    with pytest.raises(sc.BadInput, match="seed"):
        sc.Noise(seed)
