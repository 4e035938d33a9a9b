"""What the figures show, against routes that share no code with what they draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sdecontrol as sc
from sdecontrol.claims import Report
from sdecontrol.errors import NoClosedForm
from sdecontrol.exact.continuum.base import ContinuumExact
from sdecontrol.laws import kl, tv
from sdecontrol.orders import observed_order
from sdecontrol.problems.builtin import resolve
from sdecontrol.report import figures, figures_chains, figures_kl, figures_mutants
from sdecontrol.report.run import Checking, Run
from sdecontrol.report.selection import Selection

Z = 4.0  # standard errors; each of the sampled numbers below is outside in one of 16 000 seeds, and the seed is fixed


def closed_problem() -> sc.Problem:
    problem = resolve("gaussian-1d-vp").problem
    return sc.Problem(problem.process, problem.reward, problem.temperature, name="closed")


def test_kl_of_the_start_from_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no closed form is known, draws of nu* take its place: here both routes exist."""
    problem = closed_problem()
    closed, energy = figures_kl._parts(problem, seed=0)
    assert (closed.stderr, energy.value) == (0.0, pytest.approx(problem.exact.energy, abs=1e-12))

    def unknown(self: ContinuumExact) -> float:
        raise NoClosedForm("not known")

    monkeypatch.setattr(type(problem.exact), "kl_initial", property(unknown))
    drawn, rest = figures_kl._parts(problem, seed=0)
    assert abs(drawn.value - closed.value) < Z * drawn.stderr
    assert 0 < drawn.stderr < closed.value / 10
    assert rest.value + drawn.value == pytest.approx(closed.value + energy.value, abs=1e-12)


def test_distance_and_bounds_while_the_temperature_falls() -> None:
    problem = closed_problem()
    found = figures_kl._cooled(problem, seed=0)
    assert len(found.temperatures) == len(figures_kl.FACTORS)
    for temperature, distance, divergence in zip(found.temperatures, found.distances, found.divergences):
        exact = sc.Problem(problem.process, problem.reward, temperature).exact
        ft, pre = exact.terminal, exact.reference
        assert abs(distance.value - float(tv(ft, pre))) < Z * distance.stderr
        assert divergence == pytest.approx(kl(ft, pre) + kl(pre, ft), rel=1e-9)
        assert distance.value - Z * distance.stderr <= np.sqrt(divergence) / 2


def test_a_convex_reward_has_no_tilt_below_some_temperature() -> None:
    found = figures_kl._cooled(resolve("gaussian-1d-ve").problem, seed=0)
    assert 4 < len(found.temperatures) < len(figures_kl.FACTORS)


def test_certificate_tells_the_exact_control_from_a_scaled_one() -> None:
    """Its width under the exact control falls as the root of the step; under half of it, it does not vanish."""
    problem = closed_problem()
    (coarse, _), (fine, scaled) = (figures_chains._certificates(problem, 0, steps) for steps in (200, 800))
    widths = [figures_chains._rms(values) for values in (coarse, fine, scaled)]
    spread = Z / np.sqrt(2 * figures_chains.PATHS)  # of the root mean square of as many normals
    assert 1.6 < widths[0] / widths[1] < 4.4
    assert widths[2] > widths[1] * (1 + 2 * spread)


def test_errors_of_the_kernels_fall_at_the_declared_order() -> None:
    problem = closed_problem()
    for kernel in figures_chains.KERNELS.values():
        errors = np.array([figures_chains._errors(problem, kernel, steps) for steps in (64, 128, 256, 512)]).T
        for column in errors:
            if column.min() > figures_chains.ROUNDING:
                order = observed_order(list(column), [64, 128, 256, 512])
                assert abs(order.limit - kernel.order_weak) < max(0.02, 3 * order.uncertainty)


def test_figures_are_drawn_with_the_reason_where_one_is_missing(tmp_path: Path) -> None:
    subjects = Selection(("gaussian-1d-ve", "quadratic-ou-2d", "mixture-2d-vp")).subjects()
    run = Run(["lemma-3.1"], [subject.problem.name for subject in subjects], Checking(0, quick=True))
    mutants = [{"name": "sign", "rejected": True, "by": ""}, {"name": "scale", "rejected": False, "by": ""}]
    for name in run.problems[:2]:
        run.reports.append(Report("lemma-3.1", "", "", name, [], "holds", "", 0.0, 0, mutants=mutants))
    pictures = {picture.name: picture for picture in figures.drawings(run, subjects, tmp_path)}
    assert list(pictures)[:5] == ["mutants", "kl-split", "bound-slack", "certificate", "orders"]
    assert {f"{name}.{suffix}" for name in pictures for suffix in ("png", "pdf")} == {
        path.name for path in tmp_path.iterdir()
    }
    assert "quadratic-ou-2d (with a running reward" in pictures["certificate"].caption
    assert "mixture-2d-vp (p_pre has no exact draws" in pictures["bound-slack"].caption
    assert figures_mutants.draw([Report("lemma-3.1", "", "", "here", [], "holds", "", 0.0, 0)], tmp_path) == []
