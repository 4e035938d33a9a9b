"""report.html: the whole report as one page that loads nothing, with its figures inside."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from sdecontrol.claims import Report
from sdecontrol.claims.base import RUNGS
from sdecontrol.report.mutants import tallies, totals
from sdecontrol.report.numbers import BIASED_MEANS, SIGNS, agreement, allows_for_bias, duration, error, value
from sdecontrol.report.run import VERDICTS, Picture, Run, versions

OPEN = ("violated", "inconclusive")  # verdicts whose sections are open at first


class Section(NamedTuple):
    """One report and the name of its place in the page."""

    anchor: str
    report: Report

    @property
    def marked(self) -> bool:
        return any(map(allows_for_bias, self.report.rows))


class Group(NamedTuple):
    """A claim with its reports on every problem."""

    claim: str
    title: str
    source: str
    sections: list[Section]


def render(run: Run, folder: Path) -> str:
    """The page; pictures are read from `folder`, where the run's figures were saved."""
    groups = list(_groups(run))
    anchors = {(s.report.claim, s.report.problem): s.anchor for group in groups for s in group.sections}
    wrong = tallies(run.reports)
    return _template().render(
        run=run,
        versions=versions(),
        duration=duration(run.seconds),
        groups=groups,
        anchors=anchors,
        matrix=run.matrix(),
        titles={group.claim: group.title for group in groups},
        fits=list(dict.fromkeys(run.fits.values())),
        attention=[report for report in run.reports if report.verdict in OPEN],
        rows=sum(len(report.rows) for report in run.reports),
        pictures=[(picture, _inline(picture, folder)) for picture in run.figures],
        wrong=wrong,
        wrong_totals=totals(wrong),
        wrong_names=list(dict.fromkeys(name for row in wrong.values() for name in row)),
    )


def _groups(run: Run) -> Iterator[Group]:
    numbered = [Section(f"r{i}", report) for i, report in enumerate(run.reports)]
    for claim in run.ids:
        sections = [section for section in numbered if section.report.claim == claim]
        if sections:
            report = sections[0].report
            yield Group(claim, report.title, report.source, sections)


def _inline(picture: Picture, folder: Path) -> str:
    return "data:image/png;base64," + base64.b64encode((folder / f"{picture.name}.png").read_bytes()).decode()


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("sdecontrol.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"value": value, "error": error, "agreement": agreement, "duration": duration}
    constants: dict[str, Any] = {
        "VERDICTS": VERDICTS, "SIGNS": SIGNS, "RUNGS": RUNGS, "OPEN": OPEN, "BIASED_MEANS": BIASED_MEANS,
    }  # fmt: skip
    environment.globals |= constants
    return environment.get_template("report.html.jinja")
