"""Seconds to draw n samples whose law is within 1e-2 and 1e-3 of the data law, against torchsde, diffrax and diffusers.

Everyone samples the same data laws under the same VP schedule from N(0, I) with the exact score, so the prior's
mismatch counts for all alike. The error is W2 to the data law for Gaussians, exact from the sampler's responses to
impulses in its normals, and sliced W2 for mixtures, both divided by sqrt(trace of the covariance). Where the error
is sampled it has a standard error (benchmarks/solvers/law_error.py): by scrambled Sobol points for samplers whose
normals can be given, on noise shared with a fine solution where the solver takes Brownian increments, else from plain
samples. An error below two standard errors of its square is below resolution.

This library competes twice: with a score that is only a function, as the others have it, and with the law known.

Every contender is timed once; those of a family that are the fastest to a target are then timed in rounds in which
they all take turns, at one thread and at all of them, and the better median counts. Compilation is not timed. The time
to a target takes, for this library, only errors below it with two standard errors to spare, and for the others all
that are not above it by two: the ratios are lower bounds.

    python -m benchmarks.accuracy [--quick] [--rounds 5] [--problem NAME] [--out FILE] [--shortlist FILE]

With --shortlist the other libraries' contenders are those that were among the fastest to a target in an earlier
result, and their errors, which depend on nothing that has changed, are taken from there. A problem that the earlier
result lacks takes the list of the one named in RELATED, and measures the errors.

Writes benchmarks/results/accuracy.json after each problem. An interrupted run is taken up at the problem where it
stopped; a finished one starts anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.solvers import diffrax_solvers, diffusers_schedulers, ours, scipy_flow, torchsde_solvers
from benchmarks.solvers.case import Case, Contender, Coupling, Impulses, cases, coupling, quasi_normals, spectrum
from benchmarks.solvers.law_error import SpectralFeatures, as_distance, squared_distance
from sdecontrol.report.atomic import write

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
FAMILIES = (ours, torchsde_solvers, diffrax_solvers, diffusers_schedulers, scipy_flow)
OURS = (ours.FAMILY, ours.CLOSED)
WANTED = {"torchsde": 20.0, "diffrax": 1.0, "diffusers": 1.0, "scipy": 1.0}
PACKAGES = ("sdecontrol", "torch", "torchsde", "jax", "diffrax", "diffusers", "scipy", "numpy")
THREADS = torch.get_num_threads()  # all cores, or what OMP_NUM_THREADS says
BATCHES = 8  # of coupled samples
FIRST = 3  # batches of plain samples, enough to see that an error is far from every target
COUPLED_ELEMENTS = 2**15  # normals a step in a coupled batch
FINALISTS = 3  # contenders of a family and target that are timed in rounds
RELATED = {"digits-mixture": "digits-gaussian"}
USELESS = 5.0  # an error this many times the coarsest target: no more samples are taken

Record = dict[str, Any]


class Judge:
    """The law errors of one case by the most precise route that a contender offers."""

    def __init__(self, case: Case):
        self.case, self.target = case, case.features.target
        self._couplings: list[Coupling] = []

    def error(self, contender: Contender) -> Record:
        exact = self._exact(contender)
        if exact is not None:
            error = float(np.linalg.norm(exact - self.target))
            return {"error": error, "stderr": 0.0, "low": error, "high": error, "resolved": True, "route": "exact"}
        route, gaps = self._sampled(contender)
        found = as_distance(squared_distance(gaps))
        return found | {"resolved": found["low"] > 0, "route": f"{route}, {len(gaps)} batches"}

    def _exact(self, contender: Contender) -> np.ndarray | None:
        """Features of the exact terminal law, or None where only samples tell."""
        if not isinstance(self.case.features, SpectralFeatures):
            return None
        if contender.law is not None:
            return self.case.features.exact(*contender.law())
        if contender.probe is None:
            return None
        vectors = spectrum(self.case.law)[1]
        counter = Impulses(vectors, 0)
        contender.probe(counter)
        impulses = Impulses(vectors, counter.drawn)
        return self.case.features.exact(*impulses.read(contender.probe(impulses)))

    def _sampled(self, contender: Contender) -> tuple[str, np.ndarray]:
        """(route, features minus target (batches, m)). Plain samples stop far from a target and go on near one."""
        case, of = self.case, self.case.features.of
        few, many = case.batches
        if contender.push is not None:
            dim = case.dim * (1 + contender.draws)
            starts = (quasi_normals(case.paths, dim, seed) for seed in range(few))
            return "Sobol points", np.stack([of(contender.push(start)) for start in starts]) - self.target
        if contender.coupled is not None:
            pairs = [(of(contender.coupled(c.start, c.increments)), c.features) for c in self.couplings()]
            return "fine solution on the same noise", np.stack([found - fine for found, fine in pairs])
        gaps: list[np.ndarray] = []
        for count in (FIRST, few) if contender.slow else (FIRST, few, many):
            seeds = range(1 + len(gaps), 1 + count)
            gaps += [of(contender.sample(case.paths, seed)) - self.target for seed in seeds]
            low = as_distance(squared_distance(np.stack(gaps)))["low"]
            if low > USELESS * case.targets[0] or (count == few and low > 2 * case.targets[-1]):
                break
        return "plain samples", np.stack(gaps)

    def couplings(self) -> list[Coupling]:
        if not self._couplings:
            n = min(self.case.paths, COUPLED_ELEMENTS // self.case.dim)
            self._couplings = [coupling(self.case, n, seed) for seed in range(BATCHES)]
        return self._couplings


def clock(case: Case, contender: Contender, threads: int, seed: int) -> tuple[float, float]:
    """(seconds by the wall clock, seconds of processor time over all threads) of one run."""
    torch.set_num_threads(threads)
    started, busy = time.perf_counter(), time.process_time()
    contender.sample(case.paths, seed)
    return time.perf_counter() - started, time.process_time() - busy


def key_of(record: Record) -> str:
    """`Contender.key` of the contender that a record is about."""
    return " | ".join(str(record[name]) for name in ("family", "solver", "grid", "steps"))


def shortlist(case: Case, earlier: Record) -> dict[str, Record]:
    """Errors by key of the other libraries' finalists in an earlier result; empty where it is a related problem."""
    records = earlier.get(case.name, earlier.get(RELATED.get(case.name, ""), {})).get("records", [])
    chosen = [record for record in finalists(case, records) if record["family"] in WANTED]
    names = ("error", "stderr", "low", "high", "resolved", "route") if case.name in earlier else ()
    return {key_of(record): {name: record[name] for name in names} for record in chosen}


