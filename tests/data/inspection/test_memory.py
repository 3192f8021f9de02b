"""Bodies that go on as they went, or vibrate, are found where positions alone are recorded, and walks without memory are not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from epns_pyro.data import Store, check, open_store
from epns_pyro.data.inspection.memory import Memory
from epns_pyro.state import Field, StateSpec

SPEC = StateSpec((Field("position", "1o", translates=True, unit="m"),), space=2)
SHAPE = (20, 30, 3, 2)  # trajectory, frame, body, space


def said(x: np.ndarray) -> list[str]:
    inspector = Memory(SPEC, SPEC["position"])
    for first in range(0, len(x), 7):
        inspector.look({"position": x[first : first + 7]}, first)
    return [message for _, message in inspector.findings()]


def coasting(rng: np.random.Generator, memory: float, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    velocity = rng.normal(size=shape)
    for t in range(1, shape[1]):
        velocity[:, t] = memory * velocity[:, t - 1] + np.sqrt(1 - memory**2) * velocity[:, t]
    return velocity.cumsum(1)


def held(rng: np.random.Generator) -> np.ndarray:
    """Bodies without inertia, held by a spring."""
    x = rng.normal(size=SHAPE)
    for t in range(1, SHAPE[1]):
        x[:, t] = 0.8 * x[:, t - 1] + 0.6 * x[:, t]
    return x


def erring(rng: np.random.Generator, step: float, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Walks with a drift, recorded with an error of 0.2 per axis."""
    return (0.03 + step * rng.normal(size=shape)).cumsum(1) + 0.2 * rng.normal(size=shape)


def vibrating(rng: np.random.Generator, period: float) -> np.ndarray:
    """Bodies that vibrate around a place, with a period in frames."""
    phase = 2 * np.pi * (np.arange(SHAPE[1])[None, :, None, None] / period + rng.random((SHAPE[0], 1, *SHAPE[2:])))
    return np.sin(phase) + 0.1 * rng.normal(size=SHAPE)


WITHOUT = {
    "a walk": lambda rng: coasting(rng, 0.0),
    "a walk of heavy tails": lambda rng: rng.standard_t(3, size=SHAPE).cumsum(1),
    "a walk in a stream": lambda rng: (rng.normal(size=SHAPE) + 3).cumsum(1),
    "bodies on springs": held,
    "vibrations that frames follow": lambda rng: vibrating(rng, 4.5),
    "bodies that stand still": lambda rng: np.ones(SHAPE),
    "two frames": lambda rng: coasting(rng, 0.0, (20, 2, 3, 2)),
}


@pytest.mark.parametrize("law", WITHOUT)
def test_motion_without_memory_is_not_blamed(law):
    rng = np.random.default_rng(0)
    assert not any(said(WITHOUT[law](rng)) for _ in range(50))


@pytest.mark.parametrize("shape", [SHAPE, (2, 200, 1, 2)], ids=["many trajectories", "one body, two trajectories"])
def test_bodies_that_coast_are_found(shape):
    (message,) = said(coasting(np.random.default_rng(0), 0.9, shape))
    assert "correlation 0.9" in message or "correlation 0.8" in message
    assert "history" in message


def test_bodies_that_coast_and_come_and_go_are_found():
    rng = np.random.default_rng(0)
    x = coasting(rng, 0.7)
    assert said(np.where(rng.random(SHAPE[:3])[..., None] < 0.2, np.nan, x))


@pytest.mark.parametrize("period", [2.2, 2.6, 1.8])
def test_vibrations_faster_than_frames_are_found(period):
    (message,) = said(vibrating(np.random.default_rng(0), period))
    assert "turn back" in message
    assert "record frames closer together" in message


@pytest.mark.parametrize("step", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("shape", [SHAPE, (2, 200, 1, 2)], ids=["many trajectories", "one body, two trajectories"])
def test_errors_of_positions_are_found(step, shape):
    (message,) = said(erring(np.random.default_rng(0), step, shape))
    assert "turn back at once" in message
    assert 0.17 < float(re.search(r"error of about (.*) m per axis", message)[1]) < 0.23
    assert "--noise learn" in message


def test_small_errors_of_positions_say_nothing():
    rng = np.random.default_rng(0)
    assert not any(said(erring(rng, 0.6)) for _ in range(50))


def test_springs_are_not_taken_for_errors():
    """Bodies that return to their places within two or three frames turn back more than once."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.normal(size=SHAPE)
        for t in range(1, SHAPE[1]):
            x[:, t] = 0.4 * x[:, t - 1] + x[:, t]
        assert not said(x)


def write(folder: Path, **dynamic: np.ndarray) -> Store:
    dims = ("trajectory", "time", "body", "space")
    data = xr.Dataset({name: (dims[: values.ndim], values) for name, values in dynamic.items()})
    fields = (*SPEC.fields, *(Field(name, "1o" if dynamic[name].ndim == 4 else "0e") for name in dynamic if name != "position"))
    data.attrs = {"state_spec": StateSpec(fields, space=2).to_json(), "frame_dt": 0.5}
    data.to_zarr(folder / "a.zarr", mode="w", consolidated=False)
    return open_store(folder / "a.zarr")


def test_check_says_so_unless_a_vector_holds_what_is_missing(tmp_path):
    rng = np.random.default_rng(0)
    x, scalar, vector = coasting(rng, 0.9), rng.normal(size=SHAPE[:3]), rng.normal(size=SHAPE)
    for others, expected in (({}, True), ({"size": scalar}, True), ({"heading": vector}, False)):
        found = [str(finding) for finding in check(write(tmp_path, position=x, **others))]
        assert any("go on like the step before" in line for line in found) == expected


def test_check_says_so_also_where_velocities_are_differences(tmp_path):
    write(tmp_path, position=vibrating(np.random.default_rng(0), 2.3))
    differences = Field("velocity", "1o", rate_of="position", differences=True)
    root = zarr.open_group(tmp_path / "a.zarr")
    root.attrs["state_spec"] = StateSpec((*SPEC.fields, differences), space=2).to_json()
    found = [str(finding) for finding in check(open_store(tmp_path / "a.zarr"))]
    assert any("turn back" in line for line in found), found
