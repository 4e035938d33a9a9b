"""The page about planted bugs."""

from __future__ import annotations

from typing import Any

from .planted import BUGS

HEAD = """# Planted bugs

A green tick is worth what it would catch. Each line below is a bug that was planted in a copy of the library, alone,
before `sdecontrol verify --quick` was run on that copy. A bug counts as caught when rows are violated, or when a check
stops with an error; the row named is the first that turned red. The claim and problem that are likely to see a bug are
tried first, and everything where they stay green, so "caught by" is enough to see it, not all that would. What no claim
uses (estimates of the value, laws of guidance, particle samplers, the backend) is compared by its tests alone; there
the bug is planted under the test that is named.

`python -m tests.mutants` makes this page again. Numbers: `benchmarks/results/planted_bugs.json`.

"""


def page(table: dict[str, Any]) -> str:
    """The whole page in Markdown."""
    found, clean = table["bugs"], table["clean"]
    caught = sum(bool(one["caught"]) for one in found.values())
    by_error = sum(one["verdict"] == "check failed" for one in found.values())
    by_test = sum(bool(bug.test) for bug in BUGS)
    state = "green" if clean["exit_code"] == 0 else f"not green ({clean['verdict']}, {clean['quantity']})"
    says = f"Caught {caught} of {len(found)}, {by_test} of which are for the tests"
    says += f", {by_error} of them by a check that stopped with an error" if by_error else ""
    lines = [HEAD + f"{says}. The clean copy is {state}, in {clean['seconds']:.0f} s.\n"]
    missed = [bug for bug in BUGS if not found[bug.name]["caught"]]
    if missed:
        lines += ["## Not caught\n", "| bug | where | what |", "|---|---|---|"]
        lines += [f"| {bug.name} | `{bug.file}` | {bug.story} |" for bug in missed]
        lines.append("")
    lines += ["## Caught\n", "| bug | where | what | caught by | rung: quantity | left against right |"]
    lines.append("|---|---|---|---|---|---|")
    seen = [bug for bug in BUGS if found[bug.name]["caught"]]
    for bug in (bug for bug in seen if not bug.test):
        one = found[bug.name]
        where = f"{one['rung']}: {one['quantity']}" if one["quantity"] else "the check stops with an error"
        cells = [bug.name, f"`{bug.file}`", bug.story, f"{one['claim']} on {one['problem']}", where, one["detail"]]
        lines.append(_row(cells))
    lines += ["\n## Caught by a test\n", "| bug | where | what | test | what it said |", "|---|---|---|---|---|"]
    for bug in (bug for bug in seen if bug.test):
        cells = [bug.name, f"`{bug.file}`", bug.story, f"`{bug.test}`", found[bug.name]["detail"]]
        lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
