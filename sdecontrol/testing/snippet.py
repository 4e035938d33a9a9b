"""A runnable file that shows a statement at one problem: its functions, what they use, the problem in numbers."""

from __future__ import annotations

import ast
import importlib
import inspect
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from sdecontrol.errors import BadInput
from sdecontrol.testing.literals import literal
from sdecontrol.testing.statements import Statement, as_statement

_HOMES_OF_BUILTINS = ("math", "numpy", "scipy.special", "torch")  # functions in C that do not say where they live


def snippet(statement: Statement | Callable[[Any], Any], problem: Any) -> str:
    """A runnable file: the statement's functions with what they use, the problem in literal numbers, and every part.

    Functions come with the names that they use: imports, helper functions, numbers. What cannot be written is left
    to the reader with a comment.
    """
    statement, written = as_statement(statement), Definitions()
    called = {part: written.add_part(part, function) for part, function in statement.functions.items()}
    values = {part: f"{part}_value" for part in called}
    relation = statement.relation(*values.values())
    shown = [f"{part} = {{{value}}}" for part, value in values.items()]
    main = [
        f"problem = {written.source(problem)}",
        *(f"{values[part]} = float({function}(problem))" for part, function in called.items()),
        f'print(f"{", ".join(shown)}; {statement.relation(*called)} is {{{relation}}}")',
    ]
    return written.file(main)


class Definitions:
    """The imports, constants and functions of a snippet, in an order in which they run."""

    def __init__(self) -> None:
        self.imports: dict[str, set[str]] = {}  # module -> names, none for the module itself
        self.constants: list[str] = []
        self.functions: list[str] = []
        self._known: dict[str, Any] = {}
        self._annotated = False

    def file(self, main: list[str]) -> str:
        """The whole file, ending with the statements of `main`."""
        body = "\n\n\n".join([*self.functions, "\n".join(main)])
        header = ["from __future__ import annotations\n"] if self._annotated else []
        header += ["import sdecontrol as sc", *(["import sdecontrol.testing"] if "sc.testing." in body else [])]
        header += [f"from {m} import {', '.join(sorted(names))}" if names else m for m, names in self.imports.items()]
        return "\n".join(header) + "\n\n" + "".join(f"{line}\n" for line in self.constants) + f"\n{body}\n"

    def source(self, value: Any) -> str:
        try:
            return literal(value)
        except BadInput as reason:
            return f"...  # {value!r}: {reason}".replace("\n", " ")

    def add_part(self, part: str, function: Any) -> str:
        """Define a part of the statement; returns the name under which it can be called."""
        name = getattr(function, "__name__", "<lambda>")
        name = name if name.isidentifier() and name not in self._known else part
        self.add(name, function)
        return name

    def add(self, name: str, value: Any) -> None:
        """Define `name` as `value`, after everything that it needs."""
        if name in self._known or name == "sc":
            return
        self._known[name] = value
        found = _import_of(name, value)
        if found is not None:
            self.imports.setdefault(found[0], set()).update(found[1:])
        elif isinstance(value, FunctionType):
            self._add_function(name, value)
        else:
            self.constants.append(f"{name} = {self.source(value)}")

    def _add_function(self, name: str, function: FunctionType) -> None:
        try:
            node, text = _definition(function)
        except (OSError, TypeError, SyntaxError):
            self.functions.append(f"{name} = ...  # {function!r}: its source could not be read")
            return
        self._annotated |= bool(_annotations(node))
        known = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
        for used in _free_names(node):
            if used in known and known[used] is not function:
                self.add(used, known[used])
        self.functions.append(f"{name} = {text}" if isinstance(node, ast.Lambda) else text)


def _import_of(name: str, value: Any) -> tuple[str, ...] | None:
    """What binds `name` to an installed module, class or function: an import statement, or a module and what to take
    from it. None where the value is the user's own."""
    if isinstance(value, ModuleType):
        plain = value.__name__
        return (f"import {plain}" if plain == name else f"import {plain} as {name}",)
    module, own = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(own, str):
        return None
    homes = (module.partition(".")[0], module) if isinstance(module, str) else _HOMES_OF_BUILTINS
    public = next((home for home in homes if _installed(home) and _has(home, own, value)), None)
    return None if public is None else (public, own if own == name else f"{own} as {name}")


def _has(module: str, name: str, value: Any) -> bool:
    return getattr(importlib.import_module(module), name, None) is value


def _installed(module: str) -> bool:
    """Whether the module is this library's, the standard library's or a package's, and not the user's own file."""
    if module == "__main__":
        return False
    try:
        file = getattr(importlib.import_module(module), "__file__", None)
    except ImportError:
        return False
    places = [sysconfig.get_path(key) for key in ("stdlib", "platlib", "purelib")]
    own = module.partition(".")[0] == "sdecontrol"
    return own or file is None or any(Path(file).is_relative_to(place) for place in places)


def _definition(function: FunctionType) -> tuple[ast.FunctionDef | ast.Lambda, str]:
    """The node and source of a function; of a lambda, the expression alone. Raises OSError where there is none."""
    lines = textwrap.dedent("".join(inspect.getsourcelines(function)[0]))
    if function.__name__ != "<lambda>":
        node = ast.parse(lines).body[0]
        if not isinstance(node, ast.FunctionDef):
            raise SyntaxError(f"{function!r} is not a plain function")
        return node, lines.rstrip()
    inside = [p for p in function.__code__.co_positions() if p[0] is not None and p[3]]
    start, end = min((p[0], p[2]) for p in inside), max((p[1], p[3]) for p in inside)
    lambdas = [n for n in ast.walk(_tree_of(function)) if isinstance(n, ast.Lambda)]
    around = [n for n in lambdas if _start(n.body) <= start and end <= _end(n.body)]
    if not around:
        raise SyntaxError(f"{function!r} was not found in its file")
    innermost = max(around, key=lambda n: _start(n.body))
    return innermost, ast.unparse(innermost)


def _tree_of(function: FunctionType) -> ast.Module:
    return ast.parse("".join(inspect.findsource(function)[0]))


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or node.lineno, node.end_col_offset or node.col_offset


def _free_names(node: ast.AST) -> Iterator[str]:
    """Names that the code reads and does not bind itself, annotations left out."""
    bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    silent = {id(n) for annotation in _annotations(node) for n in ast.walk(annotation)}
    for name in ast.walk(node):
        if isinstance(name, ast.Name) and name.id not in bound and id(name) not in silent:
            yield name.id


def _annotations(node: ast.AST) -> list[ast.AST]:
    found = [getattr(n, field, None) for n in ast.walk(node) for field in ("annotation", "returns")]
    return [annotation for annotation in found if annotation is not None]
