"""Measurements per trajectory: labelled, joined from pieces, honest about the dead, strict about input."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from epns_pyro.calibration import measurements as m
from epns_pyro.calibration import scores
from epns_pyro.calibration.known import KNOWN
from epns_pyro.errors import DataError

SCALARS = ["level", "count"]


@pytest.fixture
def data() -> tuple[xr.Dataset, xr.Dataset]:
    return KNOWN["perfect"].draw(np.random.default_rng(0), trajectories=9, members=12, steps=6)


def seeded() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.mark.parametrize("measure", [m.observable_values, m.field_values])
def test_measuring_in_pieces_equals_measuring_at_once(data, measure):
    forecast, truth = data
    if measure is m.observable_values:
        forecast, truth = forecast[SCALARS], truth[SCALARS]
    whole = measure(forecast, truth, rng=seeded(), references={"naive": forecast.isel(sample=slice(3))})
    rng, pieces = seeded(), []
    for part in (slice(0, 2), slice(2, 7), slice(7, 9)):
        some = forecast.isel(trajectory=part)
        naive = some.isel(sample=slice(3))
        pieces.append(measure(some, truth.isel(trajectory=part), rng=rng, references={"naive": naive}))
    xr.testing.assert_allclose(xr.concat(pieces, "trajectory"), whole, rtol=1e-12)


def test_measurements_equal_the_arrays_that_they_stand_for(data):
    forecast, truth = data
    found = m.observable_values(forecast[SCALARS], truth[SCALARS], rng=seeded(), lead_times=[1.0, 3.0])
    ensemble, y = forecast["level"].values[:, :, [2, 6]], truth["level"].values[:, [2, 6]]
    level = found.sel(observable="level").transpose("trajectory", "lead_time", ...)
    np.testing.assert_allclose(level["crps"], scores.crps(ensemble, y))
    np.testing.assert_allclose(level["mean"], ensemble.mean(0))
    np.testing.assert_allclose(level["variance"], ensemble.var(0, ddof=1))
    np.testing.assert_array_equal((level["pit"].values * 13).astype(int), (ensemble < y).sum(0))
    ordered = np.sort(ensemble, axis=0)
    np.testing.assert_allclose(level["width"], ordered[-1] - ordered[0])  # 90% of 12 members: all of them
    assert found.attrs["members"] == 12
    assert (found["label"].values.tolist(), found["unit"].values.tolist()) == (["level", "count"], ["J", ""])
    assert found["discrete"].values.tolist() == [False, True]
    assert found["lead_time"].attrs["units"] == "yr"


def test_dims_may_come_in_any_order(data):
    forecast, truth = data
    one = m.field_values(forecast, truth, rng=seeded())
    other = m.field_values(forecast.transpose("component", "time", "trajectory", "sample"), truth.transpose(), rng=seeded())
    xr.testing.assert_allclose(one, other)


def test_members_that_are_not_alive_are_left_out(data):
    forecast, truth = data
    alive = np.ones((12, 9, 7), bool)
    alive[4:, 3, 5:] = False
    forecast = forecast.copy(deep=True)
    forecast["level"].values[4:, 3, 5:] = 1e9  # a blow-up: still a number
    forecast["vector"].values[4:, 3, 5:] = 1e9
    forecast["alive"] = (("sample", "trajectory", "time"), alive)
    found = m.observable_values(forecast.drop_vars("vector"), truth[SCALARS], rng=seeded(), lead_times=[2.0, 3.0])
    assert found["alive"].sel(observable="level", lead_time=3.0).values.tolist() == [12] * 3 + [4] + [12] * 5
    assert (found["alive"].sel(lead_time=2.0) == 12).all()
    some = forecast[["level"]].isel(sample=slice(4))
    few = m.observable_values(some, truth[["level"]], rng=seeded(), lead_times=[2.0, 3.0])
    at = {"observable": "level", "trajectory": 3, "lead_time": 3.0}
    assert found["crps"].sel(at) == pytest.approx(few["crps"].sel(at).item())
    fields = m.field_values(forecast, truth, rng=seeded())
    assert fields["alive"].sel(field="vector", lead_time=3.0)[3] == 4
    assert float(fields["energy_score"].max()) < 100


def test_an_ensemble_that_died_out_is_unknown_not_an_error(data):
    forecast, truth = (x[SCALARS].copy(deep=True) for x in data)
    forecast["level"].values[:, 2] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = m.observable_values(forecast, truth, rng=seeded()).sel(observable="level", trajectory=2)
    assert (found["alive"] == 0).all()
    assert np.isnan(found[["pit", "crps", "mean", "variance", "width"]].to_array()).all()


def test_vectors_of_different_units_need_scales(data):
    forecast, truth = data
    vectors = {"both": ("level", "vector"), "vector": ("vector",)}
    without = m.field_values(forecast, truth, rng=seeded(), vectors=vectors)
    assert np.isnan(without["energy_score"].sel(field="both")).all()  # J and AU do not add up
    assert np.isfinite(without["energy_score"].sel(field="vector")).all()
    assert np.isfinite(without["joint_pit"]).all()  # ranks have no unit
    scaled = m.field_values(forecast, truth, rng=seeded(), vectors=vectors, scales={"level": 2.0, "vector": 1.0})
    ensemble = np.concatenate([forecast["level"].values[..., -1, None] / 2, forecast["vector"].values[..., -1, :]], -1)
    y = np.concatenate([truth["level"].values[..., -1, None] / 2, truth["vector"].values[..., -1, :]], -1)
    np.testing.assert_allclose(scaled["energy_score"].sel(field="both", lead_time=3.0), scores.energy_score(ensemble, y))


def test_long_vectors_are_thinned_evenly():
    rng = np.random.default_rng(0)
    time = {"time": [0.0, 1.0]}
    forecast = xr.Dataset({"density": (("sample", "trajectory", "time", "y", "x"), rng.normal(size=(4, 3, 2, 20, 30)))}, coords=time)
    truth = xr.Dataset({"density": (("trajectory", "time", "y", "x"), rng.normal(size=(3, 2, 20, 30)))}, coords=time)
    found = m.field_values(forecast, truth, rng=rng)
    assert found.sizes["component"] == m.COMPONENTS


def test_paths_make_lead_times_components(data):
    forecast, truth = data
    paths = m.as_paths(forecast[["level"]], [1.0, 2.0, 3.0])
    assert (paths.sizes["step"], paths["time"].values.tolist()) == (3, [3.0])
    found = m.field_values(paths, m.as_paths(truth[["level"]], [1.0, 2.0, 3.0]), rng=seeded())
    expected = scores.energy_score(forecast["level"].values[..., [2, 4, 6]], truth["level"].values[..., [2, 4, 6]])
    np.testing.assert_allclose(found["energy_score"].squeeze(), expected)


def test_observables_become_a_dataset(data):
    forecast, _ = data
    energy = SimpleNamespace(label="total energy", unit="J", values=forecast["level"].values, discrete=False)
    alive = np.ones(energy.values.shape, bool)
    made = m.observable_dataset({"energy": energy}, forecast["time"].values, time_unit="yr", alive=alive)
    assert made["energy"].dims == ("sample", "trajectory", "time")
    assert made["energy"].attrs == {"label": "total energy", "unit": "J", "discrete": 0}
    assert made["time"].attrs["units"] == "yr"
    energy.values = energy.values[0]
    assert m.observable_dataset({"energy": energy}, forecast["time"].values)["energy"].dims == ("trajectory", "time")


def test_default_lead_times_end_at_the_last_and_leave_out_the_start():
    long = xr.Dataset(coords={"time": np.arange(101) * 0.1})
    np.testing.assert_allclose(m.choose_lead_times(long), np.arange(1, 11))
    np.testing.assert_allclose(m.choose_lead_times(xr.Dataset(coords={"time": [0.0, 1.0, 2.0]})), [1, 2])
    np.testing.assert_allclose(m.choose_lead_times(long, [2.0000000001, 0.1]), [0.1, 2.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, t: (f, t.drop_vars("count")), "the truth has no variable 'count', which the forecast has"),
        (lambda f, t: (f, t.isel(trajectory=slice(4))), "the forecast has 9 entries along 'trajectory', the truth 4"),
        (lambda f, t: (f.isel(sample=0), t), "forecast: variable 'level' has no dim 'sample'"),
        (lambda f, t: (f, t.assign_coords(time=t["time"] + 1)), "the forecast and the truth have different times"),
        (lambda f, t: (f.isel(time=[0]), t.isel(time=[0])), "no time after 0"),
        (lambda f, t: (f[[]], t), "holds no variable"),
    ],
)
def test_what_does_not_belong_together_is_refused(data, change, message):
    forecast, truth = change(*(x[SCALARS] for x in data))
    with pytest.raises(DataError, match=message):
        m.observable_values(forecast, truth, rng=seeded())


def test_unknown_lead_times_and_variables_are_refused(data):
    with pytest.raises(DataError, match=r"lead time 2.7 is not a time after 0 of the forecast \(nearest: 2.5, last: 3\)"):
        m.observable_values(*(x[SCALARS] for x in data), rng=seeded(), lead_times=[2.7])
    with pytest.raises(DataError, match="no variable 'vektor': did you mean 'vector'"):
        m.field_values(*data, rng=seeded(), vectors={"all": ("vektor",)})


def test_scores_of_pairs_take_some_of_many_members_and_ranks_take_all(data, monkeypatch):
    forecast, truth = data
    monkeypatch.setattr(m, "SCORED", 5)
    found = m.field_values(forecast, truth, rng=seeded(), references={"again": forecast})
    fewer = m.field_values(forecast.isel(sample=slice(5)), truth, rng=seeded(), references={"again": forecast.isel(sample=slice(5))})
    for name in ("energy_score", "variogram_score", "energy_score_reference", "variogram_score_reference"):
        np.testing.assert_allclose(found[name], fewer[name])
    monkeypatch.undo()
    whole = m.field_values(forecast, truth, rng=seeded(), references={"again": forecast})
    xr.testing.assert_identical(found[["pit", "joint_pit", "alive"]], whole[["pit", "joint_pit", "alive"]])
    assert not np.allclose(found["energy_score"], whole["energy_score"])
