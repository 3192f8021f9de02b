"""Diagnostics per lead time: the numbers are those that they say they are. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from epns_pyro.calibration import diagnostics as d
from epns_pyro.calibration import scores
from epns_pyro.calibration.bands import rank_law
from epns_pyro.calibration.known import KNOWN
from epns_pyro.calibration.measurements import observable_values
from epns_pyro.calibration.pit import location
from epns_pyro.errors import DataError

SCALARS = ["level", "count"]


def drawn(kind: str = "perfect", seed: int = 0, trajectories: int = 80, members: int = 30, steps: int = 5):
    return KNOWN[kind].draw(np.random.default_rng(seed), trajectories=trajectories, members=members, steps=steps)


def diagnosed(kind: str = "perfect", **options) -> xr.Dataset:
    forecast, truth = drawn(kind, **options)
    return d.diagnose(forecast[SCALARS], truth[SCALARS], rng=np.random.default_rng(1))


def test_observable_diagnostics_equal_the_arrays_that_they_summarise():
    forecast, truth = drawn()
    values = observable_values(forecast[SCALARS], truth[SCALARS], rng=np.random.default_rng(1))
    found = d.observable_diagnostics(values).sel(observable="count")
    one = values.sel(observable="count").isel(lead_time=2)
    law, at = rank_law(80, 30), found.isel(lead_time=2)
    pit = one["pit"].values
    assert at["p_value"] == pytest.approx(law.p_value(pit))
    left = ((at["ecdf_difference"] < at["band_lower"] - 1e-12) | (at["ecdf_difference"] > at["band_upper"] + 1e-12)).any()
    assert bool(left) == bool(at["p_value"] <= 0.05)
    low, high = stats.binomtest(int(80 * at["coverage"].sel(level=0.9) + 0.5), 80).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose([at["coverage_lower"].sel(level=0.9), at["coverage_upper"].sel(level=0.9)], [low, high])
    assert at["crps_error"] == pytest.approx(one["crps"].values.std(ddof=1) / np.sqrt(80))
    error = one["mean"] - one["truth"]
    assert at["bias"] == pytest.approx(error.mean().item())
    assert at["rmse"] == pytest.approx(np.sqrt((error**2).mean().item()))
    assert at["sharpness"] == pytest.approx(one["width"].mean().item())
    assert at["rank_count"].sum() == 80
    linear = location(values.sel(observable="count")["pit"].values, 30)  # (trajectory, lead_time)
    assert found["pooled_location"] == pytest.approx(linear.mean())
    assert found["pooled_p_location"] == pytest.approx(stats.ttest_1samp(linear.mean(1), 0).pvalue)
    assert (found["trajectories"] == 80).all()
    assert (found["alive"] == 1).all()


@pytest.mark.parametrize(
    ("kind", "shift", "stretch", "ratio"),
    [("perfect", 0, 1, 1), ("biased", -0.6, 1, None), ("over-dispersed", 0, 1 / 1.5, 1.5), ("under-dispersed", 0, None, 0.65)],
)
def test_effects_have_the_size_of_the_defect(kind, shift, stretch, ratio):
    found = diagnosed(kind, trajectories=2000, steps=2).sel(observable="level").isel(lead_time=-1)
    assert abs(found["shift"] - shift) < 4.9 * found["shift_error"] + 0.03
    if stretch:
        assert abs(found["stretch"] - stretch) < 4.9 * found["stretch_error"] + 0.03
    if ratio:
        assert found["spread_skill_lower"] * 0.95 < ratio < found["spread_skill_upper"] * 1.05
    if kind == "under-dispersed":
        assert 1.25 < found["stretch"] < 1 / 0.65  # ranks end with the ensemble, so the effect is cut off


def test_p_values_of_a_perfect_forecaster_are_uniform():
    p = np.array([[diagnosed(seed=s, trajectories=40, steps=1)[key].values.ravel()[0] for key in KEYS] for s in range(100)])
    for column in p.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-6


KEYS = ("p_value", "pooled_p_location", "pooled_p_dispersion")


def test_pooled_tests_know_that_lead_times_of_one_trajectory_depend():
    # twenty copies of one lead time are no more evidence than one
    forecast, truth = drawn(steps=1)
    repeated = [x[["level"]].isel(time=[0, *[1] * 20]).assign_coords(time=np.arange(21.0)) for x in (forecast, truth)]
    many = d.diagnose(*repeated, rng=np.random.default_rng(1), lead_times=np.arange(1.0, 21.0))
    one = d.diagnose(forecast[["level"]], truth[["level"]], rng=np.random.default_rng(1))
    np.testing.assert_allclose(many["pooled_location"], one["pooled_location"])
    np.testing.assert_allclose(many["pooled_p_dispersion"], one["pooled_p_dispersion"])


def test_skill_is_against_each_reference():
    forecast, truth = (x[SCALARS] for x in drawn())
    wide = forecast.copy(deep=True)
    wide["level"] = wide["level"] + np.random.default_rng(2).normal(0, 3, wide["level"].shape)
    found = d.diagnose(forecast, truth, rng=np.random.default_rng(1), references={"itself": forecast, "noisy": wide})
    np.testing.assert_allclose(found["skill"].sel(reference="itself"), 0, atol=1e-12)
    noisy = found.sel(reference="noisy", observable="level")
    assert (noisy["skill"] > 3 * noisy["skill_error"]).all()


def test_the_skill_of_the_variogram_score_sees_wrong_dependence_and_that_of_the_energy_score_hardly():
    forecast, truth = drawn("right in the margins, wrong in dependence", trajectories=200)
    right, _ = drawn(trajectories=200)
    forecast, truth, right = (data[["vector"]] for data in (forecast, truth, right))
    noise = forecast + 3 * np.random.default_rng(5).normal(size=forecast["vector"].shape)
    found = d.diagnose_fields(forecast, truth, rng=np.random.default_rng(1), references={"right": right, "noise": noise})
    found, against = found.isel(field=0, lead_time=-1), found.isel(field=0, lead_time=-1).sel(reference="right")
    y = truth["vector"].values[:, -1]
    score, reference = (scores.variogram_score(x["vector"].values[:, :, -1], y).mean() for x in (forecast, right))
    assert against["variogram_score"] == pytest.approx(score)
    assert against["variogram_skill"] == pytest.approx(1 - score / reference)
    assert against["variogram_skill"] < -4.9 * against["variogram_skill_error"]
    assert against["variogram_skill"] < 4 * against["skill"]
    assert found["variogram_skill"].sel(reference="noise") > 0.5


def test_unknown_truths_count_only_where_they_are_known():
    forecast, truth = (x[SCALARS].copy(deep=True) for x in drawn())
    truth["level"].values[:30, 3] = np.nan
    forecast["level"].values[:, :30, 3] = np.nan  # as of a distance to the next body where there is but one
    forecast["level"].values[:, 79] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = d.diagnose(forecast, truth, rng=np.random.default_rng(1)).sel(observable="level")
    assert found["trajectories"].values.tolist() == [79, 79, 49, 79, 79]
    at, law = found.isel(lead_time=2), rank_law(49, 30)
    values = observable_values(forecast, truth, rng=np.random.default_rng(1))
    known = values["pit"].sel(observable="level").isel(lead_time=2).dropna("trajectory")
    assert at["p_value"] == pytest.approx(law.p_value(known.values))
    np.testing.assert_allclose(at["band_upper"], law.band(0.95).upper - law.level)
    assert np.isfinite(found[["p_value", "crps", "coverage", "shift", "stretch", "spread_skill"]].to_array()).all()
    assert found["alive"].values == pytest.approx([79 / 80, 79 / 80, 49 / 50, 79 / 80, 79 / 80])


def test_field_diagnostics_average_over_components_and_count_trajectories():
    forecast, truth = drawn(trajectories=60)
    found = d.diagnose_fields(forecast, truth, rng=np.random.default_rng(1), vectors={"vector": ("vector",)}).sel(field="vector")
    ensemble, y = forecast["vector"].values[:, :, -1], truth["vector"].values[:, -1]
    rank = (ensemble < y).sum(0)  # (trajectory, component)
    inside = ((rank >= 1) & (rank <= 29)).mean(1)  # 29 of 31 ranks: the level nearest to 95%
    at = found.isel(lead_time=-1).sel(level=0.95)
    assert at["nominal"] == pytest.approx(29 / 31)
    assert at["coverage"] == pytest.approx(inside.mean())
    assert at["coverage_upper"] == pytest.approx(min(inside.mean() + 1.959964 * inside.std(ddof=1) / np.sqrt(60), 1))
    centred = (rank + 0.5) / 31 - 0.5
    linear = (centred / np.sqrt(((np.arange(31) + 0.5) / 31 - 0.5).var())).mean(1)
    assert found["p_location"][-1] == pytest.approx(stats.ttest_1samp(linear, 0).pvalue)
    assert found["joint_p_value"].dims == ("pre_rank", "lead_time")


def test_vectors_of_different_lengths_stand_side_by_side():
    forecast, truth = drawn(trajectories=30)
    both = d.diagnose_fields(
        forecast, truth, rng=np.random.default_rng(1), vectors={"level": ("level",), "all": ("level", "count", "vector")}
    )
    assert np.isfinite(both[["p_location", "coverage", "joint_p_value", "stretch"]].to_array()).all()


def test_pieces_joined_without_their_attributes_are_refused():
    forecast, truth = (x[SCALARS] for x in drawn(trajectories=5))
    values = observable_values(forecast, truth, rng=np.random.default_rng(1))
    with pytest.raises(DataError, match="do not say how many members"):
        d.observable_diagnostics(values.drop_attrs())


def test_diagnostics_can_be_stored(tmp_path):
    found = diagnosed(trajectories=20)
    found.to_netcdf(tmp_path / "diagnostics.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "diagnostics.nc", engine="h5netcdf") as back:
        xr.testing.assert_allclose(back.load(), found)
