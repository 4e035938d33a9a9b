"""Python source of problems, with literal numbers, and of the functions that judge them."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from functools import singledispatch
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

from sdecontrol.controls import AffineControl
from sdecontrol.errors import BadInput
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Dirac, DiscreteLaw, Gaussian, GaussianMixture, Isotropic, Subspace
from sdecontrol.models import ExactScore
from sdecontrol.problems.base import Discretised, Problem
from sdecontrol.processes import Affine, DiffusionProcess, ReverseProcess
from sdecontrol.rewards import Quadratic, Step
from sdecontrol.schedules import VE, VP, Cosine, SubVP
from sdecontrol.testing.statements import Statement, as_statement
from sdecontrol.testing.tilts import StaticTilt
from sdecontrol.time import ExplicitGrid, GeometricGrid, LogSNRGrid, UniformGrid


_HOMES_OF_BUILTINS = ("math", "numpy", "scipy.special", "torch")  # functions in C that do not say where they live


@singledispatch
def literal(value: Any) -> str:
    """Python source that makes `value` again, in terms of `sc`; `literal.register` teaches it your own classes.

    Accuracy: numbers are written in full; matrices that a law keeps by their spectrum come back to rounding.
    Raises: BadInput for values it has not been taught.
    """
    raise BadInput(
        f"saw a {type(value).__name__}; wanted a value whose source is known. "
        "Register it: @sdecontrol.testing.literal.register."
    )


def _call(name: str, *positional: Any, **named: Any) -> str:
    parts = [literal(value) for value in positional]
    parts += [f"{key}={literal(value)}" for key, value in named.items() if value is not None]
    return f"{name}({', '.join(parts)})"


@literal.register(bool | int | str | None)
def _(value: Any) -> str:
    return repr(value)


@literal.register(float | np.floating | np.integer)
def _(value: Any) -> str:
    number = value.item() if isinstance(value, np.generic) else value
    return repr(number) if math.isfinite(number) else f'float("{number}")'


@literal.register(list | tuple)
def _(value: Any) -> str:
    inner = ", ".join(literal(item) for item in value)
    return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"


@literal.register(np.ndarray | torch.Tensor)
def _(value: Any) -> str:
    return literal(value.tolist())


@literal.register
def _(value: StaticTilt) -> str:
    return f"sc.testing.{value!r}"


@literal.register(VP | VE | SubVP | Cosine | Kernel)
def _(value: Any) -> str:
    return f"sc.{value!r}"


@literal.register
def _(value: Gaussian) -> str:
    return _call("sc.Gaussian", value.mean, value.eigenvalues if value.diagonal else value.covariance)


@literal.register
def _(value: GaussianMixture) -> str:
    return _call("sc.GaussianMixture", value.weights, value.means, value.covariances)


@literal.register
def _(value: Subspace) -> str:
    return _call("sc.Subspace", value.basis, value.latent, offset=value.offset)


@literal.register
def _(value: Isotropic) -> str:
    return _call("sc.Isotropic", value.event_shape, value.std)


@literal.register
def _(value: Dirac) -> str:
    return _call("sc.Dirac", value.mean)


@literal.register
def _(value: DiscreteLaw) -> str:
    return _call("sc.laws.DiscreteLaw", value.points, value.weights)


@literal.register
def _(value: Quadratic) -> str:
    if value.is_linear and not value.constant:
        return _call("sc.Linear", value.linear)
    return _call("sc.Quadratic", linear=value.linear, curvature=value.curvature, constant=value.constant)


@literal.register
def _(value: Step) -> str:
    return _call("sc.Step", value.direction, value.threshold, value.height)


@literal.register
def _(value: AffineControl) -> str:
    (gain, offset), later = value.affine_at(0.0), value.affine_at(0.5)
    if not (torch.equal(gain, later[0]) and torch.equal(offset, later[1])):
        raise BadInput("saw an affine control that changes in time; wanted constants. Write its source by hand.")
    return _call("sc.AffineControl", gain, offset)


@literal.register
def _(value: UniformGrid) -> str:
    return _call("sc.TimeGrid.uniform", value.steps)


@literal.register
def _(value: GeometricGrid) -> str:
    return _call("sc.TimeGrid.geometric", value.steps, s_min=value.s_min, close=value.close)


@literal.register
def _(value: LogSNRGrid) -> str:
    return _call("sc.TimeGrid.log_snr", value.steps, s_min=value.s_min, close=value.close)


@literal.register
def _(value: ExplicitGrid) -> str:
    source = _call("sc.TimeGrid.explicit", list(value.times))
    return source if value.parts == 1 else f"{source}.refine({value.parts})"


@literal.register
def _(value: ReverseProcess) -> str:
    if not isinstance(value.model, ExactScore):
        raise BadInput("saw a reverse process without an exact score; wanted one. Write its source by hand.")
    initial = None if value.initial == "standard" else value.initial
    return _call("sc.ReverseProcess", value.schedule, value.model.law, initial=initial)


@literal.register
def _(value: DiffusionProcess) -> str:
    return _call("sc.DiffusionProcess", value.drift, value.amplitude(0.0), value.initial, value.horizon)


@literal.register
def _(value: Affine) -> str:
    return _call("sc.Affine", *value.at(0.0))


@literal.register
def _(value: Problem) -> str:
    running = value.running_reward
    return _call("sc.Problem", value.process, value.reward, temperature=value.temperature, running_reward=running)


@literal.register
def _(value: Discretised) -> str:
    return f"{literal(value.problem)}.discretise(kernel={literal(value.kernel)}, grid={literal(value.grid)})"


# ---------------------------------------------------------------------- functions


def snippet(statement: Statement | Callable[[Any], Any], problem: Any) -> str:
    """A runnable file: the statement's functions with what they use, the problem in literal numbers, and every part.

    Functions come with the names that they use: imports, helper functions, numbers. What cannot be written is left
    to the reader with a comment.
    """
    statement, written = as_statement(statement), Definitions()
    called = {part: written.add_part(part, function) for part, function in statement.functions.items()}
    made = written.source(problem)
    values = [f"{part} = float({name}(problem))" for part, name in called.items()]
    shown = ", ".join(f"{part} = {{{part}!r}}" for part in called)
    relation = statement.relation(*called)
    report = f'print(f"{shown}, {relation}: {{{relation}}}")'
    body = "\n\n\n".join([*written.functions, "\n".join([f"problem = {made}", *values, report])])
    testing = ["import sdecontrol.testing"] if "sc.testing." in body else []
    imports = ["from __future__ import annotations\n", "import sdecontrol as sc", *testing, *written.imports]
    constants = "\n".join(written.constants)
    return "\n".join(dict.fromkeys(imports)) + ("\n\n" + constants if constants else "") + f"\n\n\n{body}\n"


class Definitions:
    """The imports, constants and functions of a snippet, in an order in which they run."""

    def __init__(self) -> None:
        self.imports: list[str] = []
        self.constants: list[str] = []
        self.functions: list[str] = []
        self._known: dict[str, Any] = {}

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
            self.imports.append(found)
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
        known = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
        for used in _free_names(node):
            if used in known and known[used] is not function:
                self.add(used, known[used])
        self.functions.append(f"{name} = {text}" if isinstance(node, ast.Lambda) else text)


def _import_of(name: str, value: Any) -> str | None:
    """The import that binds `name` to an installed module, class or function; None where the value is the user's own."""
    if isinstance(value, ModuleType):
        plain = value.__name__
        return f"import {plain}" if plain == name else f"import {plain} as {name}"
    module, own = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(own, str):
        return None
    homes = (module.partition(".")[0], module) if isinstance(module, str) else _HOMES_OF_BUILTINS
    public = next((home for home in homes if _installed(home) and _has(home, own, value)), None)
    return public and f"from {public} import {own}" + ("" if own == name else f" as {name}")


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
    annotations = [getattr(n, field) for n in ast.walk(node) for field in ("annotation", "returns") if hasattr(n, field)]
    silent = {id(n) for a in annotations if a is not None for n in ast.walk(a)}
    for name in ast.walk(node):
        if isinstance(name, ast.Name) and name.id not in bound and id(name) not in silent:
            yield name.id