def measure(case: Case, rounds: int, listed: dict[str, Record] | None = None) -> list[Record]:
    """Error, calls and seconds of every contender of one case, or of ours and those listed."""
    contenders = [contender for family in FAMILIES for contender in family.contenders(case)]
    if listed:
        contenders = [c for c in contenders if c.family in OURS or c.key in listed]
    judge, records = Judge(case), []
    for contender in contenders:
        torch.set_num_threads(THREADS)
        error = (listed or {}).get(contender.key) or judge.error(contender)
        contender.sample(case.paths, 0)  # warm
        choices = sorted({1, THREADS}) if contender.threads else [THREADS]
        seconds = {threads: [clock(case, contender, threads, 1)] for threads in choices}
        records.append({"family": contender.family, "solver": contender.solver, "grid": contender.grid,
                        "steps": contender.steps, "evaluations": contender.calls(), "seconds": seconds,
                        **error})  # fmt: skip
        _summarise(records[-1])
    chosen = [k for k, record in enumerate(records) if any(record is r for r in finalists(case, records))]
    for turn in range(1, rounds):
        for k in chosen:
            for threads, found in records[k]["seconds"].items():
                found.append(clock(case, contenders[k], threads, 1 + turn))
    for k in chosen:
        _summarise(records[k])
    return records


def _summarise(record: Record) -> None:
    """The medians at the better thread count, of the wall clock and of the processor."""
    medians = {threads: statistics.median(wall for wall, _ in found) for threads, found in record["seconds"].items()}
    record["threads"] = min(medians, key=lambda threads: medians[threads])
    record["median"], record["rounds"] = medians[record["threads"]], len(record["seconds"][record["threads"]])
    record["processor"] = min(statistics.median(cpu for _, cpu in found) for found in record["seconds"].values())


def finalists(case: Case, records: list[Record]) -> list[Record]:
    """Of each family the few that look fastest to each target."""
    chosen = []
    for target in case.targets:
        for family in (*OURS, *WANTED):
            chosen += sorted(reaching(records, family, target), key=lambda r: r["median"])[:FINALISTS]
    return chosen


def reaching(records: list[Record], family: str, target: float) -> list[Record]:
    """The records that reach the target: surely for this library, possibly for any other."""
    side = "high" if family in OURS else "low"
    return [r for r in records if r["family"] == family and r[side] <= target]


def fastest(records: list[Record], family: str, target: float) -> Record | None:
    """The fastest of those; a finalist, whose time is a median, before one that was timed once."""
    reached = reaching(records, family, target)
    return min(reached, key=lambda r: (-r["rounds"], r["median"]), default=None)


def verdicts(case: Case, records: list[Record]) -> list[Record]:
    """For each target and family: its fastest way there, and the ratios to both of this library's."""
    found = []
    for target in case.targets:
        bests = {family: fastest(records, family, target) for family in OURS}
        for family in (*OURS, *WANTED):
            other = fastest(records, family, target)
            ratios = {ours: other["median"] / best["median"] if other and best else None
                      for ours, best in bests.items()}  # fmt: skip
            found.append({"target": target, "family": family, "ratio": ratios[OURS[0]], "wanted": WANTED.get(family),
                          "ratio_law_known": ratios[OURS[1]],
                          "ratio_processor": _processor_ratio(records, family, target),
                          "seconds": other and other["median"], "evaluations": other and other["evaluations"],
                          "solver": other and name_of(other)})  # fmt: skip
    return found


