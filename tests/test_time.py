"""Time grids: what each recipe says of its own coordinate, exact ends, and nesting bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sdecontrol.errors import BadInput, NotDefined
from sdecontrol.schedules import VE, VP, Cosine, SubVP, Tabulated
from sdecontrol.time import TimeGrid


@dataclass
class Clock:
    """The least a process must be."""

    horizon: float

    def noise_level(self, t: float) -> float:
        return self.horizon - t


class Noising(Clock):
    def __init__(self, schedule):
        super().__init__(schedule.horizon)
        self.schedule = schedule


SCHEDULES = [VP(), SubVP(0.2, 5.0, 3.0), VE(0.02, 9.0, 2.0), Cosine(), Tabulated.stable_diffusion(7.0)]
horizons = st.floats(1e-3, 1e3)
explicit_times = st.lists(st.integers(0, 400), min_size=2, max_size=9, unique=True).map(
    lambda ks: [k / 400 for k in sorted(ks)]
)
recipes = st.one_of(
    st.builds(TimeGrid.uniform, st.integers(1, 60)),
    st.builds(TimeGrid.geometric, st.integers(1, 60), st.floats(1e-6, 0.9), st.booleans()),
    st.builds(TimeGrid.log_snr, st.integers(1, 60), st.floats(1e-6, 0.9), st.booleans()),
    st.builds(TimeGrid.explicit, explicit_times),
)


@given(recipes, st.sampled_from(SCHEDULES), st.integers(1, 7))
def test_refined_grids_contain_their_parent_bit_for_bit(grid, schedule, factor):
    process = Noising(schedule)
    coarse, fine = grid.resolve(process), grid.refine(factor).resolve(process)
    closing = bool(getattr(grid, "close", False))
    assert fine.steps == grid.refine(factor).steps == factor * (grid.steps - closing) + closing
    opened = slice(None, -1) if closing else slice(None)
    assert np.array_equal(fine.times[opened][::factor], coarse.times[opened])
    assert np.array_equal(fine.noise_levels[opened][::factor], coarse.noise_levels[opened])
    assert fine.times[-1] == coarse.times[-1] and fine.times[-2] <= fine.times[-1]


@given(recipes, st.sampled_from(SCHEDULES), st.integers(1, 4), st.integers(1, 4))
def test_refining_twice_is_refining_once(grid, schedule, a, b):
    twice, once = grid.refine(a).refine(b), grid.refine(a * b)
    assert twice == once
    assert np.array_equal(twice.resolve(Noising(schedule)).times, once.resolve(Noising(schedule)).times)


@given(recipes, st.sampled_from(SCHEDULES))
def test_a_resolved_grid_is_increasing_float64_and_read_only(grid, schedule):
    resolved = grid.resolve(Noising(schedule))
    assert resolved.steps == grid.steps == len(resolved.dt) and len(resolved.noise_levels) == grid.steps + 1
    assert resolved.times.dtype == resolved.noise_levels.dtype == resolved.dt.dtype == np.float64
    assert (resolved.dt > 0).all() and np.array_equal(resolved.dt, np.diff(resolved.times))
    assert np.array_equal(resolved.noise_levels, schedule.horizon - resolved.times)
    for array in (resolved.times, resolved.noise_levels, resolved.dt):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


@given(st.integers(1, 2000), horizons)
def test_uniform_times_do_not_drift(steps, horizon):
    times = TimeGrid.uniform(steps).resolve(Clock(horizon)).times
    assert times[0] == 0.0 and times[-1] == horizon
    np.testing.assert_allclose(times, np.linspace(0, horizon, steps + 1), rtol=1e-15, atol=0)


@given(st.integers(2, 200), st.floats(1e-5, 0.5), st.booleans(), horizons)
def test_geometric_levels_have_one_ratio(steps, s_min, close, horizon):
    resolved = TimeGrid.geometric(steps, s_min, close).resolve(Clock(horizon))
    levels = resolved.noise_levels[:-1] if close else resolved.noise_levels
    assert resolved.steps == steps and resolved.times[0] == 0.0 and levels[0] == horizon
    assert (resolved.times[-1] == horizon) == close
    assert levels[-1] == pytest.approx(s_min * horizon, abs=1e-15 * horizon)
    wanted = np.geomspace(horizon, s_min * horizon, len(levels))
    np.testing.assert_allclose(levels, wanted, rtol=1e-13, atol=2e-16 * horizon)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("close", [True, False])
def test_log_snr_is_uniform_on_its_grid(schedule, close):
    resolved = TimeGrid.log_snr(50, s_min=0.002, close=close).resolve(Noising(schedule))
    levels = resolved.noise_levels[:-1] if close else resolved.noise_levels
    log_snr = [2 * math.log(schedule.alpha(float(s)) / schedule.sigma(float(s))) for s in levels]
    np.testing.assert_allclose(np.diff(log_snr), (log_snr[-1] - log_snr[0]) / (len(levels) - 1), rtol=1e-9)
    assert (
        resolved.steps == 50
        and resolved.times[0] == 0.0
        and (resolved.times[-1] == schedule.horizon) == close
    )
    assert levels[-1] == pytest.approx(0.002 * schedule.horizon, rel=1e-12)


def test_explicit_times_are_kept_and_split_in_time():
    grid = TimeGrid.explicit(x for x in (0.1, 0.2, 0.7))
    assert grid.resolve(Clock(1.0)).times.tolist() == [0.1, 0.2, 0.7]
    np.testing.assert_allclose(
        grid.refine(2).resolve(Clock(1.0)).times, [0.1, 0.15, 0.2, 0.45, 0.7], rtol=1e-15
    )
    end = TimeGrid.explicit(np.array([0.0, 0.3, 0.3 * (1 + 1e-13)])[[0, 2]]).resolve(Clock(0.3))
    assert end.times[-1] == 0.3  # rounding beyond the horizon means the horizon
    with pytest.raises(BadInput, match="horizon"):
        grid.resolve(Clock(0.6))


def test_one_closed_step_goes_from_noise_to_data():
    for grid in (TimeGrid.uniform(1), TimeGrid.geometric(1), TimeGrid.log_snr(1)):
        assert grid.resolve(Noising(VP())).times.tolist() == [0.0, 1.0] and grid.steps == 1


def test_recipes_are_values():
    assert TimeGrid.uniform(5) == TimeGrid.uniform(5) and hash(TimeGrid.geometric(4)) == hash(
        TimeGrid.geometric(4)
    )
    assert TimeGrid.geometric(4) != TimeGrid.log_snr(4) and TimeGrid.geometric(4) != TimeGrid.geometric(
        4, close=False
    )


def test_log_snr_needs_a_schedule():
    with pytest.raises(NotDefined, match="schedule"):
        TimeGrid.log_snr(10).resolve(Clock(1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimeGrid.uniform(0),
        lambda: TimeGrid.uniform(2.5),
        lambda: TimeGrid.uniform(True),
        lambda: TimeGrid.geometric(-3),
        lambda: TimeGrid.geometric(5, s_min=0.0),
        lambda: TimeGrid.geometric(5, s_min=1.0),
        lambda: TimeGrid.log_snr(5, s_min=math.nan),
        lambda: TimeGrid.log_snr(5, s_min="1e-3"),
        lambda: TimeGrid.explicit([0.5]),
        lambda: TimeGrid.explicit([0.5, 0.5]),
        lambda: TimeGrid.explicit([0.5, 0.1]),
        lambda: TimeGrid.explicit([-0.1, 0.5]),
        lambda: TimeGrid.explicit([0.0, math.nan]),
        lambda: TimeGrid.explicit([[0, 1]]),
        lambda: TimeGrid.uniform(3).refine(0),
        lambda: TimeGrid.explicit([0, 1]).refine(1.5),
        lambda: TimeGrid.geometric(5, s_min=1e-18).resolve(Clock(1.0)),
    ],
)
def test_bad_grids_are_refused(make):
    with pytest.raises(BadInput, match="wanted"):
        make()
