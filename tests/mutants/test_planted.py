"""Every planted bug applies to the library as it is; a few, in every run, and all, in the slow one, are caught."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdecontrol.claims import claims
from sdecontrol.problems.builtin import BUILTIN

from . import harness
from .harness import FAILED, PACKAGE, VIOLATED, Outcome, Workshop, hunt_all
from .planted import BUGS, Bug

BY_NAME = {bug.name: bug for bug in BUGS}
EVERY_RUN = ("g-squared-doubled", "initial-law-forgotten", "tilt-log-c")


@pytest.fixture(scope="module")
def shop() -> Iterator[Workshop]:
    with Workshop() as made:
        yield made


def test_there_are_enough() -> None:
    assert len(BUGS) >= 45
    assert not [name for name, count in Counter(bug.name for bug in BUGS).items() if count > 1]
    assert len({(bug.file, bug.old, bug.new) for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_applies(bug: Bug) -> None:
    """The text occurs exactly once, the edited module is still Python, and not the same program."""
    source = (PACKAGE / bug.file).read_text()
    assert ast.dump(ast.parse(bug.edited(source))) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_hint_names_what_exists(bug: Bug) -> None:
    if bug.test:
        file, name = bug.test.split("::")
        assert f"def {name}(" in (PACKAGE.parent / "tests" / file).read_text()
        return
    ids, problem = bug.hint
    assert ids and set(ids) <= {claim.id for claim in claims()}
    assert problem in BUILTIN


def test_a_text_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="0 times"):
        Bug("x", "path.py", "no such text", "y", "", BUGS[0].hint).edited("some source")
    with pytest.raises(ValueError, match="2 times"):
        Bug("x", "path.py", "a", "b", "", BUGS[0].hint).edited("a a")


@pytest.mark.parametrize("name", EVERY_RUN)
def test_is_caught_where_the_hint_says(shop: Workshop, name: str) -> None:
    bug = BY_NAME[name]
    outcome = shop.verify(bug, bug.hint)
    assert outcome.caught and outcome.exit_code == 1
    assert outcome.verdict == VIOLATED and outcome.violated > 0
    assert (outcome.claim, outcome.problem) == (bug.hint[0][0], bug.hint[1])
    assert (shop.copy / bug.file).read_text() == (PACKAGE / bug.file).read_text()


def test_a_run_that_never_checks_is_no_catch(shop: Workshop) -> None:
    broken = Bug("broken", "cli/verify.py", "def _prepare(", "def _prepared(", "", BUGS[0].hint)
    outcome = shop.verify(broken, broken.hint)
    assert outcome.exit_code == 1 and outcome.verdict == harness.STOPPED and not outcome.caught


def test_what_counts_as_caught() -> None:
    assert Outcome("", 1, VIOLATED).caught and Outcome("", 3, FAILED).caught
    assert not Outcome("", 0, VIOLATED).caught
    assert not Outcome("", None, harness.TIMEOUT).caught
    assert not Outcome("", 0, harness.GREEN).caught


def test_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped hunt goes on; changed sources or a changed bug start again."""
    ran: list[str] = []

    def verify(self: Workshop, bug: Bug | None = None, hint: object = None) -> Outcome:
        ran.append(bug.name if bug else "clean")
        if len(ran) == 3:
            raise KeyboardInterrupt
        return Outcome("sdecontrol verify", 1, VIOLATED) if bug else Outcome("sdecontrol verify", 0, harness.GREEN)

    monkeypatch.setattr(Workshop, "verify", verify)
    package = tmp_path / "sdecontrol"
    package.mkdir()
    (package / "__init__.py").write_text("")
    some, results = BUGS[:3], tmp_path / "results.json"
    with pytest.raises(KeyboardInterrupt):
        hunt_all(some, results, lambda *_: None, package)
    table = hunt_all(some, results, lambda *_: None, package)
    assert ran == ["clean", *(bug.name for bug in some[:2]), *(bug.name for bug in some[1:])]
    assert all(one["caught"] for one in table["bugs"].values())
    (package / "__init__.py").write_text("x = 1")
    hunt_all(some, results, lambda *_: None, package)
    assert len(ran) == 5 + 4


@pytest.mark.slow
def test_all_are_caught(tmp_path: Path) -> None:
    table = hunt_all(BUGS, tmp_path / "results.json", lambda *_: None)
    assert table["clean"]["exit_code"] == 0
    assert [name for name, one in table["bugs"].items() if not one["caught"]] == []
