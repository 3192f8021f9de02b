"""Generation: the same numbers however often it is interrupted, and nobody's data overwritten."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_systems
import xarray as xr
from toy_systems import STRIPES, WALKERS, StripesConfig, WalkersConfig

from epns_pyro.data import generate, open_store
from epns_pyro.data.generate import initial_states
from epns_pyro.errors import ConfigError, DataError
from epns_pyro.systems import NBodyConfig, SetConfig, trajectory_seeds

pytestmark = pytest.mark.filterwarnings("error")


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def stop_after(calls: int):
    """Interrupt at the given call of the progress function."""
    seen = []

    def progress(name, done, total):
        seen.append(name)
        if len(seen) == calls:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("calls", [1, 3, 8])
def test_interrupted_and_resumed_equals_uninterrupted(walkers, tmp_path, calls):
    path = tmp_path / "store.zarr"
    with pytest.raises(KeyboardInterrupt):
        generate(WalkersConfig(), path, 3, progress=stop_after(calls))
    assert contents(path) != contents(walkers.path)
    generate(WalkersConfig(), path, 3)
    assert contents(path) == contents(walkers.path)


def test_resuming_does_not_simulate_what_is_there(tmp_path, monkeypatch):
    path = tmp_path / "store.zarr"
    with pytest.raises(KeyboardInterrupt):
        generate(WalkersConfig(), path, 3, sets=["train"], progress=stop_after(3))
    made = []
    system = type(WalkersConfig().build())
    simulate = system.simulate
    monkeypatch.setattr(system, "simulate", lambda self, x0, *args, **kw: made.append(len(x0)) or simulate(self, x0, *args, **kw))
    generate(WalkersConfig(), path, 3, sets=["train"])
    assert sum(made) == 11 - 4


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
os.cpu_count = lambda: 1
from epns_pyro.data import generate, layout, writing
from toy_systems import WalkersConfig
writing.CHUNK_TRAJECTORIES = 2
die = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
encode, count = layout.encode, [0]
def dying_encode(spec, x):
    count[0] += 1
    parts = encode(spec, x)
    if count[0] == 3:  # the third shard dies with one of its variables written
        class Dying(dict):
            def items(self):
                yield "position", parts["position"]
                die()
        return Dying()
    return parts
layout.encode = dying_encode
generate(WalkersConfig(), {path!r}, 3)
"""


def test_killed_in_the_middle_of_a_shard_and_resumed_equals_uninterrupted(walkers, tmp_path):
    path = tmp_path / "store.zarr"
    script = KILLED.format(tests=str(Path(toy_systems.__file__).parent), path=str(path))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    (path / "train" / "position" / "c" / "0.1234.partial").write_bytes(b"half a chunk")
    assert open_store(path).missing("train") == 7
    generate(WalkersConfig(), path, 3)
    assert contents(path) == contents(walkers.path)


def test_incomplete_sets_are_refused_by_readers(tmp_path):
    path = tmp_path / "store.zarr"
    with pytest.raises(KeyboardInterrupt):
        generate(WalkersConfig(), path, 3, progress=stop_after(2))
    with pytest.raises(DataError, match="set 'train' is incomplete, 2 of 11 trajectories: run the command that made the store again"):
        open_store(path).read("train")


def test_sets_can_be_made_one_by_one_in_any_order(walkers, tmp_path):
    for name in ("same_init", "train", "val"):
        generate(WalkersConfig(), tmp_path / "store.zarr", 3, sets=[name])
    assert contents(tmp_path / "store.zarr") == contents(walkers.path)


def test_a_larger_set_begins_like_a_smaller_one(walkers, tmp_path):
    config = WalkersConfig().override({"sets": {"train": SetConfig(trajectories=5, steps=8)}})
    small = generate(config, tmp_path / "store.zarr", 3)
    np.testing.assert_array_equal(small.read("train"), walkers.read("train", slice(5)))


