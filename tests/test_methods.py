"""Laws by name: what they make, what they refuse, and how a user's own joins."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import sdecontrol as sc
import sdecontrol.finetune as ft
from sdecontrol import guidance
from sdecontrol.errors import BadInput, NoClosedForm, NotDefined, UnknownName
from sdecontrol.methods import METHODS, choose

LAW = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
GRID = sc.TimeGrid.log_snr(20, s_min=1e-2)
LABEL = sc.GaussianLabel([1.0, 0.5], 2.0, 0.5, strength=2.0)


def problem(reward: Any = LABEL, temperature: float = 1.0) -> sc.Problem:
    return sc.Problem(sc.ReverseProcess(sc.VP(), LAW), reward, temperature)


def made(spec: str, on: sc.Problem) -> Any:
    return choose([spec])[0].entry(on, grid=GRID)[0]


@pytest.mark.parametrize("name", METHODS)
def test_every_law_runs_on_a_label(name: str) -> None:
    on = problem()
    entry, notes = choose([name])[0].entry(on, grid=GRID)
    row = sc.compare(on, {name: entry}, grid=GRID, n=64, show=False).rows[name]
    assert math.isfinite(row.reward.value)
    assert bool(notes) == (name == "dps")


def test_labels_are_taken_at_the_first_power_and_raised_by_the_strength() -> None:
    """At strength 2 the classifier is that of the label itself, and its gradient is doubled."""
    on, unit = problem(), problem(sc.GaussianLabel([1.0, 0.5], 2.0, 0.5))
    seen = at(on, made("classifier", on)), at(on, made("cfg", on))
    expected = 2 * at(unit, guidance.doob(unit, form="score"))
    for u in seen:
        assert (u - expected).abs().max() < 1e-9
    exact = at(on, guidance.doob(on, form="score"))
    assert (expected - exact).abs().max() > 0.1 * exact.abs().max()
    assert (at(on, made("cfg:1", on)) * 2 - expected).abs().max() < 1e-9


def at(on: sc.Problem, control: Any) -> torch.Tensor:
    from sdecontrol.step import StepView

    transition = sc.Ancestral().transition(on.process, 0.5, 0.52)
    x = torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=torch.float64)
    return control(StepView(on.process, transition, 0, on.process.state(0.5, x, jacobian=True)))


def test_the_scale_of_dps_is_the_best_of_its_sweep() -> None:
    on = problem()
    chosen = made("dps", on).scale
    objective = {
        scale: sc.evaluate(on, guidance.dps(on, scale=scale), grid=GRID, n=4_000).objective.value
        for scale in (0.1 * chosen, chosen, 10 * chosen)
    }
    assert max(objective, key=objective.__getitem__) == chosen
    assert made("dps:0.25", on).scale == 0.25


def test_what_is_not_defined_is_refused_when_made() -> None:
    general = sc.problems.double_well()
    for name in ("classifier", "cfg", "dps", "pigdm", "plug-in", "gloss", "naive", "exact-variance", "fk", "svdd"):
        with pytest.raises((NotDefined, NoClosedForm)):
            made(name, general)
    black_box = problem(lambda x: -x.square().sum(1))
    for name in ("tilt", "exact", "doob", "classifier", "cfg"):
        with pytest.raises(NoClosedForm):
            made(name, black_box)
    with pytest.raises(NotDefined, match="bound="):
        sc.evaluate(black_box, made("rejection", black_box), grid=GRID, n=64)


def test_names_and_numbers() -> None:
    with pytest.raises(UnknownName, match="nearest: plug-in"):
        choose(["plugin"])
    for spec in ("naive:3", "fk:many", "fk:nan", "fk:", "cfg:inf"):
        with pytest.raises(BadInput):
            choose([spec])
    for spec in ("fk:1", "svdd:1", "best-of-n:1", "fk:2.5"):
        with pytest.raises(BadInput, match="at least 2|integer"):
            made(spec, problem())
    assert [choice.spec for choice in choose(["none", "fk:4", "none"])] == ["none", "fk:4"]


def test_ones_own_law_is_a_function_of_the_problem_or_what_it_returns() -> None:
    on = problem()
    control = guidance.plug_in(on)
    own = {
        "half": lambda problem: 0.5 * guidance.plug_in(problem),
        "ready": control,
        "started": (control, on.exact.initial),
        "sampler": sc.steering.fk(on, 4),
        "nothing": None,
    }
    entries = {choice.spec: choice.entry(on)[0] for choice in choose([*own], own)}
    assert entries["ready"] is control and entries["nothing"] is None
    rows = sc.compare(on, entries, grid=GRID, n=64, show=False).rows
    assert rows["ready"].reward.value != rows["half"].reward.value
    with pytest.raises(BadInput, match="function of the problem"):
        choose(["bad"], {"bad": 3})


def test_exact_draws_are_of_the_tilt() -> None:
    on = problem()
    drawn = sc.steering.exact_draws(on).run(on, n=20_000)
    tilt = on.exact.terminal
    assert abs(sc.Estimate.mean(drawn.x).z(tilt.mean.numpy())).max() < 5
    assert drawn.log_normalizer.value == on.exact.log_normalizer
    running = sc.problems.quadratic_ou()
    with pytest.raises(NotDefined, match="running reward"):
        sc.steering.exact_draws(running)


def test_a_learned_control_joins_from_its_checkpoint(tmp_path: Path) -> None:
    on = problem(sc.Linear([1.0, 0.5]))
    control, _ = sc.fit(
        on, ft.AffineFamily(2), ft.RelativeEntropy(), steps=3, n=16, grid=GRID, checkpoint=tmp_path, progress=False
    )
    own = {"learned": lambda problem: ft.restored(ft.AffineFamily(2), tmp_path)}
    entry = choose(["learned"], own)[0].entry(on)[0]
    assert torch.equal(at(on, entry), at(on, control).detach()) and at(on, entry).abs().max() > 0
    with pytest.raises(BadInput, match="as it was made for the fit"):
        ft.restored(ft.AffineFamily(3), tmp_path)
    with pytest.raises(BadInput, match="no state.safetensors"):
        ft.restored(ft.AffineFamily(2), tmp_path / "elsewhere")
