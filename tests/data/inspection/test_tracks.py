"""What `data info` says of bodies that come and go."""

from __future__ import annotations

import numpy as np
import pytest

from epns_pyro.data import open_store
from epns_pyro.data.inspection.tracks import TrackSummary, summarise_tracks, track_lines
from epns_pyro.data.writing import Identity, StoreWriter
from epns_pyro.state import Field, StateSpec

pytestmark = pytest.mark.filterwarnings("error")

SPEC = StateSpec((Field("position", "1o", translates=True, unit="m"),), space=2)
ABSENT = np.nan


def store_of(path, *paths):
    """A store of trajectories (time, body) of places on the x axis."""
    x = np.stack([np.stack([np.asarray(p, dtype=float), 0 * np.asarray(p, dtype=float)], -1) for p in paths])
    config = {"name": "recorded", "spec": {}, "frame_dt": 0.5}
    writer = StoreWriter(path, Identity(config, SPEC, 0.5, time_unit="s"))
    writer.split("train", len(x), x.shape[1], x.shape[2:-1]).append(x)
    writer.finish()
    return open_store(path)


def test_tracks_are_counted(tmp_path):
    one = [[0, 5, ABSENT], [3, 5, ABSENT], [ABSENT, 5, ABSENT], [ABSENT, 5, 7], [4, 5, ABSENT]]  # a gap of two frames
    two = [[ABSENT] * 3, [ABSENT, 1, ABSENT], [ABSENT, ABSENT, 2], [ABSENT, 2, 2], [ABSENT] * 3]
    store = store_of(tmp_path / "a.zarr", one, two)
    assert summarise_tracks(store, "train") == TrackSummary(
        bodies_per_frame=(0, 1, 2),
        track_frames=(1, 2, 5),
        tracks=5,
        entries=3,
        exits=3,
        gaps=2,
        gap_frames=3,
        longest_gap=2,
        steps=1 + 4 + 1,
        typical_step=pytest.approx(np.sqrt(9 / 6)),
        largest_step=3.0,
    )
    assert list(track_lines(store)) == [
        "train: 0 to 2 bodies in a frame, median 1; 5 tracks of 1 to 5 frames, median 2; 3 begin and 3 end within their trajectory",
        "train: 2 gaps in tracks, 3 frames, the longest 2",
        "train: 6 steps of a body, typically 1.225 m long (2.449 m/s), the longest 3",
    ]


def test_bodies_that_are_always_there_need_no_words(tmp_path):
    store = store_of(tmp_path / "a.zarr", [[0, 1], [2, 3]])
    assert summarise_tracks(store, "train") is None
    assert list(track_lines(store)) == []
