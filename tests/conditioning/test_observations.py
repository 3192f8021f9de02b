"""Observations are built from arrays and files, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from epns_pyro.conditioning.observations import InitialNormal, Observations, read_observations
from epns_pyro.durations import with_duration
from epns_pyro.errors import ConfigError, DataError, ShapeError
from epns_pyro.state import Field, StateSpec
from epns_pyro.systems import CellsConfig, NBodyConfig

SPEC = NBodyConfig().build().spec
RNG = np.random.default_rng(0)
POSITION = RNG.normal(size=(5, 3, 3))
STATES = SPEC.pack(mass=np.ones((5, 3)), position=POSITION, velocity=RNG.normal(size=(5, 3, 3)))


def dataset(**changes: xr.DataArray | None) -> xr.Dataset:
    position = xr.DataArray(POSITION[[2, 4]], dims=("time", "body", "space"), coords={"time": [0.2, 0.4]}, attrs={"noise": 0.1})
    variables = {
        "position": position,
        "mass": xr.DataArray(np.ones(3), dims="body"),
        "initial_position": xr.DataArray(POSITION[0], dims=("body", "space")),
        "initial_velocity": xr.DataArray(STATES[0, :, SPEC.slice("velocity")], dims=("body", "space"), attrs={"noise": 0.5}),
    }
    return xr.Dataset({name: value for name, value in (variables | changes).items() if value is not None})


def read(data: xr.Dataset, tmp_path: Path, **noise: float):
    data.to_netcdf(tmp_path / "seen.nc", engine="h5netcdf")
    return read_observations(tmp_path / "seen.nc", SPEC, frame_dt=0.1, noise=noise)


def test_fields_go_to_their_channels():
    noise = np.linspace(0.1, 0.3, 5)[:, None, None]
    observations = Observations.from_fields(SPEC, {"position": POSITION}, {"position": noise})
    assert observations.values.shape == (5, 3, 6)
    assert observations.steps == 4
    np.testing.assert_array_equal(SPEC.get_dynamic(observations.values, "position"), POSITION)
    assert np.isnan(SPEC.get_dynamic(observations.values, "velocity")).all()
    np.testing.assert_array_equal(SPEC.get_dynamic(observations.noise, "position"), np.broadcast_to(noise, POSITION.shape))


def test_named_dimensions_may_be_in_any_order():
    named = xr.DataArray(POSITION, dims=("time", "body", "space")).transpose("space", "time", "body")
    found = Observations.from_fields(SPEC, {"position": named}, {"position": 0.1})
    np.testing.assert_array_equal(SPEC.get_dynamic(found.values, "position"), POSITION)


@pytest.mark.parametrize("sites", [[0, 2], np.array([1, 0, 1]), np.array([True, False])])
def test_sites_are_a_mask_not_numbers(sites):
    with pytest.raises(ShapeError, match=r"sites: expected booleans \(3,\), True where a site is observed"):
        Observations.from_states(SPEC, STATES, {"position": 0.1}, sites=sites)


def test_a_twin_experiment_hides_what_it_is_told_to():
    seen = np.array([True, False, True])
    with pytest.raises(ConfigError, match="every: expected at least 1, found 0"):
        Observations.from_states(SPEC, STATES, {"position": 0.1}, every=0)
    exact = Observations.from_states(SPEC, STATES, {"position": 0.1}, every=2, sites=seen)
    assert exact.frames.tolist() == [2, 4]
    np.testing.assert_array_equal(exact.values[2, seen][:, SPEC.slice("position", among_dynamic=True)], POSITION[2, seen])
    assert np.isnan(exact.values[2, 1]).all()
    noisy = Observations.from_states(SPEC, np.repeat(STATES, 50, 0), {"position": 0.1}, rng=np.random.default_rng(0))
    error = SPEC.get_dynamic(noisy.values, "position")[1:] - np.repeat(POSITION, 50, 0)[1:]
    assert error.std() == pytest.approx(0.1, rel=0.1)


def test_files_keep_what_was_written(tmp_path):
    found = read(dataset(), tmp_path)
    assert found.observations.frames.tolist() == [2, 4]
    assert found.observations.steps == 4
    np.testing.assert_array_equal(SPEC.get_dynamic(found.observations.values, "position")[4], POSITION[4])
    assert isinstance(found.initial, InitialNormal)
    np.testing.assert_array_equal(found.initial.mean, STATES[0])
    scale = found.initial.flat_scale(SPEC)
    assert (SPEC.get_dynamic(scale, "position") == 0).all()
    assert (SPEC.get_dynamic(scale, "velocity") == 0.5).all()
    assert (read(dataset(), tmp_path, position=0.7).observations.noise[[2, 4]] >= 0.7).all()
    known = dataset(initial_velocity=dataset()["initial_velocity"].drop_attrs())
    np.testing.assert_array_equal(read(known, tmp_path).initial, STATES[0])
    assert read(dataset(initial_position=None, initial_velocity=None), tmp_path).initial is None
    timed = with_duration(SPEC, 0.1)
    known.to_netcdf(tmp_path / "timed.nc", engine="h5netcdf")
    start = read_observations(tmp_path / "timed.nc", timed, frame_dt=0.1).initial
    np.testing.assert_array_equal(start, timed.pack(**{field.name: SPEC.get(STATES[0], field.name) for field in SPEC.fields}))
    dataset().expand_dims("trajectory").to_zarr(tmp_path / "seen.zarr", consolidated=False)
    again = read_observations(tmp_path / "seen.zarr", SPEC, frame_dt=0.1)
    np.testing.assert_array_equal(again.observations.values, found.observations.values)


def test_one_observed_frame_is_enough(tmp_path):
    assert read(dataset().isel(time=[0]), tmp_path).observations.frames.tolist() == [2]


GOOD = dataset()


@pytest.mark.parametrize(
    ("data", "noise", "message"),
    [
        (dataset(position=None), {}, "seen.nc: holds none of the fields position, velocity, found mass"),
        (dataset(position=GOOD["position"].drop_attrs()), {}, "'position' has no attribute 'noise'"),
        (GOOD, {"velocity": 1.0}, "a noise is given for 'velocity', which is not observed"),
        (GOOD, {"position": 0.0}, "every measured number needs a finite noise > 0, found 0: give a small noise"),
        (GOOD.assign_coords(time=[0.2, 0.43]), {}, "time 0.43 is not a whole number of model steps of 0.1"),
        (GOOD.assign_coords(time=[0.4, 0.2]), {}, "the coordinate .time. does not increase at frame 1"),
        (GOOD, {"position": 1e-300}, r"the noise must be 1e-15 to 1e\+15, so that its square can be computed, found 1e-300"),
        (GOOD, {"position": 1e20}, r"found 1e\+20"),
        (
            dataset(position=GOOD["position"].assign_attrs(noise="small")),
            {},
            "'noise' of 'position': expected a number, found",
        ),
        (dataset(position=GOOD["position"].astype(str).assign_attrs(noise=1.0)), {}, "variable 'position': expected numbers, found"),
        (dataset(position=1e300 * GOOD["position"].assign_attrs(noise=1.0)), {"position": 1.0}, "field 'position' holds values up to"),
        (GOOD.assign_coords(time=[0.2, np.nan]), {}, "the coordinate 'time' holds NaN or infinite values"),
        (GOOD.assign_coords(time=[0.2, np.inf]), {}, "the coordinate 'time' holds NaN or infinite values"),
        (GOOD.assign_coords(time=[0.2, 1e8]), {}, r"time 1e\+08 is 1e\+09 model steps of 0\.1 from the start: expected at most 100000"),
        (GOOD.assign_coords(time=[-1e300, 0.2]), {}, "model steps of"),
        (GOOD.assign_coords(time=[0.2, 0.2]), {}, "does not increase at frame 1"),
        (GOOD.assign_coords(time=["a", "b"]), {}, "the coordinate 'time' holds no numbers"),
        (GOOD.assign_coords(time=np.array(["2026-01-01", "2026-01-02"], "datetime64[ns]")), {}, r"'time' holds dates \('days since 2026"),
        (GOOD.drop_vars("time"), {}, "has no coordinate 'time'"),
        (dataset(mass=None), {}, "the initial state is incomplete: mass is missing"),
        (GOOD.rename(body="planet"), {}, r"'position': expected the dimensions \(time, body, space\) of one trajectory, found"),
    ],
)
def test_files_that_do_not_fit_are_named(data, noise, message, tmp_path):
    with pytest.raises((DataError, ShapeError), match=message):
        read(data, tmp_path, **noise)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.nc: no such file"):
        read_observations(tmp_path / "nowhere.nc", SPEC, frame_dt=0.1)
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(DataError, match="neither a zarr directory nor a netCDF-4 file"):
        read_observations(tmp_path / "text.nc", SPEC, frame_dt=0.1)


@pytest.mark.parametrize(
    ("fields", "noise", "message"),
    [
        ({}, {}, "at least one of the fields position, velocity"),
        ({"positon": POSITION}, {"positon": 1.0}, "did you mean 'position'"),
        ({"mass": POSITION[..., 0]}, {"mass": 1.0}, "no dynamic field 'mass'"),
        ({"position": POSITION}, {}, "the noise of position is missing"),
        ({"position": POSITION}, {"position": np.ones(7)}, r"\(7,\) does not broadcast against \(5, 3, 3\)"),
        ({"position": POSITION}, {"position": -0.1}, "finite noise > 0, found -0.1"),
        ({"position": POSITION}, {"position": np.nan}, "finite noise > 0, found nan"),
        ({"position": POSITION[..., :2]}, {"position": 1.0}, r"expected \(time, body, space\), found \(5, 3, 2\)"),
        ({"position": POSITION[:1]}, {"position": 1.0}, "at least 2 frames"),
        ({"position": POSITION * np.inf}, {"position": 1.0}, "NaN means not observed"),
        ({"position": POSITION, "velocity": POSITION[1:]}, {"position": 1.0, "velocity": 1.0}, "same frames and sites"),
    ],
)
def test_arrays_that_do_not_fit_are_named(fields, noise, message):
    with pytest.raises((DataError, ShapeError), match=message):
        Observations.from_fields(SPEC, fields, noise)


def test_labels_are_refused():
    cells = CellsConfig.small().build().spec
    with pytest.raises(DataError, match="only states of real fields can be conditioned on measurements, and cell holds labels"):
        Observations.from_fields(cells, {"cell": np.zeros((3, 40, 40))}, {"cell": 1.0})
    scalar = StateSpec(fields=(Field("heat", "0e"),), sites=("y", "x"), space=2)
    assert Observations.from_fields(scalar, {"heat": np.zeros((3, 4, 5))}, {"heat": 1.0}).values.shape == (3, 4, 5, 1)
