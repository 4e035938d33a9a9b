"""Schedules against 40-digit arithmetic on their definitions, autograd, and the SDE's moment equations."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from scipy.integrate import solve_ivp

from sdecontrol.errors import BadInput
from sdecontrol.schedules import (
    VE,
    VP,
    Cosine,
    Schedule,
    SubVP,
    Tabulated,
    VariancePreserving,
    convert_level,
)

mp.mp.dps = 40
TABLE = [0.97, 0.8, 0.79, 0.4, 0.03]


def define_vp(schedule: VP | SubVP):
    def log_alpha(s):
        low, high = mp.mpf(schedule.beta_min), mp.mpf(schedule.beta_max)
        return -(low * s + (high - low) * s**2 / (2 * mp.mpf(schedule.horizon))) / 2

    return log_alpha, lambda s: 1 - mp.exp(2 * log_alpha(s))


def define_sub_vp(schedule: SubVP):
    log_alpha, _ = define_vp(schedule)
    return log_alpha, lambda s: (1 - mp.exp(2 * log_alpha(s))) ** 2


def define_ve(schedule: VE):
    low, high = mp.mpf(schedule.sigma_min), mp.mpf(schedule.sigma_max)
    return lambda s: mp.mpf(0) * s, lambda s: low**2 * ((high / low) ** (2 * s / schedule.horizon) - 1)


def define_cosine(schedule: Cosine):
    start = mp.pi / 2 * mp.mpf(schedule.offset) / (1 + mp.mpf(schedule.offset))
    level = 1 / (
        1 + mp.exp(-mp.mpf(schedule.log_snr_min))
    )  # alpha^2 at the horizon, from log(alpha^2/(1-alpha^2))
    end = mp.acos(mp.sqrt(level) * mp.cos(start))

    def log_alpha(s):
        return mp.log(mp.cos(start + (end - start) * s / schedule.horizon) / mp.cos(start))

    return log_alpha, lambda s: 1 - mp.exp(2 * log_alpha(s))


def define_tabulated(schedule: Tabulated):
    logs = [mp.mpf(0)] + [mp.log(mp.mpf(a)) / 2 for a in schedule.alphas_cumprod]

    def log_alpha(s):
        position = mp.mpf(s) * schedule.size / schedule.horizon
        j = max(min(int(mp.ceil(position)) - 1, schedule.size - 1), 0)
        return logs[j] + (logs[j + 1] - logs[j]) * (position - j)

    return log_alpha, lambda s: 1 - mp.exp(2 * log_alpha(s))


CASES = [
    (VP(), define_vp),
    (VP(0.3, 0.3, 2.5), define_vp),
    (SubVP(), define_sub_vp),
    (SubVP(0.4, 6.0, 3.0), define_sub_vp),
    (VE(), define_ve),
    (VE(0.1, 7.0, 2.0), define_ve),
    (Cosine(), define_cosine),
    (Cosine(0.05, -9.0, 2.0), define_cosine),
    (Tabulated(TABLE, 2.0), define_tabulated),
    (Tabulated.stable_diffusion(), define_tabulated),
]
SCHEDULES = [case[0] for case in CASES]


def case_name(x: object) -> str:
    return repr(x) if isinstance(x, Schedule) else x.__name__


each_case = pytest.mark.parametrize(("schedule", "define"), CASES, ids=case_name)
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
LEVELS = [1e-12, 1e-7, 0.0123, 0.37, 0.7711, 0.9903, 1 - 1e-9, 1.0]  # of the horizon
STEPS = [
    (0.37, 0.0),
    (0.5003, 0.5003 - 2.0**-30),
    (0.9, 0.1234),
    (1.0, 0.99),
    (0.0123, 0.0122),
    (1e-9, 3e-10),
    (1.0, 0.0),
]


def step_accuracy(schedule: Schedule, s: float, s_next: float) -> float:
    """Rounding; for a table the documented 1e-15 s/(s - s_next), and a factor 2 for q = 1 - ratio^2."""
    return max(2e-14, 2e-15 * s / (s - s_next)) if isinstance(schedule, Tabulated) else 2e-14


def close(seen: float, wanted: mp.mpf, relative: float) -> None:
    assert abs(mp.mpf(seen) - wanted) <= relative * abs(wanted), (seen, wanted)


@each_case
@pytest.mark.parametrize("fraction", LEVELS)
def test_functions_of_one_level_match_their_definitions(schedule, define, fraction):
    log_alpha, h = define(schedule)
    s = fraction * schedule.horizon
    x = mp.mpf(s)
    rate = mp.diff(log_alpha, x, h=x * mp.mpf("1e-22"), direction=-1)
    close(schedule.log_alpha(s), log_alpha(x), 1e-14)
    close(schedule.alpha(s), mp.exp(log_alpha(x)), 1e-14)
    close(schedule.h(s), h(x), 1e-14)
    close(schedule.sigma(s), mp.sqrt(h(x)), 1e-14)
    close(schedule.log_snr(s), 2 * log_alpha(x) - mp.log(h(x)), 1e-14)
    close(schedule.f(s), rate, 1e-13)
    close(schedule.g2(s), mp.diff(h, x, h=x * mp.mpf("1e-22"), direction=-1) - 2 * rate * h(x), 1e-13)


@each_case
@pytest.mark.parametrize("fractions", STEPS)
def test_functions_of_a_step_match_their_definitions(schedule, define, fractions):
    log_alpha, h = define(schedule)
    s, s_next = (fraction * schedule.horizon for fraction in fractions)
    x, y = mp.mpf(s), mp.mpf(s_next)
    ratio = mp.exp(log_alpha(x) - log_alpha(y))
    close(schedule.ratio(s, s_next), ratio, 2e-14)
    close(schedule.transition_variance(s, s_next), h(x) - ratio**2 * h(y), step_accuracy(schedule, s, s_next))


@pytest.mark.parametrize(("schedule", "define"), CASES[:-1], ids=case_name)  # the last has a thousand cells
@pytest.mark.parametrize("fractions", STEPS)
def test_score_weight_is_its_integral(schedule, define, fractions):
    log_alpha, h = define(schedule)
    s, s_next = (fraction * schedule.horizon for fraction in fractions)
    x, y, cells = mp.mpf(s), mp.mpf(s_next), getattr(schedule, "size", 5)
    # by parts, g2 being h' - 2 f h: int g2/alpha = [h/alpha] - int (h/alpha) dlog alpha
    ends = [mp.mpf(k) * schedule.horizon / cells for k in range(1, cells)]
    inner = [end for end in ends if y < end < x]  # the derivative of log alpha jumps there in a table
    nodes = [y, *inner, x]
    area = mp.quad(lambda u: h(u) * mp.exp(-log_alpha(u)) * mp.diff(log_alpha, u, h=mp.mpf("1e-18")), nodes)
    wanted = h(x) * mp.exp(-log_alpha(x)) - h(y) * mp.exp(-log_alpha(y)) - area
    close(schedule.score_weight(s, s_next), wanted * mp.exp(log_alpha(y)), step_accuracy(schedule, s, s_next))


@each
def test_rates_are_derivatives_by_autograd(schedule):
    s = (torch.linspace(0.0137, 0.991, 23, dtype=torch.float64) * schedule.horizon).requires_grad_()
    (d_log_alpha,) = torch.autograd.grad(schedule.log_alpha(s).sum(), s)
    (d_h,) = torch.autograd.grad(schedule.h(s).sum(), s)
    (d_log_snr,) = torch.autograd.grad(schedule.log_snr(s).sum(), s)
    f, g2, h = schedule.f(s), schedule.g2(s), schedule.h(s)
    torch.testing.assert_close(f, d_log_alpha, rtol=1e-12, atol=0)
    torch.testing.assert_close(g2, d_h - 2 * f * h, rtol=1e-11, atol=0)
    torch.testing.assert_close(-g2 / h, d_log_snr, rtol=1e-11, atol=0)
    level = schedule.log_snr(s).detach().requires_grad_()
    (d_s,) = torch.autograd.grad(schedule.noise_level_at(level).sum(), level)
    torch.testing.assert_close(d_s, -h / g2, rtol=1e-9, atol=0)


@each
def test_step_solves_the_moment_equations_of_the_forward_sde(schedule):
    """m' = f m, v' = 2 f v + g2 from (1, 0) at s_next give ratio and q at s."""
    s_next, s = 0.21 * schedule.horizon, 0.83 * schedule.horizon
    cells = getattr(schedule, "size", 1)
    jumps = [x for x in schedule.horizon * np.arange(cells + 1) / cells if s_next + 1e-9 < x < s - 1e-9]

    def rhs(u, y):
        return [schedule.f(u) * y[0], 2 * schedule.f(u) * y[1] + schedule.g2(u)]

    state = np.array([1.0, 0.0])
    for a, b in zip([s_next, *jumps], [*jumps, s]):  # the rates of a table jump at the ends of its cells
        inside = (a + 1e-12, b)
        state = solve_ivp(rhs, inside, state, method="DOP853", rtol=1e-11, atol=1e-14).y[:, -1]
    assert state[0] == pytest.approx(schedule.ratio(s, s_next), rel=1e-8)
    assert state[1] == pytest.approx(schedule.transition_variance(s, s_next), rel=1e-8)


@each
def test_floats_and_tensors_agree(schedule):
    fractions = [0.0, 1e-12, 0.1, 0.4, 0.87, 1.0]
    s = torch.tensor(fractions, dtype=torch.float64) * schedule.horizon
    for name in ("log_alpha", "alpha", "h", "sigma", "f", "g2", "log_snr"):
        method = getattr(schedule, name)
        tensor, floats = method(s), [method(x) for x in s.tolist()]
        assert tensor.dtype == torch.float64 and all(type(x) is float for x in floats)
        torch.testing.assert_close(tensor, torch.tensor(floats, dtype=torch.float64), rtol=1e-14, atol=1e-300)
    for name in ("ratio", "transition_variance", "score_weight"):
        method, low = getattr(schedule, name), 0.05 * schedule.horizon
        tensor, floats = method(s[2:], low), [method(x, low) for x in s[2:].tolist()]
        assert tensor.dtype == torch.float64 and all(type(x) is float for x in floats)
        torch.testing.assert_close(tensor, torch.tensor(floats, dtype=torch.float64), rtol=1e-13, atol=0)
        assert torch.equal(method(s[2:], torch.tensor(low, dtype=torch.float64)), tensor)
    back = [schedule.noise_level_at(x) for x in schedule.log_snr(s).tolist()]
    torch.testing.assert_close(
        schedule.noise_level_at(schedule.log_snr(s)), torch.tensor(back, dtype=torch.float64)
    )


def test_sigma_is_accurate_at_tiny_levels_where_float32_or_subtraction_fails():
    s = 1e-12
    exact = mp.sqrt(1 - mp.exp(-(mp.mpf(0.1) * mp.mpf(s) + (20 - mp.mpf(0.1)) * mp.mpf(s) ** 2 / 2)))
    close(VP().sigma(s), exact, 1e-15)
    assert abs(mp.sqrt(1 - mp.mpf(VP().alpha(s)) ** 2) / exact - 1) > 1e-5  # what the subtraction would give


fractions_pair = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)
schedules = st.one_of(
    st.builds(
        lambda low, extra, t, kind: kind(low, low + extra, t),
        st.floats(0.01, 5),
        st.floats(0, 40),
        st.floats(0.1, 10),
        st.sampled_from([VP, SubVP]),
    ),
    st.builds(
        lambda low, factor, t: VE(low, low * factor, t),
        st.floats(1e-3, 1),
        st.floats(1.5, 1e4),
        st.floats(0.1, 10),
    ),
    st.builds(Cosine, st.floats(1e-3, 0.2), st.floats(-60, -1), st.floats(0.1, 10)),
    st.builds(
        lambda rates, t: Tabulated(np.exp(-np.cumsum(rates)), t),
        st.lists(st.floats(1e-3, 1), min_size=1, max_size=12),
        st.floats(0.1, 10),
    ),
)


@given(schedules, st.lists(st.integers(0, 1000), min_size=3, max_size=3, unique=True).map(sorted))
def test_invariants_of_steps(schedule, thousandths):
    low, mid, high = (k * schedule.horizon / 1000 for k in thousandths)
    ratio, q = schedule.ratio(high, mid), schedule.transition_variance(high, mid)
    assert 0 < ratio <= 1 and q > 0 and schedule.score_weight(high, mid) > 0
    assert schedule.ratio(high, low) == pytest.approx(ratio * schedule.ratio(mid, low), rel=1e-12)
    through = q + ratio**2 * schedule.transition_variance(mid, low)
    assert schedule.transition_variance(high, low) == pytest.approx(through, rel=1e-11)
    if isinstance(schedule, VariancePreserving):
        assert schedule.h(high) + schedule.alpha(high) ** 2 == pytest.approx(1, rel=1e-14)
    # the exponential integrator composes for a score frozen over both steps
    weight = schedule.score_weight(mid, low) + schedule.score_weight(high, mid) / schedule.ratio(mid, low)
    assert schedule.score_weight(high, low) == pytest.approx(weight, rel=1e-10)


@given(schedules, st.floats(1e-9, 1))
def test_noise_level_at_inverts_log_snr(schedule, fraction):
    s = fraction * schedule.horizon
    log_snr = schedule.log_snr(s)
    found = schedule.noise_level_at(log_snr)
    conditioning = (
        (1 + abs(log_snr)) * schedule.h(s) / schedule.g2(s)
    )  # |ds| for a relative rounding of log SNR
    assert abs(found - s) <= 1e-14 * (conditioning + s) * 2
    roundings = (
        abs(log_snr) + 1 + s * schedule.g2(s) / schedule.h(s)
    )  # the last: log SNR moved by a rounding of s
    assert abs(schedule.log_snr(found) - log_snr) <= 1e-14 * roundings


@given(schedules, st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(sorted))
def test_log_snr_decreases(schedule, thousandths):
    low, high = (k * schedule.horizon / 1000 for k in thousandths)
    assert schedule.log_snr(high) < schedule.log_snr(low)


def test_the_clean_end():
    for schedule in SCHEDULES:
        assert (schedule.alpha(0.0), schedule.h(0.0), schedule.sigma(0.0)) == (1.0, 0.0, 0.0)
        assert schedule.log_snr(0.0) == math.inf and schedule.noise_level_at(math.inf) == 0.0
        end = schedule.horizon
        assert schedule.h(end * (1 + 1e-13)) == schedule.h(end) and schedule.h(-1e-13 * end) == 0.0
        assert schedule.prior_std == (schedule.sigma(end) if isinstance(schedule, VE) else 1.0)


def test_ve_prior_is_the_difference_of_the_two_variances():
    assert VE(0.5, 3.0).prior_std ** 2 == pytest.approx(9 - 0.25, rel=1e-14)


def test_cosine_is_nichol_and_dhariwal_up_to_its_stated_cap():
    s = np.linspace(0, 0.99, 200)
    nichol = np.cos((s + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
    for cap, gap in ((-20.0, 5e-5), (-60.0, 1e-12)):
        schedule = Cosine(log_snr_min=cap)
        assert schedule.log_snr(1.0) == pytest.approx(cap, rel=1e-14)
        assert max(abs(schedule.alpha(float(x)) - a) for x, a in zip(s, nichol)) < gap


def test_stable_diffusion_has_the_published_table():
    schedule = Tabulated.stable_diffusion()
    betas = np.array([(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * j / 999) ** 2 for j in range(1000)])
    alphas_cumprod = np.exp(np.cumsum(np.log1p(-betas)))
    alphas = [schedule.alpha(schedule.level(j)) for j in range(1000)]
    np.testing.assert_allclose(alphas, np.sqrt(alphas_cumprod), rtol=1e-13)
    assert alphas[0] ** 2 == pytest.approx(0.99915, abs=1e-12)
    assert alphas[-1] == pytest.approx(0.0682649, abs=1e-7) and alphas[-1] ** 2 == pytest.approx(
        0.0046601, abs=1e-7
    )
    for j in (
        0,
        1,
        500,
        999,
    ):  # one step is one step of the discrete chain: its rate and its variance are the chain's
        s, s_next = schedule.level(j), schedule.level(j - 1) if j else 0.0
        assert schedule.transition_variance(s, s_next) == pytest.approx(betas[j], rel=1e-9)
        assert schedule.g2(s) == pytest.approx(-1000 * math.log1p(-betas[j]), rel=1e-9)
        assert schedule.index(s) == j and schedule.index(1.0 - (1.0 - s)) == j
        assert schedule.g2(1.0 - (1.0 - s)) == schedule.g2(s)
    single = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2, 0)
    assert Tabulated(single).alpha(1.0) == pytest.approx(
        alphas[-1], rel=1e-4
    )  # the float32 table is a valid table


def test_converted_levels_noise_the_same_data_up_to_scale():
    vp, ve = VP(), VE(0.01, 200.0, 3.0)
    for s in (0.0, 1e-6, 0.2, 0.9, 1.0):
        level, scale = convert_level(vp, s, ve)
        assert scale * vp.alpha(s) == pytest.approx(ve.alpha(level), rel=1e-13)
        assert scale * vp.sigma(s) == pytest.approx(ve.sigma(level), rel=1e-12)
        back, inverse = convert_level(ve, level, vp)
        assert back == pytest.approx(s, rel=1e-11) and inverse * scale == pytest.approx(1, rel=1e-11)
    with pytest.raises(BadInput, match="never gets as noisy"):
        convert_level(ve, 3.0, vp)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VP(horizon=-1.0),
        lambda: VP(horizon=0),
        lambda: VP(beta_min=math.nan),
        lambda: VP(beta_max=math.inf),
        lambda: VP(3.0, 1.0),
        lambda: VP(0.0, 1.0),
        lambda: VP("0.1"),
        lambda: VP(torch.ones(2)),
        lambda: VP(1.0, 2000.0),
        lambda: SubVP(-0.1),
        lambda: VE(2.0, 2.0),
        lambda: VE(3.0, 1.0),
        lambda: VE(0.0, 1.0),
        lambda: Cosine(0.0),
        lambda: Cosine(log_snr_min=1.0),
        lambda: Cosine(log_snr_min=-math.inf),
        lambda: Cosine(log_snr_min=math.nan),
        lambda: Tabulated([]),
        lambda: Tabulated([0.5, 0.6]),
        lambda: Tabulated([0.5, 0.5]),
        lambda: Tabulated([1.0, 0.5]),
        lambda: Tabulated([0.5, 0.0]),
        lambda: Tabulated([[0.5]]),
        lambda: Tabulated([0.5, math.nan]),
        lambda: Tabulated([0.9], horizon=math.inf),
    ],
)
def test_bad_schedules_are_refused(make):
    with pytest.raises(BadInput, match="wanted"):
        make()


@each
def test_bad_levels_are_refused(schedule):
    end = schedule.horizon
    for bad in (
        -1e-6,
        end * 1.001,
        math.nan,
        math.inf,
        "0.5",
        None,
        np.linspace(0, end, 3),
        torch.tensor([0.1, 1.1]).double() * end,
        torch.tensor([math.nan]).double(),
        torch.tensor([0.1]),
    ):
        with pytest.raises(BadInput):
            schedule.h(bad)
    for bad in ((0.1 * end, 0.2 * end), (torch.tensor([0.1, 0.3]).double() * end, 0.2 * end)):
        with pytest.raises(BadInput, match="s_next"):
            schedule.ratio(*bad)
    for bad in (schedule.log_snr(end) - 1e-6, math.nan):
        with pytest.raises(BadInput, match="log SNR"):
            schedule.noise_level_at(bad)


def test_a_table_knows_its_levels():
    schedule = Tabulated(TABLE, 2.0)
    assert [schedule.index(schedule.level(j)) for j in range(5)] == list(range(5))
    for bad in (5, -1, 1.0):
        with pytest.raises(BadInput):
            schedule.level(bad)
    for bad in (0.0, 0.41):
        with pytest.raises(BadInput, match="level"):
            schedule.index(bad)


def test_schedules_are_values():
    assert (
        VP(0.1, 20) == VP() and hash(VP()) == hash(VP(0.1, 20)) and VP() != SubVP() and VP() != VP(horizon=2)
    )
    assert Tabulated(TABLE) == Tabulated(np.array(TABLE)) and eval(repr(Cosine())) == Cosine()
