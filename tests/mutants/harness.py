"""Plant one bug in a copy of the package and see whether `sdecontrol verify --quick` turns red.

The copy lies in a temporary folder that is put first on PYTHONPATH; that it is what runs is seen from the byte code
which Python leaves beside the edited source. A bug is caught only when the exit code is not 0 and the report holds
violated rows, or checks that failed with an error: a run that stops before any check, or takes too long, is no catch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sdecontrol.report.atomic import write
from sdecontrol.report.parts import sources

from .planted import Bug, Hint

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sdecontrol"
TIME_LIMIT = 300.0  # seconds of one run
VIOLATED, FAILED, GREEN = "violated", "check failed", "green"
TIMEOUT, STOPPED = "time limit", "stopped before any check"
TEST_FAILED = "test failed"


@dataclass(frozen=True)
class Outcome:
    """What a run said; claim, problem, rung and quantity are those of the first row, or check, that turned red."""

    command: str
    exit_code: int | None
    verdict: str
    claim: str = ""
    problem: str = ""
    rung: str = ""
    quantity: str = ""
    detail: str = ""
    violated: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def caught(self) -> bool:
        return self.exit_code not in (0, None) and self.verdict in (VIOLATED, FAILED, TEST_FAILED)


class Workshop:
    """A copy of the package in which bugs are planted one at a time; a context manager that removes it."""

    def __init__(self, package: Path = PACKAGE):
        self._folder = Path(tempfile.mkdtemp(prefix="planted-"))
        self.copy = self._folder / "sdecontrol"
        shutil.copytree(package, self.copy, ignore=shutil.ignore_patterns("__pycache__"))
        self.fingerprint = sources(self.copy)[:16]

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def verify(self, bug: Bug | None = None, hint: Hint | None = None) -> Outcome:
        """`verify --quick` on the copy with the bug in it: all of it, or the claims and the problem of a hint.

        Raises: ValueError when the bug does not apply; RuntimeError when it was not the copy that ran.
        """
        return self._with(bug, lambda: self._run(hint))

    def test(self, bug: Bug) -> Outcome:
        """The bug's test on the copy with the bug in it. Raises as `verify`."""
        return self._with(bug, lambda: self._pytest(bug.test))

    def _with(self, bug: Bug | None, run: Callable[[], Outcome]) -> Outcome:
        target = self.copy / (bug.file if bug else "__init__.py")
        clean = target.read_text()
        byte_code = Path(_cached(target))
        byte_code.unlink(missing_ok=True)
        try:
            if bug:
                target.write_text(bug.edited(clean))
            outcome = run()
            if not byte_code.exists():
                raise RuntimeError(f"{target.name} of the copy was not imported: {outcome}")
            return outcome
        finally:
            target.write_text(clean)
            byte_code.unlink(missing_ok=True)

    def _run(self, hint: Hint | None) -> Outcome:
        claims, problem = hint or ((), "")
        arguments = ["verify", *claims, *(["--problem", problem] if problem else []), "--quick", "--json"]
        return self._python(" ".join(["sdecontrol", *arguments]), ["sdecontrol", *arguments], _read)

    def _pytest(self, test: str) -> Outcome:
        # from the folder of the copy: `python -m pytest` puts where it starts in front of everything else
        arguments = ["pytest", "-q", "-x", "-p", "no:cacheprovider", f"--rootdir={ROOT}", str(ROOT / "tests" / test)]
        return self._python(f"pytest tests/{test}", arguments, _read_pytest)

    def _python(self, command: str, arguments: list[str], read: Callable[..., Outcome]) -> Outcome:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment |= {"PYTHONPATH": str(self._folder), "OMP_NUM_THREADS": "1"}
        start = time.perf_counter()
        try:
            done = subprocess.run([sys.executable, "-m", *arguments], cwd=self._folder, env=environment,
                                  capture_output=True, text=True, timeout=TIME_LIMIT)  # fmt: skip
        except subprocess.TimeoutExpired:
            return Outcome(command, None, TIMEOUT, seconds=round(time.perf_counter() - start, 1))
        return read(command, done, round(time.perf_counter() - start, 1))


def _cached(source: Path) -> str:
    """Where Python keeps the byte code of a source when nothing redirects it."""
    return str(source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc")


def _read(command: str, done: subprocess.CompletedProcess[str], seconds: float) -> Outcome:
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        said = (done.stderr.strip().splitlines() or [""])[-1]
        return Outcome(command, done.returncode, STOPPED, detail=said[:300], seconds=seconds)
    red = [row for r in report["reports"] for row in r["rows"] if row["verdict"] == "violated"]
    failures = report["failures"]
    found = Outcome(command, done.returncode, GREEN, violated=len(red), failed=len(failures), seconds=seconds)
    if red:
        first = red[0]
        detail = f"{first['left']:.6g} against {first['right']:.6g}, error {first['error']:.2g}"
        where = {name: first[name] for name in ("claim", "problem", "rung", "quantity")}
        return replace(found, verdict=VIOLATED, detail=detail, **where)
    if failures:
        first = failures[0]
        where = {name: first[name] for name in ("claim", "problem")}
        return replace(found, verdict=FAILED, detail=first["error"][:300], **where)
    return found


def _read_pytest(command: str, done: subprocess.CompletedProcess[str], seconds: float) -> Outcome:
    said = [line[1:].strip() for line in done.stdout.splitlines() if line.startswith("E  ")]
    verdict = {0: GREEN, 1: TEST_FAILED}.get(done.returncode, STOPPED)
    return Outcome(command, done.returncode, verdict, detail=(said or [""])[0][:300], seconds=seconds)


def hunt(shop: Workshop, bug: Bug) -> Outcome:
    """The hint first; all of `verify --quick` where that stays green. A test, where the bug names one."""
    if bug.test:
        return shop.test(bug)
    outcome = shop.verify(bug, bug.hint)
    return outcome if outcome.caught else shop.verify(bug)


Progress = Callable[[str, int, int], None]


def hunt_all(bugs: Iterable[Bug], results: Path, progress: Progress, package: Path = PACKAGE) -> dict[str, Any]:
    """The clean copy, then every bug; results are kept after each, and those of the same sources are not run again."""
    bugs = list(bugs)
    with Workshop(package) as shop:
        table = json.loads(results.read_text()) if results.exists() else {}
        if table.get("package") != shop.fingerprint:
            table = {"package": shop.fingerprint, "bugs": {}}
        if "clean" not in table:
            progress("clean", 0, len(bugs))
            table["clean"] = asdict(shop.verify())
            _keep(results, table)
        for i, bug in enumerate(bugs):
            progress(bug.name, i, len(bugs))
            known = table["bugs"].get(bug.name)
            if known is None or known["edit"] != edit_of(bug):
                outcome = hunt(shop, bug)
                table["bugs"][bug.name] = {"edit": edit_of(bug), "caught": outcome.caught} | asdict(outcome)
                _keep(results, table)
        progress("done", len(bugs), len(bugs))
        table["bugs"] = {bug.name: table["bugs"][bug.name] for bug in bugs}
        _keep(results, table)
    return table


def _keep(results: Path, table: dict[str, Any]) -> None:
    write(results, json.dumps(table, indent=1) + "\n")


def edit_of(bug: Bug) -> str:
    """A hash of what a result depends on beside the library."""
    return hashlib.sha256(f"{bug.file}\0{bug.old}\0{bug.new}\0{bug.hint}\0{bug.test}".encode()).hexdigest()[:16]