def _processor_ratio(records: list[Record], family: str, target: float) -> float | None:
    """The same ratio of processor seconds, which a busy machine stretches less: each side at its own least."""
    least = [min((r["processor"] for r in reaching(records, f, target)), default=None) for f in (family, OURS[0])]
    return least[0] / least[1] if least[0] and least[1] else None


def name_of(record: Record) -> str:
    steps = f", {record['steps']} steps" if record["steps"] else ""
    return f"{record['solver']}, {record['grid']}{steps}"


def shown(record: Record) -> str:
    if not record["resolved"]:
        return f"below resolution, {record['high']:.0e}"
    return f"{record['error']:.1e}" + (f" ± {record['stderr']:.0e}" if record["stderr"] else "")


def report(console: Console, case: Case, records: list[Record], found: list[Record]) -> None:
    front = pareto(records)
    table = Table("contender", "calls", "error", "median s", "rounds", title=f"{case.title}, n = {case.paths}")
    for record in front:
        table.add_row(f"{record['family']}: {name_of(record)}", str(record["evaluations"]), shown(record),
                      f"{record['median']:.4f}", str(record["rounds"]))  # fmt: skip
    console.print(table)
    for row in found:
        seconds = f"{row['seconds']:.4f} s, {row['solver']}" if row["seconds"] else "not reached by any that was tried"
        known = f" ({row['ratio_law_known']:.1f}x with the law known)" if row["ratio_law_known"] else ""
        ratio = f"; {row['ratio']:.1f}x ours, wanted {row['wanted']:g}x" if row["ratio"] and row["wanted"] else ""
        ratio += known if row["wanted"] else ""
        ratio += f", processor {row['ratio_processor']:.1f}x" if row["ratio_processor"] and row["wanted"] else ""
        console.print(f"{row['target']:g}  {row['family']}: {seconds}{ratio}")


def pareto(records: list[Record]) -> list[Record]:
    """Of each family the records that no other of it beats in both error and time."""
    front = []
    for family in (*OURS, *WANTED):
        best = math.inf
        for record in sorted((r for r in records if r["family"] == family), key=lambda r: r["median"]):
            if max(record["error"], record["stderr"]) < best:
                best = max(record["error"], record["stderr"])
                front.append(record)
    return front


def fingerprint() -> str:
    """Of the code and the versions that a result depends on."""
    root = Path(__file__).parents[1]
    sources = [Path(__file__), *sorted((root / "benchmarks" / "solvers").glob("*.py")),
               *sorted((root / "sdecontrol").rglob("*.py"))]  # fmt: skip
    digest = hashlib.blake2b(repr([version(name) for name in PACKAGES]).encode(), digest_size=8)
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def earlier(results: Path, mark: str, rounds: int, problem: str | None) -> dict[str, Any]:
    """The problems of an interrupted run of the same code; those of any run when one problem is asked for."""
    if not results.exists():
        return {}
    content = json.loads(results.read_text())
    resumable = not content["finished"] and content["fingerprint"] == mark and content["rounds"] == rounds
    return content["problems"] if problem or resumable else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the paths; writes only with --out")
    parser.add_argument("--out", type=Path, help="another file for the results")
    parser.add_argument("--problem", choices=list(cases()), help="this one only, the others are kept as they are")
    parser.add_argument("--shortlist", type=Path, help="an earlier result, to time the other libraries' best only")
    options = parser.parse_args()
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
    mark, console = fingerprint(), Console(width=118)
    results = options.out or (None if options.quick else RESULTS)
    done = earlier(results, mark, options.rounds, options.problem) if results else {}
    chosen = [case for case in cases(options.quick).values() if options.problem in (None, case.name)]
    for case in chosen:
        if case.name in done and not options.problem:
            console.print(f"{case.title}: kept from the interrupted run")
            continue
        started = time.perf_counter()
        listed = shortlist(case, json.loads(options.shortlist.read_text())["problems"]) if options.shortlist else None
        records = measure(case, options.rounds, listed)
        found = verdicts(case, records)
        report(console, case, records, found)
        console.print(f"{case.title}: {time.perf_counter() - started:.0f} s\n")
        done[case.name] = {"title": case.title, "paths": case.paths, "targets": case.targets, "records": records,
                           "verdicts": found}  # fmt: skip
        if results:
            content = {"machine": machine, "versions": {name: version(name) for name in PACKAGES},
                       "fingerprint": mark, "rounds": options.rounds, "finished": set(done) == set(cases()),
                       "problems": done}  # fmt: skip
            results.parent.mkdir(exist_ok=True)
            write(results, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
