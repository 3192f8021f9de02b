"""Work on several processes or machines, by Dask: independent parts, each done by any worker, and done again where a worker dies.

A part is a function of plain data that writes its result to disk itself, so that doing it twice does no harm. Where it is done and in
which order changes nothing.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from epns_pyro.errors import ClusterError, ConfigError
from epns_pyro.heap import VARIABLES
from epns_pyro.machine import cores

if TYPE_CHECKING:
    from distributed import Client, Future

Part = TypeVar("Part")
Result = TypeVar("Result")
Event = dict[str, Any]  # plain data, as Dask sends them

WAIT = 1.0  # seconds between looks at what has finished
TIMEOUT = "20s"  # for an answer of a scheduler
EXPECTED = "expected local, local:N (processes), slurm:N (jobs), or the address of a Dask scheduler, tcp://HOST:PORT"
_ALONE = threading.Lock()  # random numbers and numbers of threads belong to a process: a worker does one part at a time


class Cluster:
    """The workers that a Dask client reaches; `connect` makes it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def size(self) -> int:
        """Number of workers at the moment, at least 1."""
        return max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))

    def map(self, function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
        """Do all parts, and yield their results in order, like the built-in map.

        Raises
        ------
        ClusterError
            If workers die at one part again and again.
        """
        futures = self._client.map(partial(_alone, function), list(parts), pure=False)
        try:
            for number, future in enumerate(futures):
                yield _result(future)
                futures[number] = None  # the scheduler may forget it
        finally:
            self._client.cancel([future for future in futures if future is not None])

    def as_finished(
        self, function: Callable[[Part, Callable[[Event], None]], Result], parts: list[Part], listen: Callable[[Event], None]
    ) -> Iterator[tuple[Part, Result | ClusterError]]:
        """Do all parts, and yield (part, result) as they are finished; ClusterError is the result of a part that workers died of.

        `function` is given a callable beside its part: what it is called with, plain data, is passed to `listen` here.
        """
        from distributed import wait

        topic, events = uuid.uuid4().hex, queue.SimpleQueue[Event]()
        self._client.subscribe_topic(topic, lambda event: events.put(event[1]["news"]))
        left = dict(zip(self._client.map(partial(_reporting, function, topic), parts, pure=False), parts, strict=True))
        try:
            while left:
                try:
                    done = wait(list(left), timeout=WAIT, return_when="FIRST_COMPLETED").done
                except TimeoutError:
                    done = set()
                while not events.empty():
                    listen(events.get())
                for future in done:
                    try:
                        yield left[future], _result(future)
                    except ClusterError as error:
                        yield left[future], error
                    del left[future]
        finally:
            self._client.unsubscribe_topic(topic)
            self._client.cancel(list(left))


def _alone(function: Callable[[Part], Result], part: Part) -> Result:
    with _ALONE:
        return function(part)


def _reporting(function: Callable[[Part, Callable[[Event], None]], Result], topic: str, part: Part) -> Result:
    from distributed import get_worker

    with _ALONE:
        return function(part, lambda news: get_worker().log_event(topic, {"news": news}))


def _result(future: Future) -> Any:
    from distributed.scheduler import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        raise ClusterError(
            f"{error.allowed_failures + 1} workers died at the same part of the work: is there too little memory? What is done is kept; "
            "the same command goes on from there"
        ) from None


# -- ways to get workers -----------------------------------------------------------------------------------------------------


@contextmanager
def connect(where: str) -> Iterator[Cluster]:
    """Start workers, or find those that are there, for as long as the block lasts.

    Parameters
    ----------
    where : str
        "local" or "local:N": N processes of this computer, one per core by default. "slurm:N": N jobs of SLURM, whose cores, memory and
        queue are set in the configuration of dask-jobqueue. "tcp://HOST:PORT": the workers of a running Dask scheduler, which have to see
        the same files under the same paths.

    Raises
    ------
    ConfigError
        If there is no such way, Dask is not installed, or SLURM is not configured.
    ClusterError
        If nothing answers at the address.
    """
    kind, _, rest = where.partition(":")
    if kind not in ("local", "slurm", "tcp", "tls"):
        raise ConfigError(f"cluster {where!r}: {EXPECTED}")
    try:
        import distributed
    except ImportError:
        raise ConfigError(f"cluster {where!r}: Dask is not installed: pip install 'epns-pyro[cluster]'") from None
    if kind in ("tcp", "tls"):
        try:
            client = distributed.Client(where, timeout=TIMEOUT)
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"cluster {where!r}: no Dask scheduler answers there ({type(error).__name__}): start one, or wait for it"
            ) from None
        with client:
            yield Cluster(client)
        return
    count = _count(where, rest) if rest or kind == "slurm" else cores()
    with _local(count) if kind == "local" else _slurm(count) as workers, distributed.Client(workers) as client:
        yield Cluster(client)


def _local(count: int) -> Any:
    import dask
    import distributed

    environment = "distributed.nanny.pre-spawn-environ"
    with dask.config.set({environment: dask.config.get(environment, {}) | VARIABLES}):  # Dask has workers return freed memory at once
        # Without a limit of memory: the size of a block is limited already, and Dask would stop a worker for what other programs take.
        settings = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None, "silence_logs": "CRITICAL"}
        return distributed.LocalCluster(n_workers=count, **settings)


def _slurm(count: int) -> Any:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ConfigError("cluster 'slurm': dask-jobqueue is not installed: pip install 'epns-pyro[cluster]'") from None
    try:
        cluster = SLURMCluster()
    except ValueError as error:
        why = str(error).splitlines()[0].rstrip(".:, ")
        raise ConfigError(
            f"cluster 'slurm': {why}: set jobqueue.slurm.cores and jobqueue.slurm.memory in ~/.config/dask/jobqueue.yaml"
        ) from None
    cluster.adapt(minimum_jobs=count, maximum_jobs=count)  # unlike `scale`, it replaces jobs that end
    return cluster


def _count(where: str, word: str) -> int:
    if not (word.isascii() and word.isdigit() and 0 < int(word[:10]) <= 10_000):
        raise ConfigError(f"cluster {where[:40]!r}: {EXPECTED}; N is a number from 1 to 10000")
    return int(word)
