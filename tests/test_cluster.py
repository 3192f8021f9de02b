"""Work on a cluster: the same result whoever does it, also where a worker is killed half way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import small_study
import xarray as xr
from click.testing import CliRunner

from epns_pyro import cluster as clusters
from epns_pyro.cli import main
from epns_pyro.cluster import Cluster, connect
from epns_pyro.data import Store, generate, open_store
from epns_pyro.errors import ClusterError, ConfigError
from epns_pyro.sampling import Ensemble, Request
from epns_pyro.studies import work
from epns_pyro.studies.judging import Results

pytest.importorskip("distributed", reason="needs Dask: the extra `cluster`")


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    with connect("local:2") as found:
        yield found


def process_ids(cluster: Cluster) -> set[int]:
    return set(cluster._client.run(os.getpid).values())


def killing(cluster: Cluster, seen: list[Any]) -> Callable[..., None]:
    """A progress function that kills a worker as soon as something is done, and notes what it is told."""
    victim = min(process_ids(cluster))

    def progress(*news: Any) -> None:
        if news[-2] and not any(old[-2] for old in seen):
            os.kill(victim, signal.SIGKILL)
        seen.append(news)

    return progress


# -- parts -------------------------------------------------------------------------------------------------------------------


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    raise ConfigError(f"no {number}")


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


class DieOnce:
    """Kills its process where a file is not there yet, which it makes."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, number: int) -> int:
        if number == 3 and not self.file.exists():
            self.file.touch()
            die(number)
        return square(number)


def tell(number: int, report: Callable[[dict[str, Any]], None]) -> int:
    report({"number": number})
    return square(number)


def tell_or_die(number: int, report: Callable[[dict[str, Any]], None]) -> int:
    return die(number) if number == 1 else tell(number, report)


def test_results_come_in_order(two: Cluster) -> None:
    assert list(two.map(square, range(20))) == [n * n for n in range(20)]
    assert two.size == 2


def test_equal_parts_are_all_done(two: Cluster) -> None:
    assert list(two.map(square, [3, 3])) == [9, 9]


def test_an_error_of_a_part_is_raised_here(two: Cluster) -> None:
    with pytest.raises(ConfigError, match="no 7"):
        list(two.map(refuse, [7]))


def test_parts_of_a_dead_worker_are_done_by_another(two: Cluster, tmp_path: Path) -> None:
    before = process_ids(two)
    assert list(two.map(DieOnce(tmp_path / "died"), range(10))) == [n * n for n in range(10)]
    assert (tmp_path / "died").exists()
    two._client.wait_for_workers(2, timeout=60)
    assert len(process_ids(two) - before) == 1  # one was replaced


def test_a_part_that_kills_every_worker_is_an_error_in_one_line(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two._client.cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(ClusterError, match="1 workers died at the same part") as error:
        list(two.map(die, [0]))
    assert "\n" not in str(error.value)


def test_results_as_they_are_finished_with_news(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two._client.cluster.scheduler, "allowed_failures", 0)
    news: list[dict[str, Any]] = []
    assert dict(two.as_finished(tell_or_die, [0, 2], news.append)) == {0: 0, 2: 4}
    ((number, problem),) = two.as_finished(tell_or_die, [1], news.append)
    assert number == 1
    assert isinstance(problem, ClusterError)
    assert sorted(event["number"] for event in news) == [0, 2]


@pytest.mark.parametrize("where", ["", "loca", "local:0", "local:x", "slurm", "slurm:", "slurm:1000000000000", "http://x"])
def test_no_such_cluster(where: str) -> None:
    with pytest.raises(ConfigError, match=r"expected local, local:N"), connect(where):
        pass


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "TIMEOUT", "1s")
    with pytest.raises(ClusterError, match="no Dask scheduler answers there"), connect("tcp://127.0.0.1:9"):
        pass


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"epns-pyro\[cluster\]"), connect("local:2"):
        pass


# -- what the package does on a cluster ------------------------------------------------------------------------------------


def test_a_store_made_by_two_workers_one_of_them_killed(two: Cluster, tmp_path: Path) -> None:
    config = small.SYSTEM.override({"sets.train.trajectories": 300, "sets.train.steps": 3})
    seen: list[Any] = []
    one = generate(config, tmp_path / "one.zarr", seed=5)
    shared = generate(config, tmp_path / "shared.zarr", seed=5, cluster=two, progress=killing(two, seen))
    for name in one.splits:
        np.testing.assert_array_equal(shared.read(name), one.read(name))
    assert [done for name, done, _ in seen if name == "train"] == [0, 64, 128, 192, 256, 300]


def test_a_system_of_the_users_own(two: Cluster, tmp_path: Path) -> None:
    outside = Path(__file__).parents[1] / "examples" / "outside.py"
    command = ["data", "generate", "swarm", "--import", str(outside), "--trajectories", "3", "--out"]
    assert CliRunner().invoke(main, [*command, str(tmp_path / "one.zarr")]).exit_code == 0
    address = two._client.scheduler.address
    result = CliRunner().invoke(main, [*command, str(tmp_path / "shared.zarr"), "--cluster", address])
    assert result.exit_code == 0, result.output
    stores = [open_store(tmp_path / name) for name in ("one.zarr", "shared.zarr")]
    np.testing.assert_array_equal(*(store.read("train") for store in stores))


def test_an_ensemble_sampled_by_two_workers_one_of_them_killed(two: Cluster, run: Path, store: Store, tmp_path: Path) -> None:
    ensemble = Ensemble.of(Request(run, members=1000, steps=4, store=store.path, seed=3))
    assert ensemble.blocks > 4
    seen: list[Any] = []
    ensemble.write(tmp_path / "one.zarr")
    ensemble.write(tmp_path / "shared.zarr", cluster=two, progress=killing(two, seen))
    one, shared = (xr.open_zarr(tmp_path / name, consolidated=False, chunks=None) for name in ("one.zarr", "shared.zarr"))
    xr.testing.assert_identical(shared.load(), one.load())
    assert [done for done, _ in seen] == [min(i * ensemble.members_per_block, 1000) for i in range(ensemble.blocks + 1)]


def test_simulate_with_workers_of_its_own(run: Path, store: Store, tmp_path: Path) -> None:
    out = tmp_path / "futures.nc"
    command = ["simulate", str(run), "--from", str(store.path), "--members", "5", "--steps", "2", "--cluster", "local:2", "--out", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    _, _, expected = next(Ensemble.of(Request(run, members=5, steps=2, store=store.path)).sample(0))
    xr.testing.assert_allclose(xr.load_dataset(out), expected)


@pytest.mark.slow
def test_a_study_by_two_workers_that_are_killed(two: Cluster, tmp_path: Path) -> None:
    """Both workers are killed once one trains; its run goes on from a checkpoint, or from the start."""
    shared, one = (
        small_study.plan(tmp_path / "shared", seeds=1, models=("epns",)),
        small_study.plan(tmp_path / "one", seeds=1, models=("epns",)),
    )
    work.make_data(shared, lambda what, done, total: None, two)
    work.make_data(one, lambda what, done, total: None)
    victims = process_ids(two)

    def report(event: work.Event) -> None:
        while event.phase == "training" and victims:
            os.kill(victims.pop(), signal.SIGKILL)

    assert work.run(shared, report=report, cluster=two) == {}
    assert not victims
    assert work.run(one) == {}
    assert all(work.is_finished(job) for job in shared.jobs)
    for a, b in zip(shared.jobs, one.jobs, strict=True):
        assert Results(a.folder.path).parts["likelihood"] == Results(b.folder.path).parts["likelihood"]
