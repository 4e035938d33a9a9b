"""The page about planted bugs."""

from __future__ import annotations

from typing import Any

from .planted import BUGS

HEAD = """# Planted bugs

A green tick is worth what it would catch. Each line below is a bug that was planted in a copy of the library, alone,
before `sdecontrol verify --quick` was run on that copy. A bug counts as caught when rows are violated, or when a check
stops with an error; the row named is the first that turned red. The claim and problem that are likely to see a bug are
tried first, and everything where they stay green, so "caught by" is enough to see it, not all that would.

`python -m tests.mutants` makes this page again. Numbers: `benchmarks/results/planted_bugs.json`.

"""


def page(table: dict[str, Any]) -> str:
    """The whole page in Markdown."""
    found, clean = table["bugs"], table["clean"]
    caught = sum(bool(one["caught"]) for one in found.values())
    by_error = sum(bool(one["caught"]) and one["verdict"] != "violated" for one in found.values())
    state = "green" if clean["exit_code"] == 0 else f"not green ({clean['verdict']}, {clean['quantity']})"
    says = f"Caught {caught} of {len(found)}"
    says += f", {by_error} of them by a check that stopped with an error" if by_error else ""
    lines = [HEAD + f"{says}. The clean copy is {state}, in {clean['seconds']:.0f} s.\n"]
    missed = [bug for bug in BUGS if not found[bug.name]["caught"]]
    if missed:
        lines += ["## Not caught\n", "| bug | where | what |", "|---|---|---|"]
        lines += [f"| {bug.name} | `{bug.file}` | {bug.story} |" for bug in missed]
        lines.append("")
    lines += ["## Caught\n", "| bug | where | what | caught by | rung: quantity | left against right |"]
    lines.append("|---|---|---|---|---|---|")
    for bug in BUGS:
        one = found[bug.name]
        if not one["caught"]:
            continue
        seen = f"{one['rung']}: {one['quantity']}" if one["quantity"] else "the check stops with an error"
        cells = [bug.name, f"`{bug.file}`", bug.story, f"{one['claim']} on {one['problem']}", seen, one["detail"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
