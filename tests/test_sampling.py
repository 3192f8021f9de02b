"""Ensembles on disk: what an interrupted run has left is completed, and only what is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from epns_pyro import sampling
from epns_pyro.data import Store
from epns_pyro.sampling import PROGRESS, Ensemble, Request
from epns_pyro.simulator import Simulator

MEMBERS, STEPS = 700, 3


@pytest.fixture
def ensemble(run: Path, store: Store) -> Ensemble:
    made = Ensemble.of(Request(run, members=MEMBERS, steps=STEPS, store=store.path, seed=3))
    assert made.blocks > 3
    return made


def stop_after(blocks: int):
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 1 + blocks:
            raise KeyboardInterrupt

    return progress


def opened(path: Path) -> xr.Dataset:
    return xr.open_zarr(path, consolidated=False, chunks=None).load()


def test_it_is_the_rollout_of_the_simulator(ensemble: Ensemble, tmp_path: Path) -> None:
    ensemble.write(tmp_path / "futures.zarr")
    found = opened(tmp_path / "futures.zarr")
    xr.testing.assert_equal(found, ensemble.sim.rollout(ensemble.x0, steps=STEPS, members=MEMBERS, seed=3))
    assert PROGRESS not in found.attrs
    assert found.attrs["feedback"] == "sample"
    assert list(tmp_path.iterdir()) == [tmp_path / "futures.zarr"]


def test_a_rerun_samples_what_is_missing(ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parted = tmp_path / "whole.nc", tmp_path / "parted.nc"
    ensemble.write(whole)
    with pytest.raises(KeyboardInterrupt):
        ensemble.write(parted, progress=stop_after(2))
    assert not parted.exists()
    sampled, sample = [], Ensemble.sample
    monkeypatch.setattr(Ensemble, "sample", lambda self, number: sampled.append(number) or sample(self, number))
    ensemble.write(parted)
    assert sampled == list(range(2, ensemble.blocks))
    xr.testing.assert_identical(xr.load_dataset(parted), xr.load_dataset(whole))


@pytest.mark.parametrize("change", ["seed", "steps", "weights", "initial states", "damage"])
def test_what_was_left_of_another_ensemble_is_not_used(ensemble: Ensemble, tmp_path: Path, change: str) -> None:
    out = tmp_path / "futures.zarr"
    with pytest.raises(KeyboardInterrupt):
        ensemble.write(out, progress=stop_after(1))
    other = {
        "seed": lambda: replace(ensemble, request=replace(ensemble.request, seed=4)),
        "steps": lambda: replace(ensemble, request=replace(ensemble.request, steps=2)),
        "weights": lambda: replace(ensemble, sim=changed(ensemble.sim)),
        "initial states": lambda: replace(ensemble, x0=ensemble.x0[::-1].copy()),
        "damage": lambda: ensemble,
    }[change]()
    if change == "damage":
        (tmp_path / "futures.zarr.partial" / "zarr.json").write_text("{")
    other.write(out)
    expected = other.sim.rollout(other.x0, steps=other.request.steps, members=MEMBERS, seed=other.request.seed)
    xr.testing.assert_equal(opened(out), expected)


def changed(sim: Simulator) -> Simulator:
    with torch.no_grad():
        next(sim.transition.parameters()).add_(0.1)
    return sim


def test_blocks_have_chunks_of_their_own(ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CHUNK_BYTES", 1)
    ensemble.write(tmp_path / "futures.zarr")
    chunks = xr.open_zarr(tmp_path / "futures.zarr", consolidated=False, chunks=None)["position"].encoding["chunks"]
    assert chunks[:3] == (ensemble.members_per_block, ensemble.trajectories, 1)
    (last,) = ensemble.sample(ensemble.blocks - 1)
    np.testing.assert_array_equal(opened(tmp_path / "futures.zarr")["position"][-1], last[2]["position"][-1])


@pytest.mark.parametrize("part", [600, 60])
def test_long_futures_in_parts_are_those_in_one(ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """Memory holds `part` bytes of states: a part of a block along time, then a part of its members."""
    ensemble = replace(ensemble, request=replace(ensemble.request, members=300, steps=9))
    ensemble.write(tmp_path / "whole.zarr")
    monkeypatch.setattr(sampling, "PART_BYTES", part * ensemble.frame_bytes)
    assert ensemble.members_per_group < ensemble.members_per_block
    largest, whole_futures = [], sampling.whole_futures

    def watched(blocks, frames, group):
        for block in whole_futures((largest.append(b.states.nbytes) or b for b in blocks), frames, group):
            largest.append(block.states.nbytes)
            yield block

    monkeypatch.setattr(sampling, "whole_futures", watched)
    ensemble.write(tmp_path / "parts.zarr")
    xr.testing.assert_identical(opened(tmp_path / "parts.zarr"), opened(tmp_path / "whole.zarr"))
    one_member, one_frame = 10 * ensemble.frame_bytes, ensemble.members_per_block * ensemble.frame_bytes
    assert max(largest) <= 2 * max(part * ensemble.frame_bytes, one_member, one_frame)


def test_more_trajectories_than_pass_at_once_are_sampled_some_at_a_time(
    ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble.sim.transition, "block_size", 2)
    some = replace(ensemble, request=replace(ensemble.request, members=2))
    assert (some.width, some.members_per_block, some.blocks) == (2, 1, 2)
    assert some.trajectories > 2
    some.write(tmp_path / "futures.zarr")
    found = opened(tmp_path / "futures.zarr")
    xr.testing.assert_equal(found, some.sim.rollout(some.x0, steps=STEPS, members=2, seed=3, block_size=2))
    for name, variable in found.data_vars.items():
        assert variable.notnull().all(), name
