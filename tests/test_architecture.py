"""Imports point one way, heavy packages stay where they belong, and `import sdecontrol` is light."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sdecontrol"

# A module imports from its own layer or from layers above it in this list, never from below.
LAYERS = [
    ["errors"],
    ["estimate", "noise", "time"],
    ["schedules", "rewards", "laws", "labels"],
    ["models", "processes"],
    ["kernels", "kernels_flow", "kernels_mixture", "kernels_multistep", "orders"],
    ["step", "stepper"],
    ["controls"],
    ["path", "girsanov", "simulate", "torchsde_adapter"],
    ["exact", "moments", "novikov", "path_divergence"],
    ["problems.base"],
    ["evaluate"],
    ["value"],
    ["guidance", "steering"],
    ["data", "problems"],
    ["methods"],
    ["claims"],
    ["testing"],
    ["report"],
    ["finetune"],
    ["conditioning"],
    ["backends"],
    ["cli", "__main__", ""],
]

# Third-party packages that only these modules may import, at the top or inside a function.
OWNED = {
    "matplotlib": ("report",),
    "jinja2": ("report",),
    "rich": ("report", "cli"),
    "typer": ("cli",),
    "sklearn": (),  # through importlib in `data`, so that the error says what to install
    "torchsde": ("torchsde_adapter", "claims", "finetune"),
    "hypothesis": ("testing",),
    "diffusers": ("backends",),
    "transformers": ("backends",),
    "peft": ("backends",),
}


def modules() -> list[tuple[str, ast.Module]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        name = name.removesuffix("__init__").removesuffix(".")
        found.append((name, ast.parse(path.read_text())))
    return found


def imported(node: ast.AST) -> Iterator[str]:
    """Dotted names that an import statement loads, `from a import b` as both a and a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import_time(tree: ast.Module) -> Iterator[str]:
    """Imports that run when the module is imported: not those in functions or under TYPE_CHECKING."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield from imported(node)
        todo += list(ast.iter_child_nodes(node))


def anywhere(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        yield from imported(node)


def layer(name: str) -> int:
    """Index of the most specific entry of LAYERS that holds the module."""
    while True:
        for index, names in enumerate(LAYERS):
            if name in names:
                return index
        assert "." in name, f"module {name!r} has no layer: add it to LAYERS"
        name = name.rsplit(".", 1)[0]


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


MODULES = modules()
NAMES = [name for name, _ in MODULES]


def own_imports(tree: ast.Module) -> Iterator[str]:
    """Modules of this package that the module loads when it is imported."""
    for target in at_import_time(tree):
        if is_within(target, "sdecontrol"):
            inner = target.removeprefix("sdecontrol").removeprefix(".")
            yield inner if inner in NAMES else inner.rpartition(".")[0]


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=NAMES)
def test_imports_point_one_way(name: str, tree: ast.Module) -> None:
    for inner in own_imports(tree):
        gathers = is_within(inner, name)  # a package's __init__ gathers its own modules
        assert gathers or layer(inner) <= layer(name), f"{name} imports {inner}, which stands below it"


def test_imports_have_no_cycle() -> None:
    graph = {name: set(own_imports(tree)) - {name} for name, tree in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=NAMES)
def test_heavy_packages_have_owners(name: str, tree: ast.Module) -> None:
    for target in anywhere(tree):
        for package, owners in OWNED.items():
            if is_within(target, package):
                assert any(is_within(name, owner) for owner in owners), f"{name} imports {target}"


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=NAMES)
def test_theory_does_not_know_the_backends(name: str, tree: ast.Module) -> None:
    if name.split(".")[0] not in ("backends", "cli"):
        assert not [target for target in anywhere(tree) if is_within(target, "sdecontrol.backends")]


@pytest.mark.parametrize("module", ["sdecontrol", "sdecontrol.cli"])
def test_import_is_light(module: str) -> None:
    heavy = ("matplotlib", "sklearn", "diffusers", "transformers", "peft", "jax", "torchsde")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
