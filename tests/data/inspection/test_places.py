"""Traps and walls are found in one long recording; walks, with persistence and noise, are left alone at the stated rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from epns_pyro.data import check, open_store
from epns_pyro.data.inspection.places import Places
from epns_pyro.state import Field, StateSpec

SPEC = StateSpec((Field("position", "1o", translates=True),), space=2)
STRETCHES, FRAMES = 150, 20


def said(path: np.ndarray, frames: int = FRAMES) -> list[str]:
    """What is said of a recording (frame, body, space), cut into consecutive trajectories."""
    x, inspector = path.reshape(-1, frames, *path.shape[1:]), Places(SPEC)
    for first in range(0, len(x), 40):
        inspector.look({"position": x[first : first + 40]}, first)
    return [message for _, message in inspector.findings()]


def recording(rng: np.random.Generator, *, pull: float = 0.0, keep: float = 0.0, noise: float = 0.0, bodies: int = 1) -> np.ndarray:
    """Bodies that are pulled to (7, -3), and keep a share of their velocity: (frame, body, space)."""
    centre, speed, frames = np.array([7.0, -3.0]), np.zeros((bodies, 2)), []
    place = centre + rng.normal(size=(bodies, 2))
    for kick in rng.normal(size=(STRETCHES * FRAMES, bodies, 2)):
        speed = keep * speed + kick
        place = place + pull * (centre - place) + speed
        frames.append(place)
    return np.stack(frames) + noise * rng.normal(size=(STRETCHES * FRAMES, bodies, 2))


def arena(rng: np.random.Generator) -> np.ndarray:
    """A body that keeps its direction for a while, in a round room of radius 5 about (7, -3)."""
    place, angle, frames = np.zeros(2), 0.0, []
    for turn in rng.normal(0, 0.3, STRETCHES * FRAMES):
        angle += turn
        place = place + 0.3 * np.array([np.cos(angle), np.sin(angle)])
        place *= min(1.0, 5 / max(np.linalg.norm(place), 1e-9))
        frames.append(place)
    return np.array([7.0, -3.0]) + np.stack(frames)[:, None]


def gaps(rng: np.random.Generator, path: np.ndarray, share: float) -> np.ndarray:
    return np.where(rng.random(path.shape[:2])[..., None] < share, np.nan, path)


@pytest.mark.parametrize(
    "law",
    [{}, {"noise": 3.0}, {"keep": 0.9}, {"keep": 0.99, "bodies": 3}, {"bodies": 4}],
    ids=["walk", "noisy", "persistent", "group", "4"],
)
def test_lawful_motion_is_blamed_at_most_at_the_stated_rate(law):
    """Of 60 recordings at 0.4% more than 3 are blamed with a probability of 1e-4; the seed is fixed."""
    rng = np.random.default_rng(1)
    assert sum(bool(said(recording(rng, **law))) for _ in range(60)) <= 3


@pytest.mark.parametrize("bodies", [1, 3])
def test_a_trap_is_found_with_its_centre(bodies):
    rng = np.random.default_rng(0)
    (message,) = said(gaps(rng, recording(rng, pull=0.05, bodies=bodies), 0.01))
    assert "field 'position' returns to a place along axis 0 and 1" in message
    centre = [float(value) for value in message.split("--centre ")[1].split("`")[0].split(",")]
    np.testing.assert_allclose(centre, [7, -3], atol=0.5)


def test_a_narrow_trap_is_found():
    """Starts are hardly further apart than two frames are."""
    assert "returns to a place along axis 0 and 1" in said(recording(np.random.default_rng(0), pull=0.5))[0]


def test_walls_are_found():
    assert "returns to a place" in said(arena(np.random.default_rng(0)))[0]


def test_few_long_trajectories_are_cut():
    """30 of 100 frames: their halves are stretches enough. A walk is still left alone."""
    rng = np.random.default_rng(0)
    (message,) = said(arena(rng), frames=100)
    assert "returns to a place" in message
    assert "in 50 frames" in message
    middle = [float(value) for value in message.split("the middle of all places, `")[1].split("`")[0].split(",")]
    np.testing.assert_allclose(middle, [7, -3], atol=0.1)
    assert sum(bool(said(recording(rng, keep=0.9, bodies=3), frames=100)) for _ in range(60)) <= 3


def test_axes_speak_together():
    """A weak pull is found twice as often if it acts along both axes: a walk along the other takes its word away."""
    rng = np.random.default_rng(5)
    paths = [recording(rng, pull=0.009) for _ in range(30)]
    both = sum(bool(said(path)) for path in paths)
    one = sum(bool(said(np.stack([path[..., 0], rng.normal(size=path.shape[:2]).cumsum(0)], -1))) for path in paths)
    assert both >= 2 * one
    assert both >= 10


@pytest.mark.parametrize("count", [35, 100])
@pytest.mark.parametrize(
    "law", [{}, {"noise": 3.0}, {"keep": 0.9}, {"keep": 0.99, "bodies": 3}], ids=["walk", "noisy", "persistent", "group"]
)
def test_recordings_of_their_own_are_blamed_at_most_at_the_stated_rate(law, count):
    """Starts may be anywhere, or all close to one place; also pieces of one walk, shuffled, where starts and ends are those of others."""
    rng = np.random.default_rng(2)

    def separate(spread: float) -> np.ndarray:
        pieces = recording(rng, **law).reshape(STRETCHES, FRAMES, -1, 2)[:count]
        return (pieces - pieces[:, :1] + spread * rng.normal(size=(count, 1, 1, 2))).reshape(-1, *pieces.shape[2:])

    def shuffled() -> np.ndarray:
        pieces = recording(rng, **law).reshape(STRETCHES, FRAMES, -1, 2)
        return rng.permutation(pieces)[:count].reshape(-1, *pieces.shape[2:])

    blamed = [bool(said(path)) for _ in range(20) for path in (separate(10.0), separate(0.1), shuffled())]
    assert sum(blamed) <= 3


@pytest.mark.parametrize("law", [{"pull": 0.1}, {"pull": 0.1, "keep": 0.8, "bodies": 3}], ids=["trap", "group"])
def test_a_trap_is_found_in_recordings_of_their_own(law):
    rng = np.random.default_rng(2)
    pieces = rng.permutation(recording(rng, **law).reshape(STRETCHES, FRAMES, -1, 2))[:100]
    assert "returns to a place along axis 0 and 1" in said(pieces.reshape(-1, *pieces.shape[2:]))[0]


def test_bodies_that_move_about_a_common_centre_are_in_no_trap():
    """Two with masses, whose centre of mass is the same in all trajectories: their centroid goes to and fro."""
    rng = np.random.default_rng(0)
    mass, way, phase = rng.uniform(1, 4, (80, 2)), rng.normal(size=(80, 2)), rng.uniform(0, 6, (80, 1, 1))
    between = way[:, None] * np.cos(0.05 * np.arange(FRAMES)[:, None] + phase)
    share = (mass / mass.sum(1, keepdims=True))[:, None, :, None]
    x = np.stack([between, -between], 2) * share[:, :, ::-1] + 1e-3 * rng.normal(size=(80, FRAMES, 1, 2)).cumsum(1)
    for known in (True, False):
        inspector = Places(StateSpec((*SPEC.fields, Field("mass", dynamic=False)) if known else SPEC.fields, space=2))
        inspector.look({"position": x, "mass": mass[:, None]}, 0)
        assert bool(list(inspector.findings())) != known


def test_nothing_is_said_of_bodies_of_which_many_come_and_go():
    rng = np.random.default_rng(0)
    trap = recording(rng, pull=0.1, bodies=3)
    assert said(gaps(rng, trap, 0.2)) == []
    assert said(trap - trap.mean(1, keepdims=True)) == [], "data that are centred on the centroid say nothing of places"


@pytest.mark.parametrize(("declared", "warned"), [("", True), ("symmetry: point\n", False), ("box: [40, 40]\n", False)])
def test_check_names_a_trap_unless_places_are_declared_special(declared, warned, tmp_path):
    x = recording(np.random.default_rng(0), pull=0.1).reshape(STRETCHES, FRAMES, 1, 2)
    for name, part in {"train": x[:120], "val": x[120:130], "test": x[130:]}.items():
        data = xr.Dataset({"position": (("trajectory", "time", "body", "space"), part)})
        data.to_zarr(tmp_path / "x.zarr", group=name, mode="a", consolidated=False)
    fields = "fields:\n  - {name: position, irreps: 1o, translates: true}\n"
    Path(f"{tmp_path / 'x.zarr'}.yaml").write_text(f"frame_dt: 1.0\nspace: 2\n{declared}{fields}")
    messages = [str(finding) for finding in check(open_store(tmp_path / "x.zarr"))]
    assert any("returns to a place" in message for message in messages) == warned
