"""Run damaged inputs through a reader, each under a limit of time and memory, and say how it ended.

A case is (reader, mutator, seed). It works on a fresh copy of a sound input, in a child process: a reader that hangs is killed, and one
that takes the process down is seen.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from epns_pyro.errors import EpnsError

WORKED, CLEAR, TRACEBACK, HANG = OUTCOMES = ("worked", "clear", "traceback", "hang")
SECONDS = 30.0  # that one case may take, on a machine that is busy with other things
MEMORY = 4 * 2**30  # bytes that one case may ask for
LONGEST_LINE = 1000  # characters of a message that a person can still read

Mutator = Callable[[Path, np.random.Generator], str]  # damages what lies at a path, in place; says in words what it did


@dataclass(frozen=True)
class Reader:
    """One kind of input: how a sound one is made, what reads it, and what may happen to it.

    Parameters
    ----------
    name : str
    make : callable
        make(folder) writes a sound input into an empty folder.
    read : callable
        read(folder) reads it as the package does; it may raise an EpnsError and nothing else.
    mutators : tuple of Mutator
        They get the folder.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    mutators: tuple[Mutator, ...]


@dataclass(frozen=True)
class Case:
    reader: Reader
    mutator: Mutator
    seed: int

    def __str__(self) -> str:
        return f"{self.reader.name}/{self.mutator.__name__}/{self.seed}"


@dataclass(frozen=True)
class Result:
    """How a case ended, what had been done to the input, and the message or the traceback."""

    case: str
    outcome: str
    damage: str = ""
    message: str = ""


def cases(readers: Iterable[Reader], per_mutator: int, seed: int = 0) -> list[Case]:
    """Return `per_mutator` cases of every mutator of every reader; the same seed gives the same cases."""
    return [Case(reader, mutator, seed + number) for reader in readers for mutator in reader.mutators for number in range(per_mutator)]


def run(todo: list[Case], *, seconds: float = SECONDS) -> Iterator[Result]:
    """Run cases in child processes, in order."""
    with tempfile.TemporaryDirectory() as scratch:
        sound = {name: _made(reader, Path(scratch) / "sound" / name) for name, reader in {c.reader.name: c.reader for c in todo}.items()}
        start = 0
        while start < len(todo):
            for result in _until_one_breaks(todo[start:], sound, Path(scratch) / "case", seconds):
                start += 1
                yield result


def summary(results: Iterable[Result]) -> str:
    """Say how many cases were tried, and how they ended."""
    counts = Counter(result.outcome for result in results)
    return f"tried {sum(counts.values())}, " + ", ".join(f"{outcome} {counts[outcome]}" for outcome in OUTCOMES)


def _made(reader: Reader, folder: Path) -> Path:
    folder.mkdir(parents=True)
    reader.make(folder)
    return folder


def _until_one_breaks(todo: list[Case], sound: dict[str, Path], folder: Path, seconds: float) -> Iterator[Result]:
    """Run cases in one child until all are done, or one of them has to be killed or takes it down."""
    context = multiprocessing.get_context("fork")  # imports are paid for once
    here, there = context.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 on: other threads and fork; the child uses none of theirs
        child = context.Process(target=_work, args=(todo, sound, folder, there), daemon=True)
        child.start()
    there.close()
    try:
        for case in todo:
            damage = ""
            try:
                while True:
                    if not here.poll(seconds):
                        yield Result(str(case), HANG, damage, f"still running after {seconds:g} s")
                        return
                    kind, content = here.recv()
                    if kind == "result":
                        yield content
                        break
                    damage = content
            except EOFError:
                child.join()
                yield Result(str(case), TRACEBACK, damage, f"the process died (exit code {child.exitcode})")
                return
    finally:
        child.kill()
        child.join()
        here.close()


def _work(todo: list[Case], sound: dict[str, Path], folder: Path, pipe: Connection) -> None:
    _limit_memory()
    warnings.simplefilter("ignore")
    for case in todo:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound[case.reader.name], folder, symlinks=True)
        damage = case.mutator(folder, np.random.default_rng([case.seed, *case.mutator.__name__.encode()]))
        pipe.send(("damage", damage))
        pipe.send(("result", judge(case, folder, damage)))


def judge(case: Case, folder: Path, damage: str) -> Result:
    """Read a damaged input and say how that ended."""
    try:
        case.reader.read(folder)
    except EpnsError as error:
        message = str(error)
        readable = message and "\n" not in message and len(message) <= LONGEST_LINE
        return Result(str(case), CLEAR if readable else TRACEBACK, damage, message[: 2 * LONGEST_LINE])
    except BaseException:
        return Result(str(case), TRACEBACK, damage, traceback.format_exc(limit=-8)[-3000:])
    return Result(str(case), WORKED, damage)


def _limit_memory() -> None:
    with contextlib.suppress(ValueError, OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
