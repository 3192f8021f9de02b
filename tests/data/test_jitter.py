"""Windows with errors of localisation: of which size they are, and that states stay states of a recording."""

from __future__ import annotations

import pytest
import torch

from epns_pyro.data import Windows, generate
from epns_pyro.data.importers.tracks import Options, import_tracks
from epns_pyro.data.jitter import EXACT, SMALLEST
from epns_pyro.errors import ConfigError
from epns_pyro.systems import NBodyConfig, SetConfig

LARGEST = 0.3


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """Two bodies that do not move, over 300 frames."""
    folder = tmp_path_factory.mktemp("still")
    rows = [f"{frame},{body},{body},0" for frame in range(300) for body in range(2)]
    (folder / "still.csv").write_text("\n".join(["frame,id,x,y", *rows]))
    return import_tracks([folder / "still.csv"], folder / "still.zarr", Options(frame_dt=0.5, segment=12, history=3))


def windows(store, **settings):
    return Windows(store, "train", 2, 200, seed=3, first_frame=0, dtype=torch.float64, jitter=LARGEST, **settings)


def test_errors_have_the_promised_sizes(still):
    position = still.spec.get(windows(still).draw().path, "position")
    errors = (position - torch.tensor([[0.0, 0.0], [1.0, 0.0]])).movedim(2, 1)  # (window, body, time, space)
    exact = (errors == 0).all(-1).all(-1)
    assert exact.double().mean() == pytest.approx(EXACT, abs=0.1)
    assert (exact[:, 0] != exact[:, 1]).double().mean() == pytest.approx(2 * EXACT * (1 - EXACT), abs=0.15)  # each by itself
    levels = errors[~exact].flatten(1).std(1)
    assert LARGEST * SMALLEST / 10 < levels.min() < LARGEST * SMALLEST * 2  # of four numbers each
    assert LARGEST / 2 < levels.max() < 2.5 * LARGEST


def test_velocities_are_differences_of_the_jittered_positions(still):
    stream = windows(still)
    x0, path = stream.draw()
    x, spec = torch.cat([x0[:, None], path], 1), still.spec
    position, velocity = spec.get(x, "position"), spec.get(x, "velocity")
    torch.testing.assert_close(velocity[:, 1:], (position[:, 1:] - position[:, :-1]) / 0.5)
    torch.testing.assert_close(spec.get(x, "velocity_1")[:, 1:], velocity[:, :-1])
    torch.testing.assert_close(spec.get(x, "velocity_2")[:, 2:], velocity[:, :-2])
    assert (spec.get(x0, "velocity_2") != spec.get(x0, "velocity")).any()  # the first state remembers errors, too


def test_at_the_start_of_a_trajectory_the_first_velocity_stands_in_for_earlier_ones(still):
    first = Windows(still, "train", still.steps("train"), 40, seed=0, first_frame=0, dtype=torch.float64, jitter=LARGEST).draw().x0
    velocity = still.spec.get(first, "velocity")
    assert velocity.abs().max() > 0
    torch.testing.assert_close(still.spec.get(first, "velocity_2"), velocity)


def test_processes_share_the_windows_of_one(still):
    whole = windows(still)
    parts = [windows(still, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(2):
        torch.testing.assert_close(torch.cat([part.draw().path for part in parts]), whole.draw().path)


def test_recorded_velocities_cannot_jitter(tmp_path):
    sets = {name: SetConfig(trajectories=2, steps=5) for name in ("train", "val")}
    store = generate(NBodyConfig(sets=sets), tmp_path / "store.zarr")
    with pytest.raises(ConfigError, match="jitter: needs recorded positions alone"):
        windows(store)
