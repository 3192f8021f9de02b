"""Bodies that relax to a fixed centre (Ornstein-Uhlenbeck), observed at any times: a recording whose law is known at every duration."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from epns_pyro.data import Store, open_store
from epns_pyro.data.writing import Identity, StoreWriter
from epns_pyro.durations import with_duration
from epns_pyro.state import Field, StateSpec

RATE, DIFFUSION = 0.7, 0.5  # dx = -RATE x dt + sqrt(2 DIFFUSION) dW
SPEC = StateSpec((Field("position", "1o", unit="um"),), space=2)


def moments(duration: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factor of the mean, and variance per axis, of a step of so long a duration."""
    kept = np.exp(-RATE * duration)
    return kept, DIFFUSION / RATE * (1 - kept**2)


def paths(trajectories: int, durations: np.ndarray, seed: int) -> np.ndarray:
    """Sample exactly from the stationary law on: (trajectory, time, body = 1, space = 2); durations (step,) or (trajectory, step)."""
    rng = np.random.default_rng(seed)
    x = [np.sqrt(DIFFUSION / RATE) * rng.standard_normal((trajectories, 1, 2))]
    for dt in np.broadcast_to(durations, (trajectories, np.shape(durations)[-1])).T:
        kept, variance = (part[:, None, None] for part in moments(dt))
        x.append(kept * x[-1] + np.sqrt(variance) * rng.standard_normal(x[-1].shape))
    return np.stack(x, 1)


def log_prob(x: np.ndarray, x_next: np.ndarray, duration: np.ndarray) -> np.ndarray:
    """True log p(x' | x) of positions (batch, body, space) after durations (batch,): nats, (batch,)."""
    kept, variance = (part[..., None, None] for part in moments(np.asarray(duration, float)))
    terms = -0.5 * (x_next - kept * x) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    return terms.sum((-2, -1))


def make_store(path: Path, *, steps: int = 60, sizes: dict[str, int] | None = None, uneven: bool = False, frame_dt: float = 0.2) -> Store:
    """Write recordings with the sets train, val and test; with `uneven` every step has its own duration, stored beside."""
    spec = with_duration(SPEC, frame_dt) if uneven else SPEC
    config = {"name": "recorded", "spec": {"fields": [f.__dict__ for f in spec.fields], "space": 2}, "frame_dt": frame_dt, "time_unit": "s"}
    writer = StoreWriter(path, Identity(config, spec, frame_dt, "s"))
    for number, (name, count) in enumerate((sizes or {"train": 100, "val": 20, "test": 20}).items()):
        rng = np.random.default_rng((number, 1))
        dt = frame_dt * rng.choice([0.5, 1.0, 3.0], (count, steps)) if uneven else np.full((count, steps), frame_dt)
        values = {"position": paths(count, dt, number)}
        if uneven:
            values["duration"] = np.concatenate([dt, np.full((count, 1), frame_dt)], 1)[..., None]
        writer.split(name, count, steps + 1, (1,)).append(spec.pack(**values))
    writer.finish()
    return open_store(path)
