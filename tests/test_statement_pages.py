"""The statement pages: complete, their commands real, their numbers those of the recorded experiments."""

import importlib
import json
import math
import re
import sys
from pathlib import Path

import pytest

import sdecontrol as sc
from sdecontrol.problems.builtin import BUILTIN

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "statements"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
SECTIONS = ["Statement", "Assumptions", "What is compared", "Figure", "Gaps", "How to run it"]
NUMBER = r"(?<![\w.])-?(?:\d{1,3}(?: \d{3})+|\d+(?:\.\d+)?(?:e-?\d+)?)"
MARKED = re.compile(rf"({NUMBER})\s*<!-- results: ([^>]+?) -->")

sys.path.insert(0, str(ROOT))  # experiments and paper_figures are folders of the repository, not of the package


def recorded(address):
    """The value at NAME.key.key of experiments/results/NAME.json."""
    name, *keys = address.split(".")
    value = json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())
    for key in keys:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return float(value)


def half_a_digit(printed):
    """Half of the last printed digit."""
    mantissa, _, exponent = printed.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 0.5 * 10.0 ** (int(exponent or 0) - decimals)


def marked_numbers():
    return [(page.stem, printed, address) for page in PAGES for printed, address in MARKED.findall(page.read_text())]


def test_every_claim_has_a_page_and_every_page_a_claim():
    assert {path.stem for path in PAGES} == {claim.id for claim in sc.claims()}
    index = (FOLDER / "README.md").read_text()
    assert all(f"]({path.name})" in index for path in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_page_is_complete(page):
    text = page.read_text()
    assert re.findall(r"^## (.+)$", text, re.M) == SECTIONS
    figures = re.findall(r"!\[.+?\]\((\S+?)\)", text)
    assert figures
    for figure in figures:
        assert (FOLDER / figure).is_file() and (FOLDER / figure).with_suffix(".pdf").is_file()
    for link in re.findall(r"(?<!!)\[[^\]]+\]\((\S+?)\)", text):
        assert (FOLDER / link).is_file()
    assert len(re.findall("<!-- results:", text)) == len(MARKED.findall(text)), "a marker without a number before it"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_commands_exist(page):
    text = page.read_text()
    (claim, problem), *_ = re.findall(r"^\$ sdecontrol verify (\S+) --problem (\S+)", text, re.M)
    assert claim == page.stem and problem in BUILTIN
    modules = re.findall(r"^\$ python -m (\S+)", text, re.M)
    assert modules and all((ROOT / module.replace(".", "/")).with_suffix(".py").is_file() for module in modules)


@pytest.mark.parametrize(("page", "printed", "address"), marked_numbers())
def test_number_is_the_recorded_one(page, printed, address):
    shown = float(printed.replace(" ", ""))
    assert abs(shown - recorded(address)) <= half_a_digit(printed) * (1 + 1e-9) + 1e-15


def test_recorded_numbers_are_the_known_ones():
    known = {
        "tilt_bound.sup_over_root_half": (math.sqrt(0.5), 1e-4),
        "tilt_bound.sup_over_half_root": (1.0, 1e-4),
        "reward_collapse.two_points.coldest.tv": (0.5, 1e-12),
        "reward_collapse.two_points.coldest.kl": (math.log(2), 1e-12),
        "reward_collapse.two_points.coldest.root_half_divergence": (math.sqrt(10), 1e-12),
        "reward_collapse.two_points.coldest.root_bound": (math.sqrt(20), 1e-12),
        "novikov.at_critical.convex": (-1.0, 1e-8),
        "untilted_start.linear.slope_cost": (2.0, 1e-6),
        "untilted_start.mixture.tv_pre_data": (0.0008, 5e-5),
        "untilted_start.mixture.tv_ft_tilted_data": (0.0002, 5e-5),
        "untilted_start.mixture.tv_untilted": (0.0099, 5e-5),
    }
    for address, (value, error) in known.items():
        assert recorded(address) == pytest.approx(value, abs=error), address
    assert recorded("certificate.told.certificate") >= 99 and recorded("certificate.told.objective") <= 5
    assert recorded("orders.worst_deviation") <= 0.02
    zeros = ["tilt_bound.violations_root_half", "tilt_bound.violations_half_root", "tilt_bound.range.violations_tanh",
             "tilt_bound.range.violations_kl", "stability.violations", "certificate.false_alarms"]  # fmt: skip
    assert not [address for address in zeros if recorded(address)]
    for name in ("concave", "convex"):
        found = json.loads((ROOT / "experiments" / "results" / "novikov.json").read_text())[name]
        assert found["tilt_exists"] and not found["novikov_holds"] and set(found["verdicts"].values()) == {"holds"}


def deviation(new, old):
    """Largest difference of two nested results, relative to 1 or the old value; strings must be equal."""
    if isinstance(old, dict):
        assert set(new) == set(old)
        return max((deviation(new[key], old[key]) for key in old), default=0.0)
    if isinstance(old, list):
        return max((deviation(a, b) for a, b in zip(new, old, strict=True)), default=0.0)
    if isinstance(old, str | None):
        assert new == old
        return 0.0
    return abs(new - old) / max(1.0, abs(old))


@pytest.mark.parametrize("name", ["lemma_integrability", "reward_collapse", "convex_window", "f_divergence"])
def test_cheap_experiments_again(name):
    """The recorded file is what the code gives today."""
    found = json.loads(json.dumps(importlib.import_module(f"experiments.{name}").measure()))
    assert deviation(found, json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())) < 1e-8


def test_random_laws_again():
    """A tenth of the laws: no violation of the bounds that hold, many of those that do not."""
    found = importlib.import_module("experiments.tilt_bound").measure(laws=20_000, checked=50)
    assert found["violations_root_half"] == found["violations_half_root"] == 0
    assert found["sup_over_half_root"] == pytest.approx(1.0, abs=1e-3)
    assert found["dropped_normaliser"]["smaller"] > 100 and found["dropped_normaliser_jensen"]["violated"] > 100
    assert found["library"]["largest_deviation"] < 1e-12 and found["identity_deviation"] < 1e-12


def test_one_seed_of_the_certificate():
    experiment = importlib.import_module("experiments.certificate")
    made = experiment.problem()
    row = experiment.one_seed(made, 0, made.discretise(experiment.KERNEL, experiment.GRID).exact.log_normalizer)
    assert row["certificate"] > 3 and abs(row["objective"]) < 3 and abs(row["false_alarm"]) < 3


def test_mixture_started_from_the_standard_normal():
    found = importlib.import_module("experiments.untilted_start").mismatch()
    assert found["mass_of_untilted"] == pytest.approx(1, abs=1e-9)
    shown = [round(found[key], 4) for key in ("tv_pre_data", "tv_ft_tilted_data", "tv_untilted")]
    assert shown == [0.0008, 0.0002, 0.0099]