def test_the_seed_and_the_set_matter(walkers, tmp_path):
    other = generate(WalkersConfig(), tmp_path / "store.zarr", 4, sets=["val"])
    assert not np.isin(other.read("val")[:, 0], walkers.read("val")[:, 0]).any()
    assert not np.isin(walkers.read("val")[:, 0], walkers.read("train")[:, 0]).any()


def test_runs_of_a_shared_initial_state(walkers):
    x = walkers.read("same_init")
    first = x[:, 0].reshape(2, 3, -1)
    assert (first == first[:, :1]).all()
    assert (first[0, 0] != first[1, 0]).any()
    assert len(np.unique(x[:, -1].reshape(6, -1), axis=0)) == 6


@pytest.mark.parametrize(
    ("config", "seed", "message"),
    [
        (WalkersConfig(), 4, r"seed is 3 there, 4 was asked for"),
        (WalkersConfig(kick=0.7), 3, r"kick is 0.5 there, 0.7 was asked for"),
        (WalkersConfig().override({"sets.train.steps": 9}), 3, r"sets.train.steps is 8 there, 9 was asked for"),
        (StripesConfig(), 3, r"system is 'toy_walkers' there, 'toy_stripes' was asked for"),
    ],
)
def test_a_store_of_other_data_is_refused_and_left_alone(walkers, config, seed, message):
    before = contents(walkers.path)
    with pytest.raises(DataError, match=message):
        generate(config, walkers.path, seed)
    assert contents(walkers.path) == before


def test_anything_else_at_the_path_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("important")
    (tmp_path / "file").write_text("important")
    for name in ("thesis", "file"):
        with pytest.raises(DataError, match="exists and is not a store of epns-pyro"):
            generate(WalkersConfig(), tmp_path / name, 3)
    assert contents(tmp_path) == {"thesis/chapter1.tex": b"important", "file": b"important"}


def test_impossible_requests(tmp_path):
    with pytest.raises(ConfigError, match="no set 'tain': did you mean 'train'"):
        generate(WalkersConfig(), tmp_path / "a", sets=["tain"])
    with pytest.raises(ConfigError, match="set 'same_init': 7 trajectories cannot be shared evenly by 2 initial states"):
        generate(WalkersConfig().override({"sets.same_init.trajectories": 7}), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_plain_xarray_opens_the_sets_without_a_warning(walkers, stripes):
    particles = xr.open_zarr(walkers.path, group="train", chunks=None)
    assert particles.position.dims == ("trajectory", "time", "body", "space")
    assert particles.mass.dims == ("trajectory", "body")
    assert particles.attrs["system"] == "toy_walkers"
    assert particles.attrs["set"] == "train"
    np.testing.assert_allclose(particles.time, 0.25 * np.arange(9))
    np.testing.assert_array_equal(particles.velocity, WALKERS.get(walkers.read("train"), "velocity"))
    labels = xr.open_zarr(stripes.path, group="train", chunks=None)
    assert labels["cell"].dims == ("trajectory", "time", "y", "x")
    assert labels["cell"].dtype == np.uint16
    assert labels["cell_type"].sizes == {"trajectory": 7, "cell": 3}
    np.testing.assert_array_equal(labels["cell_type"], STRIPES.entity_property(stripes.read("train")[:, 0], "type")[:, 1:])


def test_the_store_holds_what_the_system_makes(walkers, stripes):
    for store, seed in ((walkers, 3), (stripes, 3)):
        settings = store.system.config.sets["train"]
        x0 = initial_states(store.system, seed, "train", settings, 0, settings.trajectories)
        x = store.system.simulate(x0, settings.steps, trajectory_seeds(seed, "train", settings.trajectories))
        np.testing.assert_array_equal(store.read("train"), x)


def test_the_real_system_runs_from_its_own_initial_states(tmp_path):
    config = NBodyConfig(dt=0.01, sets={"train": SetConfig(trajectories=3, steps=4)})
    x = generate(config, tmp_path / "store.zarr", 1).read("train")
    expected = config.build().simulate(x[:, 0], 4, trajectory_seeds(1, "train", 3))
    np.testing.assert_array_equal(x, expected)
