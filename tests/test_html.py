"""report.html stands alone, holds every row, escapes what users wrote, and reads without colours."""

from __future__ import annotations

import re
from base64 import b64decode
from html.parser import HTMLParser
from importlib.resources import files as resources
from pathlib import Path

import pytest

from sdecontrol.claims import Report, Row
from sdecontrol.report import html
from sdecontrol.report.run import Checking, Failure, Picture, Run

NASTY = "<script>alert(\"x\")</script> & 'quoted' {{ 7 * 7 }}"
VOID = {"meta", "img", "input", "link", "br"}
PNG = b"\x89PNG\r\n\x1a\n not really"


class Page(HTMLParser):
    """Elements as (tag, attributes), text, and whether every element that opens is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.marks: list[str] = []
        self.mark = 0  # how many elements are open around the mark that is being read, 0 outside marks
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if (dict(attrs).get("class") or "").startswith("v v-"):
            self.marks.append("")
            self.mark = len(self.open) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"
        if len(self.open) < self.mark:
            self.mark = 0

    def handle_data(self, data: str) -> None:
        if self.mark:
            self.marks[-1] += data
        self.text += data if self.open and self.open[-1] not in ("script", "style") else ""

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in wanted.items()}
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]


def report(claim: str, problem: str, verdict: str, rows: int = 2) -> Report:
    made = [
        Row(claim, problem, "exact", NASTY, 0.25, float("inf"), 1e-12, 13.0, None, verdict, NASTY),
        Row(claim, problem, "monte carlo", "mean", 1.5, 1.0, 0.25, None, 1.0, "holds", "sees 0.1"),
    ]
    mutants = [{"name": "sign", "rejected": True, "by": NASTY}, {"name": "scale", "rejected": False, "by": ""}]
    return Report(claim, "a title", "a source", problem, made[:rows], verdict, NASTY, 0.5, 3, ["none"], [], mutants)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "figure.png").write_bytes(PNG)
    run = Run(["first", "second"], ["here", NASTY], Checking(3, quick=True), fits={"here": NASTY})
    run.reports += [report("first", "here", "holds"), report("second", "here", "violated")]
    run.reports += [report("first", NASTY, "not applicable", rows=0)]
    run.failures.append(Failure("second", NASTY, "ZeroDivisionError: by nothing", f"Traceback {NASTY}"))
    run.figures.append(Picture("figure", "A figure", NASTY))
    run.notes.append(NASTY)
    return run


@pytest.fixture
def page(run: Run, tmp_path: Path) -> Page:
    return Page(html.render(run, tmp_path))


def test_nothing_is_loaded(page: Page, run: Run, tmp_path: Path) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "base")
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:").startswith("data:")
    text = html.render(run, tmp_path)
    assert "@import" not in text and "url(" not in text and "http:" not in text and "https:" not in text
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0]["content"]
    assert policy and policy.startswith("default-src 'none'")
    source = page.all("img")[0]["src"]
    assert source and b64decode(source.removeprefix("data:image/png;base64,")) == PNG


def test_what_users_wrote_is_text(page: Page) -> None:
    assert len(page.all("script")) == 1  # the page's own
    assert page.text.count(NASTY) > 8
    assert NASTY in {attributes.get("data-problem") for attributes in page.all("details", class_="report")}


def test_every_row_and_every_number_is_there(page: Page, run: Run) -> None:
    rows = [(row.rung, row.verdict) for claim in run.ids for r in run.reports if r.claim == claim for row in r.rows]
    assert [(a["data-rung"], a["data-verdict"]) for t, a in page.elements if t == "tr" and "data-rung" in a] == rows
    for text in ("0.25", "inf", "± 1.0e-12", "13.0 digits", "z = +1.00 †", "± 2.5e-01", "Not checked:", "a source"):
        assert text in page.text
    for text in ("Seed 3, quick", "2 claims on 2 problems, 4 comparisons", "sdecontrol", "torch"):
        assert text in page.text


def test_violated_sections_are_open_and_links_lead_to_sections(page: Page) -> None:
    sections = page.all("details", class_="report")
    assert {a["data-verdict"]: "open" in a for a in sections} == {
        "holds": False, "violated": True, "not applicable": False
    }  # fmt: skip
    targets = {a["href"] for a in page.all("a") if (a.get("href") or "").startswith("#r")}
    assert targets == {f"#{a['id']}" for a in sections}
    anchors = {a["href"] for a in page.all("a")} - {"#"}
    assert anchors <= {f"#{a['id']}" for _, a in page.elements if "id" in a}


def test_verdicts_read_without_colour(page: Page) -> None:
    """Every coloured mark holds a symbol and a word."""
    assert (
        len(page.marks) == 3 + 2 + 4 + 3 + 4 + 6
    )  # matrix, attention, table of mistakes, sections, rows, lists of mistakes
    words = "holds|violated|inconclusive|not applicable|caught( 2/2| 1/1)?|missed( 0/2| 0/1)?|failed"
    for mark in page.marks:
        assert re.fullmatch(f"[✓✗?–!] ({words})", mark), mark


def test_wrong_answers_have_a_table(page: Page) -> None:
    text = " ".join(page.text.split())
    assert text.count("caught 2/2") == text.count("caught 1/1") == 1  # "sign": twice under first, once under second
    assert text.count("missed 0/2") == text.count("missed 0/1") == 1
    assert "all2 of 41 of 2" in text


def test_controls_are_accessible(page: Page) -> None:
    buttons = [a for t, a in page.elements if t == "button"]
    filters = [a for a in buttons if "data-verdict" in a or "data-rung" in a]
    assert len(filters) == 4 + 3
    assert all(a["aria-pressed"] == "false" for a in filters)
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert all(a.get("alt") for a in page.all("img"))
    assert page.all("html", lang="en") and page.all("meta", name="viewport")


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_has_contrast_in_light_and_dark() -> None:
    css = (resources("sdecontrol.report") / "templates" / "report.css").read_text()
    light, system, chosen = (colours(block) for block in re.findall(r":root[^{}]*\{([^{}]*)\}", css)[:3])
    assert system == chosen and light.keys() == chosen.keys()
    for theme in (light, chosen):
        for verdict in ("holds", "violated", "inconclusive", "none"):
            assert contrast(theme[verdict], theme[f"{verdict}-ground"]) >= 4.5
        for ground in ("ground", "raised", "sunk"):
            for ink in ("ink", "soft", "link"):
                assert contrast(theme[ink], theme[ground]) >= 4.5
            assert contrast(theme["focus"], theme[ground]) >= 3.0
