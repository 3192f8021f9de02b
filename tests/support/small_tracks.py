"""Made-up tables of tracks: walkers who come and go, one row per detection."""

from __future__ import annotations

import numpy as np
import pandas as pd


def walkers(*, tracks: int = 12, length: int = 15, spread: int = 60, every: int = 1, first: int = 3, seed: int = 0) -> pd.DataFrame:
    """Make a table frame, id, x, y in the order of the frames; numbers have three digits, so that text holds them exactly.

    Track k is there from a random frame on for about `length` frames, every fourth with a hole in the middle.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for track in range(tracks):
        frames = rng.integers(spread) + np.arange(max(2, rng.poisson(length)))
        path = rng.uniform(-5, 5, 2) + np.cumsum(rng.normal(0.1, 0.2, (len(frames), 2)), axis=0)
        part = pd.DataFrame({"frame": first + every * frames, "id": track + 1, "x": path[:, 0].round(3), "y": path[:, 1].round(3)})
        parts.append(part.drop(index=len(part) // 2) if track % 4 == 3 else part)
    return pd.concat(parts).sort_values(["frame", "id"], ignore_index=True)


def detections(store) -> pd.DataFrame:
    """List all bodies that are there in a store, in columns frame, id, x, y[, z], in the order of frames and ids; `every` must be 1."""
    found = []
    for split in store.splits:
        position = store.spec.get(store.read(split), "position")
        data = store.dataset(split)
        trajectory, time, body = np.nonzero(~np.isnan(position[..., 0]))
        axes = dict(zip("xyz", position[trajectory, time, body].T, strict=False))
        frame = data["first_frame"].values[trajectory] + time
        found.append(pd.DataFrame({"frame": frame, "id": data["body_id"].values[trajectory, body]} | axes))
    return pd.concat(found).sort_values(["frame", "id"], ignore_index=True)
