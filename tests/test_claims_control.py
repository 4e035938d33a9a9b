"""The control claims: they hold on every built-in problem, and each is caught lying when its answers are wrong."""

import importlib

import numpy as np
import pytest
import torch

from sdecontrol.claims.base import get_claim
from sdecontrol.claims.latent import Latent
from sdecontrol.claims.posterior import gaussian_kl
from sdecontrol.controls import StateControl
from sdecontrol.laws import Gaussian
from sdecontrol.models import PerturbedScore
from sdecontrol.problems.base import Problem
from sdecontrol.problems.builtin import BUILTIN, resolve
from sdecontrol.processes import Affine, DiffusionProcess, ReverseProcess
from sdecontrol.rewards import Linear, Quadratic, Step
from sdecontrol.schedules import VP

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
    importlib.import_module(f"sdecontrol.claims.{module}")
IDS = ("prop-3.3", "eq-3.13", "prop-3.4", "prop-3.5", "prop-3.6", "eq-3.24", "eq-3.27", "eq-3.28", "prop-3.7")


@pytest.mark.parametrize("name", BUILTIN)
def test_every_claim_holds_on_every_built_in_problem(name):
    problem = resolve(name).problem
    for id in IDS:
        report = get_claim(id).run(problem, quick=True)
        bad = [row for row in report.rows if row.verdict != "holds"]
        assert report.verdict == "holds", (id, report.reason, bad)
        assert {row.rung for row in report.rows} >= {"exact"} or id in ("prop-3.3", "eq-3.13", "prop-3.7")


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

    wrong_control = {"prop-3.3", "prop-3.5", "prop-3.6", "eq-3.27", "prop-3.7"}
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
    unseen = {"control x 0.9": set(), "control of the wrong sign": {"prop-3.3", "prop-3.7"}}
    unseen["control in reversed time"] = {"prop-3.3"}  # the energy of a control is blind to its sign
    return {name: (replaced, ids - unseen.get(name, set())) for name, (replaced, ids) in (common | own).items()}


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
        assert report.verdict == ("not applicable" if id in ("eq-3.27",) else "holds"), (id, report.reason, report.rows)


def test_statements_about_the_tilt_do_not_apply_with_a_running_reward():
    process = ReverseProcess(VP(0.1, 5.0), Gaussian([0.5], [[0.6]]))
    problem = Problem(process, Linear([1.0]), running_reward=Linear([0.5]))
    for id in IDS[2:]:
        report = get_claim(id).run(problem, quick=True)
        assert report.verdict == "not applicable" and "running reward" in report.reason, id
    assert get_claim("prop-3.3").run(problem, quick=True).verdict == "holds"


def test_rewards_without_a_second_route_and_networks_are_not_applicable_or_hold_on_what_is_left():
    step = Problem(ReverseProcess(VP(0.1, 5.0), Gaussian([0.5], [[0.6]])), Step([1.0], 0.4, 1.0), temperature=0.8)
    verdicts = {id: get_claim(id).run(step, quick=True).verdict for id in IDS}
    assert set(verdicts.values()) <= {"holds", "not applicable"}, verdicts
    assert verdicts["prop-3.5"] == "holds"
    double_well = DiffusionProcess(lambda t, x: x - x**3, 1.0, Gaussian([0.0], [[0.5]]))
    free = Problem(double_well, Linear([1.0]))
    verdicts = {id: get_claim(id).run(free, quick=True).verdict for id in IDS}
    assert verdicts["prop-3.3"] == "holds" and set(verdicts.values()) <= {"holds", "not applicable"}, verdicts
