"""The README's Python blocks run as they stand, one after the other, and the documents name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_python_blocks_run() -> None:
    assert BLOCKS
    namespace: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)


@pytest.mark.parametrize("page", ["conditioning", "digits", "guidance", "values"])
def test_python_blocks_of_a_page_run(page: str) -> None:
    namespace: dict[str, object] = {}
    for block in re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE
    ):
        exec(compile(block, f"{page}.md", "exec"), namespace)


def test_first_block_is_short() -> None:
    assert sum(bool(line.strip()) for line in BLOCKS[0].splitlines()) <= 12


def test_links_and_figures_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "sdecontrol").iterdir():
        name = f"{path.name}/" if path.is_dir() else path.name
        if not name.startswith("_") and path.suffix in ("", ".py"):
            assert f" {name}" in text, name
