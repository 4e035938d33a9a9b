"""Pairs spread over processes. Each worker builds its own problems; results come back in the order they are ready."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, wait

import torch
from threadpoolctl import threadpool_limits

from sdecontrol.claims import Report
from sdecontrol.errors import BadInput
from sdecontrol.problems.base import Problem
from sdecontrol.problems.builtin import resolve
from sdecontrol.report.run import Checking, Failure, Pair, Result, Results
from sdecontrol.report.selection import Selection, fingerprint

FEW = 6  # below so many pairs, starting a process costs more than it saves


def default_workers(pairs: int) -> int:
    """As many as there are cores to run on, one for a few pairs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if pairs < FEW else min(cores, pairs)


def one_thread() -> None:
    """Small matrices: a second thread on busy cores costs ten times what it saves."""
    torch.set_num_threads(1)
    threadpool_limits(1)


_fitted = cache(Selection.fitted)  # in a worker, which serves one run


@dataclass(frozen=True)
class Job:
    """All that a worker must know: what to build, what it should be, how to check it.

    sources: the built-in name or the file of each problem that is not fitted to data.
    """

    selection: Selection
    sources: Mapping[str, str]
    fingerprints: Mapping[str, str]
    checking: Checking

    def problem(self, name: str) -> Problem:
        """The problem, if it is the one that the run started with. Raises: BadInput when it is another."""
        self.selection.load_plugins()
        if name in self.sources:
            problem = resolve(self.sources[name]).problem
        else:
            problem = next(subject.problem for subject in _fitted(self.selection) if subject.problem.name == name)
        if fingerprint(problem) != self.fingerprints[name]:
            raise BadInput(
                f"saw {name} turn out different when it was built again; wanted the same problem in every process. "
                "Seed the random numbers that it is made with, or use --workers 1."
            )
        return problem


def spread(pairs: Sequence[Pair], job: Job, count: int) -> Results:
    """Check the pairs in `count` processes; a worker that dies leaves a Failure and is replaced.

    The workers end with the iteration, however that ends, and with this process, however that ends.
    """
    agenda = _Agenda(pairs)
    workers: list[_Worker] = []
    try:
        workers += [_Worker(job) for _ in range(min(count, len(pairs)))]
        for worker in workers:
            worker.give(agenda.next(None))
        while busy := {worker.connection: worker for worker in workers if worker.pair}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                result = worker.take()
                agenda.learn(result)
                pair = agenda.next(worker.pair)
                if pair and not worker.alive:
                    workers[workers.index(worker)] = worker = worker.replaced(job)
                worker.give(pair)
                yield result
    finally:
        for worker in workers:
            worker.stop()


class _Agenda:
    """A problem a worker, as its claims share work; of a problem first the claims that took longest on those before.

    When every problem is begun, a worker that has done with its own helps where most is left.
    """

    def __init__(self, pairs: Sequence[Pair]):
        self.left = list(pairs)
        self.seconds: dict[str, float] = defaultdict(float)
        self.begun: set[str] = set()

    def next(self, last: Pair | None) -> Pair | None:
        """The pair for a worker that was at `last`."""
        if not self.left:
            return None
        problem = self._problem(last)
        self.begun.add(problem)
        here = [pair for pair in self.left if pair.problem == problem]
        chosen = max(here, key=lambda pair: self.seconds[pair.claim])
        self.left.remove(chosen)
        return chosen

    def _problem(self, last: Pair | None) -> str:
        counts = Counter(pair.problem for pair in self.left)
        if last is not None and last.problem in counts:
            return last.problem
        fresh = [problem for problem in counts if problem not in self.begun]
        return fresh[0] if fresh else max(counts, key=counts.__getitem__)

    def learn(self, result: Result) -> None:
        if isinstance(result, Report):
            self.seconds[result.claim] = max(self.seconds[result.claim], result.seconds)


class _Worker:
    """A process at the other end of a pipe, and the pair that it is at."""

    def __init__(self, job: Job):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, job), daemon=True)
        with _interrupts_held():
            self.process.start()
        theirs.close()
        self.pair: Pair | None = None
        self.alive = True

    def give(self, pair: Pair | None) -> None:
        self.pair = pair
        if pair is not None:
            with suppress(OSError):  # a worker that has died since: `take` meets the end of the pipe and says so
                self.connection.send(pair)

    def take(self) -> Result:
        assert self.pair is not None
        try:
            result: Result = self.connection.recv()
        except (EOFError, OSError):
            self.alive = False
            self.process.join()
            return Failure(*self.pair, f"a dead process: exit code {self.process.exitcode} (memory?)", "")
        return result

    def replaced(self, job: Job) -> _Worker:
        self.stop()
        return _Worker(job)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started here never see Ctrl-C, which a terminal sends to all: only the run decides when they end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(connection: Connection, job: Job) -> None:
    """A worker's life: pairs in, results out, until the other end closes or dies."""
    as_worker()
    problem = cache(job.problem)
    while True:
        try:
            pair = connection.recv()
        except EOFError:
            return
        connection.send(job.checking.attempt(pair, problem))


def as_worker() -> None:
    """This process has one thread and ends with its parent, also in the middle of a long task."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    one_thread()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
