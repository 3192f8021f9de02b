"""What `data info` finds, by its words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from epns_pyro.data import check, generate, open_store
from epns_pyro.data.writing import Identity, StoreWriter
from epns_pyro.state import Field, StateSpec
from epns_pyro.systems import NBodyConfig, SetConfig

pytestmark = pytest.mark.filterwarnings("error")

N, FRAMES, BODIES, DT = 6, 12, 3, 0.5
PARTICLES = StateSpec(
    (
        Field("mass", dynamic=False),
        Field("position", irreps="1o", translates=True),
        Field("velocity", irreps="1o", rate_of="position"),
    ),
    space=2,
)
CELLS = StateSpec(
    (Field("cell", kind="label", size=4), Field("type", kind="category", size=3, of="cell", dynamic=False)), sites=("y", "x"), space=2
)


def particles() -> xr.Dataset:
    """Smooth curves, so that velocities match positions."""
    rng = np.random.default_rng(0)
    phase, rate = rng.uniform(0, 6, (2, N, 1, BODIES, 2))
    angle = phase + rate / 12 * DT * np.arange(FRAMES)[:, None, None]
    return xr.Dataset(
        {
            "mass": (("trajectory", "body"), rng.uniform(1, 2, (N, BODIES))),
            "position": (("trajectory", "time", "body", "space"), np.sin(angle)),
            "velocity": (("trajectory", "time", "body", "space"), rate / 12 * np.cos(angle)),
        },
        coords={"time": DT * np.arange(FRAMES)},
        attrs={"state_spec": PARTICLES.to_json(), "frame_dt": DT},
    )


def cells() -> xr.Dataset:
    """Three cells of 2 x 3 pixels that drift by a pixel a frame."""
    image = np.zeros((4, 12), dtype=np.int32)
    image[1:3, :9] = np.repeat([1, 2, 3], 3)
    film = np.stack([np.roll(image, t % 3, axis=1) for t in range(FRAMES)])
    return xr.Dataset(
        {
            "cell": (("trajectory", "time", "y", "x"), np.repeat(film[None], N, 0)),
            "cell_type": (("trajectory", "cell"), np.tile([1, 2, 1], (N, 1)).astype(np.uint8)),
        },
        coords={"time": np.arange(float(FRAMES))},
        attrs={"state_spec": CELLS.to_json(), "frame_dt": 1.0},
    )


def edit(data: xr.Dataset, name: str, index, value) -> xr.Dataset:
    values = data[name].values.copy()
    values[index] = value
    return data.assign({name: (data[name].dims, values)})


def findings(data: xr.Dataset, tmp_path, **groups) -> list[str]:
    for group in ("train", "val", "test"):
        content = groups.get(group, data)
        sizes = {name: content[name].shape for name in content.variables if "trajectory" in content[name].dims}
        chunks = {name: {"chunks": (2, *(max(1, size) for size in shape[1:]))} for name, shape in sizes.items()}
        content.to_zarr(tmp_path / "a.zarr", group=group, mode="a", consolidated=False, zarr_format=3, encoding=chunks)
    return [str(finding) for finding in check(open_store(tmp_path / "a.zarr"))]


@pytest.mark.parametrize("make", [particles, cells])
def test_sound_data_raise_no_finding(make, tmp_path):
    assert findings(make(), tmp_path) == []


def test_generated_data_raise_no_finding(tmp_path):
    sets = {name: SetConfig(trajectories=4, steps=100) for name in ("train", "val", "test")}
    store = generate(NBodyConfig(dt=0.005, sets=sets), tmp_path / "a.zarr")
    assert check(store) == []


def later(data: xr.Dataset) -> xr.Dataset:
    return data.assign_coords(time=data.time.values[::-1])


def gap(data: xr.Dataset) -> xr.Dataset:
    """A recording with a pause; the bodies go on as they went before."""
    time, position = data.time.values + 20 * (np.arange(FRAMES) > 5), data.position.values.copy()
    position[:, 6:] += 10 * (data.velocity.values[:, 5:6] + data.velocity.values[:, 6:7])
    return data.assign_coords(time=time).assign(position=(data.position.dims, position))


CASES = {
    "nan": (
        lambda d: edit(edit(d, "velocity", (4, 3), np.nan), "velocity", (2, 7, 1, 0), np.inf),
        "error: set 'train': field 'velocity': 7 values are NaN or infinite, the first in trajectory 2, frame 7, body 1:",
    ),
    "infinite": (
        lambda d: d.assign(position=d.position * np.inf),
        "error: set 'train': field 'position': 432 values are NaN or infinite, the first in trajectory 0, frame 0, body 0:",
    ),
    "nan static": (
        lambda d: edit(d, "mass", (3, 2), np.nan),
        "error: set 'train': field 'mass': 1 values are NaN or infinite, the first in trajectory 3, frame 0, body 2:",
    ),
    "dtype": (
        lambda d: d.assign(mass=d.mass.astype(complex)),
        "error: set 'train': field 'mass': expected real numbers, found dtype",
    ),
    "missing": (lambda d: d.rename(velocity="speed"), "error: set 'train': field 'velocity' is missing: "),
    "one frame": (lambda d: d.isel(time=[0]), "error: set 'train': has 1 frame: a step needs at least 2"),
    "clock backwards": (later, "error: set 'train': the coordinate 'time' does not increase at frame 1: sort the frames"),
    "gap": (gap, "warning: set 'train': the longest step lasts 20.5, 41 times the typical one: cut the recording there"),
    "clock fast": (
        lambda d: d.assign_coords(time=2 * d.time.values),
        "error: set 'train': frame_dt is 0.5, but the coordinate 'time' advances by 1 per frame",
    ),
    "constant": (
        lambda d: d.assign(mass=0 * d.mass + 2),
        "warning: set 'train': field 'mass' is constant (2): a model learns nothing from it",
    ),
    "at rest": (
        lambda d: d.assign(position=(d.position.dims, np.broadcast_to(d.position.values[:, :1], d.position.shape))),
        "warning: set 'train': field 'position' never changes from frame to frame: are all frames the same one? If it is a constant of the",
    ),
    "flat": (
        lambda d: edit(edit(d, "position", (..., 1), 0.0), "velocity", (..., 1), 0.0),
        "warning: set 'train': field 'position' is constant along axis 1: is space 1-dimensional?",
    ),
    "fill value": (
        lambda d: edit(edit(d, "position", (4, 3, 1), 9.969209968386869e36), "position", (5, 1), 1e200),
        "error: set 'train': field 'position' holds values up to 1e+200, and training in single precision needs 1e-15 to 1e+15: choose "
        "another unit, so that typical values are near 1, or correct the values (4 values, the first in trajectory 4, frame 3, body 1)",
    ),
    "not seen": (
        lambda d: edit(d.assign(position=d.position + 100), "position", (4, 3, 1), 0.0),
        "warning: set 'train': field 'position': 1 of 216 values lie far outside the rest: at least 97.9 from the median",
    ),
    "exact differences": (
        lambda d: edit(d, "velocity", (slice(None), slice(None, -1)), np.diff(d.position, axis=1) / DT),
        "warning: set 'train': field 'velocity' is exactly the forward difference of 'position', so one follows from the other",
    ),
    "box": (
        lambda d: d.assign(position=(d.position.dims, (d.position.values + 0.3 * np.arange(FRAMES)[:, None, None]) % 3)),
        "warning: set 'train': field 'position': 22 steps along axis 0 are nearly as long as the data are wide, the first to trajectory 0",
    ),
    "units of velocity": (
        lambda d: d.assign(velocity=100 * d.velocity),
        "warning: set 'train': field 'velocity' does not match the change of 'position': in one step it moves by 0.01 times velocity",
    ),
    "bodies in another order": (
        lambda d: d.assign(velocity=(d.velocity.dims, np.roll(d.velocity.values, 1, axis=2))),
        "warning: set 'train': field 'velocity' does not match the change of 'position', of which it explains 12%: are frames and bodies",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_particles(case, tmp_path):
    change, message = CASES[case]
    found = findings(particles(), tmp_path, train=change(particles()))
    assert any(line.startswith(message) for line in found), found
    assert all("'train'" in line for line in found), "the sound sets are blamed"


LABEL_CASES = {
    "negative": (
        lambda d: edit(d, "cell", (3, 5, 0, 0), -1),
        "error: set 'train': field 'cell': labels are negative, first in trajectory 3, frame 5: use 0 for the medium",
    ),
    "float": (
        lambda d: d.assign({"cell": d["cell"].astype(np.float32)}),
        "error: set 'train': field 'cell': a label is a whole number, found dtype float32",
    ),
    "too many": (
        lambda d: edit(edit(d, "cell", (4, 2, 0, 0), 9), "cell", (5, 0, 0, 0), 6),
        "error: set 'train': field 'cell': label 9 is more than the 3 cells declared, first in trajectory 4, frame 2: declare size 10",
    ),
    "empty": (
        lambda d: edit(edit(d, "cell", (2, 11), 0), "cell", (2, 4), 0),
        "error: set 'train': field 'cell': 2 frames are empty, the first is trajectory 2, frame 4: leave such frames out",
    ),
    "no pixels": (
        lambda d: d.isel(x=[]),
        "error: set 'train': field 'cell': the dimension x has no entries: the file is damaged, or nothing was written to it",
    ),
    "jump": (
        lambda d: edit(d, "cell", (1, 6), np.roll(d["cell"].values[1, 6], 6, axis=1)),
        "warning: set 'train': field 'cell': labels jump 4 times, first in trajectory 1, frame 6, label 3: by more than the width",
    ),
    "gap": (
        lambda d: edit(d, "cell", (0, slice(5, 8)), np.where(d["cell"].values[0, 5:8] == 2, 0, d["cell"].values[0, 5:8])),
        "warning: set 'train': field 'cell': labels disappear and come back 1 times, first in trajectory 0, frame 5, label 2: fill the "
        "gaps; "
        "models do not create cells, so the 6 pixels that come back are left out of the likelihood",
    ),
    "birth": (
        lambda d: edit(d, "cell", (0, slice(0, 4)), np.where(d["cell"].values[0, :4] == 2, 0, d["cell"].values[0, :4])),
        "warning: set 'train': field 'cell': labels first appear within a trajectory 1 times, first in trajectory 0, frame 4, label 2: "
        "models do not create cells, so their first 6 pixels are left out of the likelihood, and no forecast contains them; cut "
        "trajectories where",
    ),
    "unused": (
        lambda d: d.assign({"cell": d["cell"].where(d["cell"] != 2, 0)}),
        "warning: set 'train': field 'cell': 1 of 3 declared labels never occur (2): they cost memory and time",
    ),
    "untyped": (
        lambda d: edit(d, "cell_type", (5, 1), 0),
        "error: set 'train': field 'type': 1 cells have no type (0 is that of the medium), the first in trajectory 5, cell 2",
    ),
    "unknown type": (
        lambda d: edit(d, "cell_type", (5, 1), 7),
        "error: set 'train': field 'type': category 7 is outside the declared range 0 to 2, 1 times, the first in trajectory 5",
    ),
    "no types": (lambda d: d.drop_vars("cell_type"), "error: set 'train': field 'cell_type' is missing: "),
}


@pytest.mark.parametrize("case", LABEL_CASES)
def test_labels(case, tmp_path):
    change, message = LABEL_CASES[case]
    found = findings(cells(), tmp_path, train=change(cells()))
    assert any(line.startswith(message) for line in found), found
    assert all("'train'" in line for line in found), "the sound sets are blamed"


def test_what_vanishes_for_good_is_no_gap_and_what_comes_late_is_a_birth(tmp_path):
    data = cells()
    late = edit(data, "cell", (0, slice(0, 4)), np.where(data["cell"].values[0, :4] == 2, 0, data["cell"].values[0, :4]))
    gone = edit(late, "cell", (1, slice(8, None)), np.where(late["cell"].values[1, 8:] == 3, 0, late["cell"].values[1, 8:]))
    assert all("labels first appear within a trajectory 1 times" in line for line in findings(gone, tmp_path))


def test_a_medium_that_is_squeezed_out_is_no_label_that_vanishes(tmp_path):
    data = cells()
    values = data["cell"].values.copy()
    values[:, 5] = np.where(values[:, 5] == 0, 1, values[:, 5])
    assert findings(data.assign({"cell": (data["cell"].dims, values)}), tmp_path) == []


@pytest.mark.parametrize("periodic", [False, True])
def test_a_step_over_the_edge_is_a_jump_only_where_there_is_an_edge(periodic, tmp_path):
    data = cells()
    values = np.where(data["cell"].values == 1, 0, data["cell"].values)
    values[..., 3, :2] = 1
    values[0, 6, 3] = np.roll(values[0, 6, 3], -2)
    spec = replace(CELLS, periodic=periodic)
    found = findings(data.assign({"cell": (data["cell"].dims, values)}).assign_attrs(state_spec=spec.to_json()), tmp_path)
    assert ["labels jump 2 times" in line for line in found] == ([] if periodic else [True, True, True])


def test_cells_that_jump_in_every_frame_are_not_lost_by_the_tracking(tmp_path):
    data = cells()
    places = np.random.default_rng(0).integers(0, data.sizes["x"], size=data["cell"].shape[:2])
    values = np.stack(
        [
            np.stack([np.roll(image, k, axis=1) for image, k in zip(*film, strict=True)])
            for film in zip(data["cell"].values, places, strict=True)
        ]
    )
    (jumps,) = {
        line.partition("; ")[2] for line in findings(data.assign({"cell": (data["cell"].dims, values)}), tmp_path) if "jump" in line
    }
    assert jumps == "frames are far apart for these cells"


def test_missing_and_unfinished_sets(tmp_path):
    writer = StoreWriter(tmp_path / "a.zarr", Identity({"name": "cells"}, CELLS, 1.0))
    image = cells()["cell"].values
    x = CELLS.pack(cell=image, type=np.array([0, 1, 2, 1])[image])
    writer.split("train", 10, FRAMES, image.shape[2:]).append(x)
    found = [str(finding) for finding in check(open_store(tmp_path / "a.zarr"))]
    assert found == [
        "error: there is no set 'val': training cannot be validated: cut a single recording along time into trajectories",
        "error: set 'train': is incomplete, 6 of 10 trajectories: run the command that made the store again to complete it",
        "warning: there is no set 'test': a model cannot be evaluated",
    ]


def test_every_trajectory_is_looked_at_once(walkers):
    calls = []
    check(walkers, progress=lambda *call: calls.append(call))
    assert [call for call in calls if call[1] == call[2]] == [("train", 11, 11), ("val", 3, 3), ("same_init", 6, 6)]
    assert len(calls) == 6 + 2 + 3
