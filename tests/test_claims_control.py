"""The control claims: they hold on every built-in problem, and each is caught lying when its answers are wrong."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdecontrol.claims.base import get_claim
from sdecontrol.claims.routes.latent import Latent
from sdecontrol.claims.routes.posterior import gaussian_kl
from sdecontrol.controls import StateControl
from sdecontrol.kernels import (
    DDIM,
    AffineStep,
    Ancestral,
    EulerMaruyama,
    ExactTransition,
    Exponential,
    SecondOrder,
    Transition,
)
from sdecontrol.laws import Gaussian
from sdecontrol.models import PerturbedScore
from sdecontrol.path import Path, PathWeights
from sdecontrol.problems.base import Problem
from sdecontrol.problems.builtin import BUILTIN, resolve
from sdecontrol.processes import Affine, DiffusionProcess, ReverseProcess, ReverseState
from sdecontrol.rewards import Linear, Quadratic, Step
from sdecontrol.schedules import VP
from sdecontrol.step import StepView

addressed, evaluation, simulation = (
    importlib.import_module(f"sdecontrol.{name}") for name in ("noise", "evaluate", "simulate")
)  # the package has functions of these names
MODULES = (
    "girsanov_identity",
    "separation",
    "initial_law",
    "hjb",
    "path_law",
    "certificate",
    "feynman_kac",
    "swap",
    "stability",
)
for module in MODULES:
    importlib.import_module(f"sdecontrol.claims.entropy.{module}")
IDS = ("prop-3.3", "eq-3.13", "prop-3.4", "prop-3.5", "prop-3.6", "eq-3.24", "eq-3.27", "eq-3.28", "eq-3.29",
       "prop-3.7")  # fmt: skip
DYNAMIC = ("prop-3.3", "eq-3.13", "prop-3.5", "prop-3.6", "eq-3.24", "eq-3.27", "eq-3.28", "eq-3.29")
WITH_RUNNING_REWARD = ("prop-3.3", "eq-3.13", "prop-3.5")  # the others speak of the tilt by r(Y_T) alone


@pytest.mark.parametrize("name", BUILTIN)
def test_every_claim_holds_on_every_built_in_problem(name):
    problem = resolve(name).problem
    for id in IDS:
        report = get_claim(id).run(problem, quick=True)
        if problem.running_reward is not None and id not in WITH_RUNNING_REWARD:
            assert report.verdict == "not applicable" and "running reward" in report.reason, id
            continue
        bad = [row for row in report.rows if row.verdict != "holds"]
        assert report.verdict == "holds", (id, report.reason, bad)
        rungs = {row.rung for row in report.rows}
        assert {"exact", "discrete"} <= rungs, id


# ---------------------------------------------------------------------- wrong answers


class Wrong:
    """Answers with some of them replaced."""

    def __init__(self, answers, **replaced):
        self._answers, self._replaced = answers, replaced

    def __getattr__(self, name):
        replaced = self.__dict__["_replaced"]
        return replaced[name] if name in replaced else getattr(self.__dict__["_answers"], name)


def _scaled(control, factor):
    return StateControl(lambda t, x: factor(t) * control(t, x))


def _tilted_twice(law, prior):
    """nu* with its tilt of the prior applied once more."""
    twice = 2 * torch.linalg.inv(law.covariance) - torch.linalg.inv(prior.covariance)
    pull = 2 * torch.linalg.solve(law.covariance, law.mean) - torch.linalg.solve(prior.covariance, prior.mean)
    covariance = torch.linalg.inv(twice)
    return Gaussian(covariance @ pull, (covariance + covariance.mT) / 2)


def _mutants(problem):
    """Name -> (replaced answers, claims that must notice)."""
    e, process, alpha = problem.exact, problem.process, problem.temperature
    prior, horizon = process.initial_law(0.0), process.horizon
    latent = Latent(problem)

    def swapped(t, x):
        t, z = min(t, horizon * (1 - 1e-12)), latent.encode(t, x)
        return torch.as_tensor(
            process.amplitude(t) * latent.clean(t).mean_gradient(latent.rho, z) @ latent.frame.basis.T
        )

    def mean_reward(t, x):
        return (
            e.value(t, x)
            if t == horizon
            else alpha * torch.as_tensor(latent.clean(t).mean(latent.rho, latent.encode(t, x)))
        )

    wrong_control = {"prop-3.3", "eq-3.13", "prop-3.5", "prop-3.6", "eq-3.27", "prop-3.7"}
    common = {
        "control x 0.9": ({"control": 0.9 * e.control}, wrong_control),
        "control of the wrong sign": ({"control": -e.control}, wrong_control),
        "g^2 for g in the control": ({"control": _scaled(e.control, process.amplitude)}, wrong_control),
        "control without temperature": ({"control": alpha * e.control}, wrong_control if alpha != 1 else set()),
        "control in reversed time": (
            {"control": StateControl(lambda t, x: e.control(horizon - t, x))},
            wrong_control - {"prop-3.7"},
        ),
        "swapped log and E": ({"control": StateControl(swapped)}, {"prop-3.5", "eq-3.27"}),
        "value x 0.9": (
            {"value": lambda t, x: 0.9 * e.value(t, x)},
            {"prop-3.4", "prop-3.5", "prop-3.6", "eq-3.24"},
        ),
        "value in reversed time": (
            {"value": lambda t, x: e.value(horizon - t, x)},
            {"prop-3.4", "prop-3.5", "eq-3.24"},
        ),
        "value = E[r|y]": ({"value": mean_reward}, {"prop-3.4", "prop-3.5", "eq-3.24"}),
        "value below E[r|y]": ({"value": lambda t, x: mean_reward(t, x) - 0.01}, {"eq-3.28"}),
        "log C dropped": ({"log_normalizer": 0.0}, {"prop-3.4", "prop-3.6"}),
        "log C of the wrong sign": ({"log_normalizer": -e.log_normalizer}, {"prop-3.4", "prop-3.6"}),
        "initial law forgotten": ({"initial": prior}, {"prop-3.4", "eq-3.13"}),
        "KL of the initial law forgotten": ({"path_kl": e.energy}, {"prop-3.3"}),
        "KL of the path forgotten": ({"path_kl": e.kl_initial}, {"prop-3.3", "prop-3.7"}),
        "energy without its half": ({"energy": 2 * e.energy, "path_kl": e.path_kl + e.energy}, {"prop-3.3"}),
        "marginals in reversed time": ({"marginal": lambda t: e.marginal(horizon - t)}, {"prop-3.6"}),
    }
    return common, e, prior, process


def _gaussian_mutants(problem):
    common, e, prior, process = _mutants(problem)
    reverse = gaussian_kl(*((law.mean.numpy(), law.covariance.numpy()) for law in (e.reference, e.terminal)))
    own = {
        "initial law tilted twice": (
            {"initial": _tilted_twice(e.initial, prior)},
            {"prop-3.3", "prop-3.4", "eq-3.13", "prop-3.6"},
        ),
        "initial law forgotten": ({"initial": prior}, {"prop-3.3", "prop-3.4", "eq-3.13", "prop-3.6"}),
        "control x 0.9": (
            {"control": 0.9 * e.control},
            {"prop-3.3", "eq-3.13", "prop-3.5", "prop-3.6", "eq-3.27", "eq-3.28", "prop-3.7"},
        ),
        "swapped log and E": (
            {"control": common["swapped log and E"][0]["control"]},
            {"prop-3.3", "eq-3.13", "prop-3.5", "eq-3.27", "eq-3.28"},
        ),
        "log C dropped": ({"log_normalizer": 0.0}, {"eq-3.13", "prop-3.4", "prop-3.5", "prop-3.6"}),
        "KL reversed": ({"path_kl": reverse}, {"prop-3.3"}),
        "p_ft = p_pre": ({"terminal": e.reference}, {"prop-3.6", "prop-3.7"}),
        "p_ft from the untilted start": ({"terminal": e.untilted_terminal}, {"prop-3.6", "prop-3.7"}),
        "untilted start declared harmless": ({"untilted_terminal": e.terminal}, {"prop-3.6"}),
    }
    return common | own


def _mixture_mutants(problem):
    common, e, _, _ = _mutants(problem)
    own = {
        "p_ft = p_pre": ({"terminal": e.reference, "marginal": lambda t: e.reference}, {"prop-3.6"}),
        "path KL x 1.2": ({"path_kl": 1.2 * e.path_kl}, {"prop-3.3", "prop-3.7"}),
    }
    return common | own


def _cases():
    found = []
    for name, mutants in (("gaussian-1d-vp", _gaussian_mutants), ("mixture-2d-ve", _mixture_mutants)):
        problem = resolve(name).problem
        for mutant, (replaced, claims) in mutants(problem).items():
            found.append(pytest.param(problem, replaced, claims, id=f"{name}: {mutant}"))
    return found


@pytest.mark.parametrize(("problem", "replaced", "claims"), _cases())
def test_wrong_answers_are_caught(problem, replaced, claims):
    for id in sorted(claims):
        wrong = Wrong(problem.exact, **replaced)
        report = get_claim(id).run(problem, answers=wrong, quick=True, rungs=["exact", "discrete"])
        if report.verdict != "violated":
            report = get_claim(id).run(problem, answers=wrong, quick=True, rungs=["monte carlo"])
        assert report.verdict == "violated", (id, report.verdict)


# ---------------------------------------------------------------------- the generator, in any dimension


@pytest.mark.parametrize("name", ["mixture-2d-vp", "digits-mixture"])
def test_the_generator_at_points_catches_a_wrong_control_of_a_mixture(name):
    problem = resolve(name).problem
    u, horizon, amplitude = problem.exact.control, problem.process.horizon, problem.process.amplitude
    wrong = {
        "x 0.99": 0.99 * u,
        "sign": -u,
        "g^2 for g": _scaled(u, amplitude),
        "reversed time": StateControl(lambda t, x: u(horizon - 0.9 * t, x)),
    }
    rows = {"prop-3.3": "A* log dQ*_t/dQ_t", "eq-3.13": "A^u v/temperature", "prop-3.7": "optimum for 0.5 r: A*"}
    for mistake, control in wrong.items():
        for id, row in rows.items():
            answers = Wrong(problem.exact, control=control)
            report = get_claim(id).run(problem, answers=answers, quick=True, rungs=["exact"])
            found = [r.quantity for r in report.rows if r.verdict == "violated"]
            assert any(quantity.startswith(row) for quantity in found), (mistake, id, found)


def test_steps_under_a_wrong_drift_are_of_a_lower_order(monkeypatch):
    problem = resolve("mixture-2d-vp").problem
    second = importlib.import_module("sdecontrol.problems.second")
    right = second.FollmerDrift._drift
    monkeypatch.setattr(second.FollmerDrift, "_drift", lambda self, t, x: 0.8 * right(self, t, x))
    report = get_claim("eq-3.32").run(problem, quick=True, rungs=["discrete"])
    assert report.verdict == "violated" and "order in the step" in report.reason


# ---------------------------------------------------------------------- the discrete rung alone


def _on_a_step(problem):
    """Name -> (replaced answers, {claim: beginning of the row that must notice}); no path, no quadrature over a law."""
    e, process, alpha, horizon = problem.exact, problem.process, problem.temperature, problem.process.horizon
    worth = "(E v' - v)/temperature - dt |u*|^2 / 2 over a step"
    growth, noise, loss = "log E e^(v' - v)/temperature over a step", "E[z e^(v'/temperature)]", "log E e^(v'/temp"
    start = "J/temperature - log dnu*/dp_noise - log C over a step, as"
    steered = {"prop-3.5": worth, "prop-3.6": "Euler: moments of a step under u*", "eq-3.27": noise, "eq-3.28": loss}
    valued = {"prop-3.5": worth, "eq-3.24": growth, "eq-3.27": noise, "eq-3.28": loss}
    return {
        "control x 0.9": ({"control": 0.9 * e.control}, steered),
        "control of the wrong sign": ({"control": -e.control}, {k: v for k, v in steered.items() if k != "eq-3.28"}),
        "g^2 for g in the control": ({"control": _scaled(e.control, process.amplitude)}, steered),
        "control without temperature": ({"control": alpha * e.control}, steered if alpha != 1 else {}),
        "control in reversed time": ({"control": StateControl(lambda t, x: e.control(horizon - t, x))}, steered),
        "value x 0.9": ({"value": lambda t, x: 0.9 * e.value(t, x)}, valued),
        "value in reversed time": ({"value": lambda t, x: e.value(horizon - t, x)}, valued),
        "initial law forgotten": ({"initial": process.initial_law(0.0)}, {"eq-3.13": start}),
        "log C dropped": ({"log_normalizer": 0.0}, {"eq-3.13": start}),
        "value at the start x 0.9": ({"value": lambda t, x: 0.9 * e.value(t, x)}, {"eq-3.13": start}),
    }


@pytest.mark.parametrize("name", ["gaussian-1d-vp", "mixture-2d-vp", "digits-mixture"])
def test_one_step_is_enough_to_catch_wrong_answers(name):
    problem = resolve(name).problem
    for mutant, (replaced, rows) in _on_a_step(problem).items():
        for id, row in rows.items():
            wrong = Wrong(problem.exact, **replaced)
            report = get_claim(id).run(problem, answers=wrong, quick=True, rungs=["discrete"])
            found = [r.quantity for r in report.rows if r.verdict == "violated"]
            assert any(quantity.startswith(row) for quantity in found), (mutant, id, found)


def _times(factor):
    """A method that returns too much."""
    return lambda right: lambda *arguments: factor * right(*arguments)


def _coefficients(c_x=1.0, c_f=1.0, std=1.0):
    return lambda right: lambda *step: tuple(f * c for f, c in zip((c_x, c_f, std), right(*step)))


def _large_for_small(right):
    """The ancestral kernel with the wrong one of its two variances."""
    other = {"small": Ancestral("large"), "large": Ancestral("small")}
    return lambda kernel, *step: (*right(kernel, *step)[:2], right(other[kernel.variance], *step)[2])


def _noisy_end(right):
    return lambda *step: (*right(*step)[:2], right(*step)[2] or 0.1)


def _matrices(gain=1.0, spread=1.0):
    def make(right):
        def wrong(*step):
            said = right(*step)
            return AffineStep(gain * said.matrix, said.offset, spread * said.noise)

        return wrong

    return make


def _not_shifted_back(right):
    """Path.replay_weights with the noise under the reference in the place of that under the replayed control."""

    def wrong(path, control, initial=None):
        found = right(path, control, initial)
        return replace(found, martingale=found.martingale + 2 * found.energy)

    return wrong


def _at_the_right_end(right):
    def wrong(problem, path):
        return right(problem, replace(path, observed=path.observed.roll(-1, 0)))

    return wrong


_A, _MEAN, _ORDER = "coefficients", "kernels that keep x0_hat: mean", "moments of a step: order"
_LOUD, _STRONG = _coefficients(std=1.1), _coefficients(c_f=1.01)
BROKEN = {  # what is broken -> (owner, attribute, how, claim, problem, beginning of the row that must notice)
    "Euler's score": (EulerMaruyama, _A, _coefficients(c_f=2), "prop-3.6", "mixture-2d-ve", f"Euler: {_ORDER}"),
    "exponential": (Exponential, _A, _coefficients(c_f=0.5), "prop-3.6", "mixture-2d-vp", f"exponential: {_ORDER}"),
    "ancestral weight": (Ancestral, _A, _STRONG, "prop-3.6", "mixture-2d-vp", _MEAN),
    "DDIM weight": (DDIM, _A, _STRONG, "prop-3.6", "digits-mixture", _MEAN),
    "ancestral noise": (Ancestral, _A, _LOUD, "prop-3.6", "mixture-2d-vp", f"ancestral: {_ORDER}"),
    "noise under u*": (Ancestral, _A, _LOUD, "prop-3.6", "digits-mixture", "ancestral: moments of a step under u*"),
    "variances swapped": (Ancestral, _A, _large_for_small, "prop-3.6", "mixture-2d-vp", "ancestral, data in a point"),
    "large for small": (Ancestral, _A, _large_for_small, "prop-3.6", "gaussian-1d-ve", "ancestral, large, data in a"),
    "DDIM's variance": (DDIM, _A, _LOUD, "prop-3.6", "gaussian-1d-vp", "DDIM(1), data in a point"),
    "last step's noise": (Ancestral, _A, _noisy_end, "prop-3.6", "mixture-2d-ve", "variance of their closing step"),
    "last step's mean": (Ancestral, _A, _STRONG, "prop-3.6", "digits-mixture", "their closing step - E[X_0|y]"),
    "corrector": (SecondOrder, "_slope_weight", _times(1.1), "prop-3.6", "digits-mixture", f"second order: {_ORDER}"),
    "exact noise": (
        ExactTransition, "_conditional", _matrices(spread=1.01), "prop-3.6", "gaussian-4d-ve", "exact transition: mom"),
    "matrices": (Transition, "affine", _matrices(gain=1.01), "prop-3.6", "gaussian-4d-vp", "matrices of a step - the"),
    "DDIM's noise": (Transition, "affine", _matrices(spread=1.1), "prop-3.6", "gaussian-1d-ve", "DDIM(0.5): marginal"),
    "noise, in the value": (Ancestral, _A, _LOUD, "eq-3.24", "mixture-2d-vp", "log E e^(v' - v)"),
    "noise, in what u* is worth": (Ancestral, _A, _LOUD, "prop-3.5", "mixture-2d-ve", "(E v' - v)/temperature - dt"),
    "noise, in the reward": (Ancestral, _A, _LOUD, "eq-3.28", "mixture-2d-ve", "change of E[r|y]"),
    "x0_hat": (
        ReverseState, "x0_hat", lambda right: property(lambda state: 1.01 * right.func(state)), "eq-3.27",
        "digits-mixture", "x0_hat - E[X_0|y]"),
    "pullback": (ReverseState, "pullback", _times(1.01), "eq-3.27", "mixture-2d-vp", "pullback - Jacobian"),
    "from_value": (StepView, "from_value", _times(1.01), "eq-3.27", "mixture-2d-vp", "ancestral: a gradient, a score"),
    "from_score": (StepView, "from_score", _times(1.01), "eq-3.27", "digits-mixture", "Euler: a gradient, a score"),
    "from_mean": (StepView, "from_mean", _times(1.01), "eq-3.27", "subspace-16-in-64-ve", "ancestral: what from_mean"),
    "a moved mean": (StepView, "from_mean", _times(1.01), "eq-3.27", "gaussian-1d-vp", "Euler: what from_mean"),
    "log ratio": (PathWeights, "log_ratio", _times(1.01), "prop-3.3", "digits-mixture", "log ratio of 16 paths"),
    "replay": (Path, "replay_weights", _not_shifted_back, "prop-3.3", "mixture-2d-vp", "replay of another control"),
    "own replay": (Path, "replay_weights", _not_shifted_back, "prop-3.3", "quadratic-ou-2d", "replay of the same"),
    "energy": (simulation, "half_square", _times(2), "prop-3.3", "mixture-2d-ve", "energy of the same paths"),
    "noise repeats": (
        addressed, "_generator", lambda right: lambda *a: right(*a[:3], 0), "prop-3.6", "mixture-2d-vp",
        "mean product of a step's noise"),
    "temperature of a weight": (
        evaluation.ControlRun, "log_weight", lambda right: property(lambda run: run.reward - run.path.log_ratio()),
        "prop-3.5", "gaussian-1d-vp", "temperature KL(Q^u||Q*)"),
    "running reward": (
        evaluation, "total_reward", _at_the_right_end, "prop-3.5", "quadratic-ou-2d", "E of the rewards"),
}  # fmt: skip
SIMULATED = {"noise repeats", "temperature of a weight", "running reward"}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_library_is_caught(broken, monkeypatch):
    owner, attribute, how, id, name, row = BROKEN[broken]
    problem, rungs = resolve(name).problem, ["monte carlo" if broken in SIMULATED else "discrete"]
    right = get_claim(id).run(problem, quick=True, seed=1, rungs=rungs)
    assert right.verdict == "holds" and any(r.quantity.startswith(row) for r in right.rows)
    monkeypatch.setattr(owner, attribute, how(getattr(owner, attribute)))
    report = get_claim(id).run(problem, quick=True, seed=2, rungs=rungs)
    found = [r.quantity for r in report.rows if r.verdict == "violated"]
    assert any(quantity.startswith(row) for quantity in found), found


def test_a_control_off_the_subspace_is_caught():
    problem = resolve("subspace-16-in-64-ve").problem
    e, basis = problem.exact, Latent(problem).frame.basis
    normal = torch.as_tensor((np.eye(64) - basis @ basis.T)[0])
    off = StateControl(lambda t, x: e.control(t, x) + 1e-6 * normal)
    report = get_claim("eq-3.27").run(problem, answers=Wrong(e, control=off), quick=True)
    assert [row.quantity for row in report.rows if row.verdict == "violated"] == ["component of u* off the span"]


def test_wrong_control_is_caught_by_simulation_alone():
    problem = resolve("mixture-2d-vp").problem
    wrong = Wrong(problem.exact, control=0.5 * problem.exact.control)
    assert get_claim("prop-3.6").run(problem, answers=wrong, rungs=["monte carlo"]).verdict == "violated"
    right = get_claim("prop-3.6").run(problem, rungs=["monte carlo"])
    assert right.verdict == "holds", right.rows


# ---------------------------------------------------------------------- other problems


def _ornstein_uhlenbeck():
    drift = Affine([[-1.0, 0.3], [0.0, -0.5]], [0.2, 0.0])
    process = DiffusionProcess(drift, 0.8, Gaussian([0.5, -0.5], [[1.0, 0.2], [0.2, 0.6]]), horizon=1.5)
    return Problem(process, Quadratic([0.5, 1.0], [[0.4, 0.0], [0.0, -0.1]]), temperature=0.7, name="ou")


def _imperfect():
    model = PerturbedScore(Gaussian([0.5], [[0.6]]), scale=1.1, bias=0.2)
    return Problem(ReverseProcess(VP(0.1, 5.0), model), Quadratic([1.0], [[0.8]]), temperature=0.5, name="imperfect")


@pytest.mark.parametrize("problem", [_ornstein_uhlenbeck(), _imperfect()], ids=["ou", "imperfect score"])
def test_affine_problems_without_an_exact_score_are_settled_by_riccati(problem):
    for id in IDS:
        report = get_claim(id).run(problem, quick=True)
        assert report.verdict == "holds", (id, report.reason, report.rows)
        assert "discrete" in {row.rung for row in report.rows} or id not in DYNAMIC or id == "prop-3.6"


def test_statements_about_the_tilt_do_not_apply_with_a_running_reward():
    process = ReverseProcess(VP(0.1, 5.0), Gaussian([0.5], [[0.6]]))
    problem = Problem(process, Linear([1.0]), running_reward=Linear([0.5]))
    for id in set(IDS) - set(WITH_RUNNING_REWARD):
        report = get_claim(id).run(problem, quick=True)
        assert report.verdict == "not applicable" and "running reward" in report.reason, id
    for id in WITH_RUNNING_REWARD:
        report = get_claim(id).run(problem, quick=True)
        assert report.verdict == "holds", (id, report.reason, report.rows)


def test_rewards_without_a_second_route_and_networks_are_not_applicable_or_hold_on_what_is_left():
    step = Problem(ReverseProcess(VP(0.1, 5.0), Gaussian([0.5], [[0.6]])), Step([1.0], 0.4, 1.0), temperature=0.8)
    verdicts = {id: get_claim(id).run(step, quick=True).verdict for id in IDS}
    assert set(verdicts.values()) <= {"holds", "not applicable"}, verdicts
    assert verdicts["prop-3.5"] == "holds"
    double_well = DiffusionProcess(lambda t, x: x - x**3, 1.0, Gaussian([0.0], [[0.5]]))
    free = Problem(double_well, Linear([1.0]))
    verdicts = {id: get_claim(id).run(free, quick=True).verdict for id in IDS}
    assert verdicts["prop-3.3"] == "holds" and set(verdicts.values()) <= {"holds", "not applicable"}, verdicts
