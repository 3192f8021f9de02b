"""Doing the runs of a plan: train, judge, keep what is there; in this process, or several at a time in processes of their own.

A run that fails is a row that says so. What stops a study is an error that every run would meet, such as a full disk, and an interrupt;
then the same plan goes on where it stopped.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import queue
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from epns_pyro.cluster import Cluster
from epns_pyro.data import generate, open_store
from epns_pyro.errors import EpnsError, TrainingError
from epns_pyro.machine import cores
from epns_pyro.studies.contenders import contender
from epns_pyro.studies.judging import Results, judge, parts_of
from epns_pyro.studies.plan import Job, Plan
from epns_pyro.whole import whole

try:
    import fcntl
except ImportError:  # Windows: there nothing tells two commands on one folder apart
    fcntl = None  # type: ignore[assignment]

ROOM = 2**20  # bytes: with less the disk is full
FAILURES = (EpnsError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, MemoryError)  # of one run, not of all
WAIT = 1.0  # seconds between looks at the processes


@dataclass(frozen=True)
class Event:
    """What a run does at the moment: `done` of `total` steps of a phase, "training", "judging" or "finished"."""

    job: int
    phase: str
    done: int
    total: int


Report = Callable[[Event], None]


def is_finished(job: Job) -> bool:
    """Return whether everything is measured of a run, or it has failed for good."""
    return not Results(job.folder.path).missing(parts_of(job))


def make_data(plan: Plan, progress: Callable[[str, int, int], None], cluster: Cluster | None = None) -> None:
    """Simulate the stores of a plan, as far as they are missing; with a cluster, by its workers.

    Raises
    ------
    DataError
        If there is another store in their place.
    """
    for path, system in plan.stores.items():
        generate(system, path, progress=partial(_show, progress, path.stem), cluster=cluster)


def _show(progress: Callable[[str, int, int], None], store: str, name: str, done: int, total: int) -> None:
    progress(f"simulating {store}, {name}", done, total)


def run(plan: Plan, *, jobs: int = 1, report: Report = lambda event: None, cluster: Cluster | None = None) -> dict[int, str]:
    """Do the runs of a plan that are not finished; return why runs failed that another try may finish, by number.

    `jobs` are done at a time, in processes of their own; with a cluster, as many as it has workers.

    Raises
    ------
    OSError
        If the folder of the study cannot be written to, if the disk is full, or if another process works on the same runs.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after all runs have saved what they have.
    """
    waiting = [number for number, job in enumerate(plan.jobs) if not is_finished(job)]
    for number in set(range(len(plan.jobs))) - set(waiting):
        report(Event(number, "finished", 1, 1))
    if cluster:
        return _on_cluster(plan.jobs, waiting, cluster, report)
    if jobs > 1 and len(waiting) > 1:
        return _in_processes(plan.jobs, waiting, jobs, report)
    failed = {}
    for number in waiting:
        if problem := do(number, plan.jobs[number], report):
            failed[number] = problem
        report(Event(number, "finished", 1, 1))
    return failed


def do(number: int, job: Job, report: Report) -> str:
    """Train and judge one run, as far as that is missing; return why it failed if another try may finish it, else ""."""
    results = Results(job.folder.path)
    try:
        with _alone(job.folder.path):
            if not job.folder.config.is_file():
                _write(job.folder.config, job.config.to_yaml())
            trained = contender(job, lambda done, total: report(Event(number, "training", done, total)))
            store = open_store(job.held_out)
            judge(trained, store, job.config.evaluation, results, parts_of(job), lambda d, t: report(Event(number, "judging", d, t)))
    except TrainingError as error:
        results.keep("failed", str(error))
    except OSError:
        raise
    except FAILURES as error:
        _require_room(job.folder.path)
        return " ".join(f"{type(error).__name__}: {error}".split()) or type(error).__name__
    return ""


def _require_room(path: Path) -> None:
    """Raise OSError if the disk is full: PyTorch reports that as an error of its own."""
    if shutil.disk_usage(path).free < ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _write(path: Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a run, which ends with the process.

    Raises
    ------
    OSError
        If another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                what = "another process is working on this run: wait for it, or stop it"
                raise OSError(errno.EWOULDBLOCK, what, str(folder)) from None
        yield


# -- on a cluster ------------------------------------------------------------------------------------------------------------


def _on_cluster(jobs: tuple[Job, ...], waiting: list[int], cluster: Cluster, report: Report) -> dict[int, str]:
    """Give every run to a worker. One that died with its worker goes on from its last checkpoint, at another."""
    failed = {}
    parts = [(number, jobs[number]) for number in waiting]
    for (number, _), problem in cluster.as_finished(_at_worker, parts, lambda event: report(Event(**event))):
        if problem:
            failed[number] = str(problem)
        report(Event(number, "finished", 1, 1))
    return failed


def _at_worker(part: tuple[int, Job], tell: Callable[[dict[str, Any]], None]) -> str:
    """Do one run, and tell how far it is about once a second."""
    (number, job), told = part, 0.0

    def report(event: Event) -> None:
        nonlocal told
        if time.monotonic() - told > WAIT:
            told = time.monotonic()
            tell(asdict(event))

    return do(number, job, report)


# -- several at a time -------------------------------------------------------------------------------------------------------


def _in_processes(jobs: tuple[Job, ...], waiting: list[int], at_once: int, report: Report) -> dict[int, str]:
    """Give every run a process of its own, so that one that dies takes no other with it."""
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    running: dict[int, SpawnProcess] = {}
    failed: dict[int, str] = {}
    waiting = list(waiting)

    def listen(seconds: float) -> None:
        """Pass on what comes within some seconds, and all that has come already."""
        end = time.monotonic() + seconds
        with suppress(queue.Empty):
            while True:
                number, what = events.get(timeout=max(0.0, end - time.monotonic()))
                if isinstance(what, OSError):
                    raise what
                if isinstance(what, Event):
                    report(what)
                else:
                    failed[number] = what
                if seconds and time.monotonic() > end:
                    break

    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number = waiting.pop(0)
                running[number] = context.Process(target=_child, args=(number, jobs[number], events), daemon=True)
                with _threads_shared(at_once):
                    running[number].start()
            listen(WAIT)
            for number in [n for n, process in running.items() if not process.is_alive()]:
                process = running.pop(number)
                listen(0.0)  # what it said last
                if process.exitcode:
                    failed.setdefault(number, f"its process ended with exit code {process.exitcode}; out of memory?")
                report(Event(number, "finished", 1, 1))
    finally:
        for process in running.values():
            process.terminate()  # training saves its state
        for process in running.values():
            process.join()
    return failed


def _child(number: int, job: Job, events: Any) -> None:
    """Do one run in a process of its own; if the parent is gone, stop."""
    parent = multiprocessing.parent_process()

    def report(event: Event) -> None:
        if parent and not parent.is_alive():
            signal.raise_signal(signal.SIGTERM)  # training saves its state first
        events.put((number, event))

    try:
        if problem := do(number, job, report):
            events.put((number, problem))
    except OSError as error:
        events.put((number, error))
    except KeyboardInterrupt:
        pass


@contextmanager
def _threads_shared(at_once: int) -> Iterator[None]:
    """Share the cores among processes started inside: libraries read their number of threads once, when they are loaded."""
    threads = str(max(1, cores() // at_once))
    new = [name for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS") if name not in os.environ]
    os.environ.update(dict.fromkeys(new, threads))
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]
