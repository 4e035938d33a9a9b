"""What an interrupted run leaves for the next: a file for each pair that is done, named after all that decides it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdecontrol.claims import Report, Row
from sdecontrol.report.atomic import writable_folder, write
from sdecontrol.report.run import Checking, Pair, Result, Results, versions

FOLDER = ".parts"


PACKAGE = Path(__file__).parents[1]


def sources(package: Path = PACKAGE) -> str:
    """A hash of every source file of a package: of the library as it is installed."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class Parts:
    """Finished pairs in OUT/.parts, each written whole; numbers come back as the same bits.

    A part is found again only by the same claim on the same problem (its `fingerprint`, and the `files` that made it)
    with the same seed, thoroughness, versions and sources. Failures are not stored: they may have been the machine's.
    """

    def __init__(self, out: Path, checking: Checking, fingerprints: Mapping[str, str], files: Mapping[str, str]):
        self.folder, self.fingerprints = out / FOLDER, fingerprints
        self.common = {**asdict(checking), "versions": versions(), "sources": sources(), "files": dict(files)}

    def _path(self, pair: Pair) -> Path:
        key = {**self.common, "claim": pair.claim, "problem": pair.problem, "is": self.fingerprints[pair.problem]}
        return self.folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()}.json"

    def kept(self, pairs: Iterable[Pair]) -> list[Result]:
        """The reports of those pairs that an earlier run finished."""
        return [_report(path.read_text()) for path in map(self._path, pairs) if path.exists()]

    def keeping(self, results: Iterable[Result]) -> Results:
        """Store each report before it is passed on."""
        writable_folder(self.folder)
        for result in results:
            if isinstance(result, Report):
                write(self._path(Pair(result.claim, result.problem)), json.dumps(result.to_dict()))
            yield result

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _report(text: str) -> Report:
    fields: dict[str, Any] = json.loads(text)
    return Report(**{**fields, "rows": [Row(**row) for row in fields["rows"]]})
