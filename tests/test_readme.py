"""The README's Python blocks run as they stand, each in a fresh namespace after the ones before it."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_python_blocks_run() -> None:
    assert BLOCKS
    namespace: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), namespace)


def test_first_block_is_short() -> None:
    assert sum(bool(line.strip()) for line in BLOCKS[0].splitlines()) <= 12


def test_links_and_figures_exist() -> None:
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / target).exists(), target
