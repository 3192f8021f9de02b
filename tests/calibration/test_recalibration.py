"""Recalibration mends a wrong ensemble on new data and leaves a right one alone. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from epns_pyro.calibration import recalibration as r
from epns_pyro.calibration.known import KNOWN, KnownForecaster
from epns_pyro.calibration.verdicts import Word
from epns_pyro.errors import DataError

SCALARS = ["level", "count"]


def drawn(forecaster: KnownForecaster, n: int, seed: int, steps: int = 3) -> tuple[xr.Dataset, xr.Dataset]:
    forecast, truth = forecaster.draw(np.random.default_rng(seed), trajectories=n, members=59, steps=steps)
    return forecast[SCALARS], truth[SCALARS]


@pytest.mark.parametrize("kind", ["over-dispersed", "under-dispersed", "biased", "perfect"])
def test_mended_intervals_cover_new_trajectories(kind):
    compared = r.compare(r.fit(*drawn(KNOWN[kind], 300, 0)), *drawn(KNOWN[kind], 1500, 1))
    level = compared.sel(observable="level")
    before, after = (level["coverage"].sel(stage=stage) for stage in ("before", "after"))
    # what is left: the conformal quantile of 300 trajectories, and the count of 1,500
    error = np.sqrt(level["level"] * (1 - level["level"]) * (1 / 300 + 1 / 1500))
    assert (np.abs(after - level["level"]) < 4.9 * error + 0.01).all()
    score = level["interval_score"].mean(("lead_time", "level"))
    if kind == "perfect":
        assert score.sel(stage="after") < 1.02 * score.sel(stage="before")
        assert np.abs(level["width"].sel(stage="after") / level["width"].sel(stage="before") - 1).max() < 0.15
    else:
        assert np.abs(before - level["level"]).mean() > 4 * np.abs(after - level["level"]).mean()
        assert score.sel(stage="after") < 0.95 * score.sel(stage="before")


def test_one_level_is_as_among_others():
    calibration, test = drawn(KNOWN["biased"], 100, 0), drawn(KNOWN["biased"], 50, 1)
    one = r.compare(r.fit(*calibration, levels=[0.9]), *test)
    among = r.compare(r.fit(*calibration, levels=[0.5, 0.9]), *test).sel(level=[0.9])
    for name in ("coverage", "width", "interval_score"):
        xr.testing.assert_allclose(one[name].sel(stage="before"), among[name].sel(stage="before"))
    alpha, intervals = 0.1, r.apply(r.fit(*calibration, levels=[0.9]), test[0]).sel(observable="level").isel(level=0)
    low, high, y = intervals["lower"], intervals["upper"], test[1]["level"].values[:, 1:]
    expected = (high - low + 2 / alpha * (np.maximum(low - y, 0) + np.maximum(y - high, 0))).mean("trajectory")
    found = one["interval_score"].sel(observable="level", stage="after").isel(level=0)
    np.testing.assert_allclose(found, expected)


def test_the_promise_holds_on_average_over_calibration_sets_of_any_size():
    narrow, hits, trials = KnownForecaster(Word.OVER_CONFIDENT, Word.OVER_CONFIDENT, spread=0.5), 0, 0
    for seed in range(150):
        learnt = r.fit(*drawn(narrow, 39, 2 * seed, steps=1), levels=[0.95])
        intervals = r.apply(learnt, forecast := drawn(narrow, 20, 2 * seed + 1, steps=1)[0])
        y = drawn(narrow, 20, 2 * seed + 1, steps=1)[1]["level"].values[:, 1]
        one = intervals.sel(observable="level").isel(lead_time=0, level=0)
        inside = (one["lower"].values <= y) & (y <= one["upper"].values)
        hits, trials = hits + inside.sum(), trials + len(y)
    assert forecast.sizes["sample"] == 59
    assert hits / trials > 0.95 - 4.9 * np.sqrt(0.05 * 0.95 * (1 / trials + 1 / (150 * 39)))


def test_discrete_observables_keep_at_least_their_promise():
    compared = r.compare(r.fit(*drawn(KNOWN["under-dispersed"], 300, 0)), *drawn(KNOWN["under-dispersed"], 1500, 1))
    count = compared.sel(observable="count", stage="after")
    assert (count["coverage"] > count["level"] - 4.9 * np.sqrt(0.25 * (1 / 300 + 1 / 1500))).all()


def test_intervals_are_nested_and_ends_in_order():
    intervals = r.apply(r.fit(*drawn(KNOWN["biased"], 60, 0)), drawn(KNOWN["biased"], 40, 1)[0])
    assert (intervals["lower"] <= intervals["upper"]).all()
    assert (intervals["lower"].diff("level") <= 0).all()
    assert (intervals["upper"].diff("level") >= 0).all()


def test_each_lead_time_and_observable_is_mended_by_itself():
    forecast, truth = drawn(KNOWN["perfect"], 400, 0)
    forecast = forecast.copy(deep=True)
    centre = forecast["level"].mean("sample")
    forecast["level"] = xr.where(forecast["time"] > 1.2, centre + 0.5 * (forecast["level"] - centre), forecast["level"]).transpose(
        "sample", "trajectory", "time"
    )
    learnt = r.fit(forecast, truth).sel(level=0.9)
    assert (np.abs(learnt["widen_low"].sel(observable="count")) < 0.15).all()
    assert (np.abs(learnt["widen_low"].sel(observable="level", lead_time=[0.5, 1.0])) < 0.15).all()
    assert learnt["widen_low"].sel(observable="level", lead_time=1.5) > 0.3


def test_what_is_learnt_survives_storage_bit_for_bit(tmp_path):
    learnt = r.fit(*drawn(KNOWN["biased"], 60, 0))
    learnt.to_netcdf(tmp_path / "recalibration.nc", engine="h5netcdf")
    forecast = drawn(KNOWN["biased"], 10, 1)[0]
    with xr.open_dataset(tmp_path / "recalibration.nc", engine="h5netcdf") as stored:
        xr.testing.assert_identical(r.apply(stored.load(), forecast), r.apply(learnt, forecast))


def test_a_collapsed_ensemble_can_still_be_mended():
    forecast, truth = (x.copy(deep=True) for x in drawn(KNOWN["perfect"], 60, 0))
    forecast["level"] = forecast["level"].isel(sample=0).drop_vars("sample", errors="ignore").expand_dims(sample=59).copy()
    learnt = r.fit(forecast, truth)
    inside = r.compare(learnt, forecast, truth).sel(observable="level", stage="after")["coverage"]
    assert (inside >= inside["level"]).all()


def test_sentences_say_before_and_after():
    said = r.sentences(r.compare(r.fit(*drawn(KNOWN["under-dispersed"], 300, 0)), *drawn(KNOWN["under-dispersed"], 500, 1)))
    found = re.fullmatch(
        r"90% intervals cover (\d+)% before and (\d+)% after recalibration on average over 3 lead times, "
        r"with average deviations of ([\d.]+) and ([\d.]+) points; worst after it "
        r"(\d+)% \(\d+-\d+\) at [\d.]+ yr; interval score \d+% better",
        said["level"],
    )
    before, after, off_before, off_after, worst = map(float, found.groups())
    assert before < 80 < after
    assert off_after < 4 < off_before
    assert abs(worst - 90) >= off_after - 0.5


def test_sentences_average_over_lead_times_and_pick_none_from_before():
    coverage = np.array([[0.70, 0.98, 0.96], [0.90, 0.92, 0.85]])[:, None, :, None]  # stage, observable, lead_time, level
    dims, names = ("stage", "observable", "lead_time", "level"), ("coverage", "coverage_lower", "coverage_upper", "interval_score")
    comparison = xr.Dataset(
        {name: (dims, coverage) for name in names},
        coords={
            "stage": ["before", "after"],
            "observable": ["x"],
            "lead_time": ("lead_time", [1.0, 2.0, 3.0], {"units": "T"}),
            "level": [0.9],
        },
    )
    assert r.sentences(comparison)["x"] == (
        "90% intervals cover 88% before and 89% after recalibration on average over 3 lead times, with average deviations of "
        "11.3 and 2.3 points; worst after it 85% (85-85) at 3 T; interval score 1% worse"
    )
    coverage[:, :, 2] = np.nan  # nobody is left
    assert "worst after it 92% (92-92) at 2 T" in r.sentences(comparison.copy(data={name: coverage for name in names}))["x"]


def test_too_few_trajectories_and_unknown_variables_are_refused():
    with pytest.raises(DataError, match="'level': 95% intervals need 39 trajectories, found 38"):
        r.fit(*drawn(KNOWN["perfect"], 38, 0))
    assert r.fit(*drawn(KNOWN["perfect"], 39, 0))["trajectories"].min() == 39
    learnt = r.fit(*drawn(KNOWN["perfect"], 50, 0))
    with pytest.raises(DataError, match="no variable 'count', which the recalibration knows"):
        r.apply(learnt, drawn(KNOWN["perfect"], 5, 0)[0][["level"]])


def test_conformal_ranks_are_exact():
    quantile, n = r._conformal_quantile(np.arange(1.0, 20.0)[:, None], 0.9, "x")
    assert (quantile[0], n[0]) == (19.0, 19)
    quantile, _ = r._conformal_quantile(np.arange(1.0, 100.0)[:, None], 0.9, "x")
    assert quantile[0] == 95.0
    assert stats.beta(95, 5).mean() == pytest.approx(0.95)  # coverage of the 95th of 99 order statistics


def test_stretches_of_one_recording_count_as_what_they_are_worth():
    """60 stretches in runs of 4 alike are worth about 15: too few for 90% intervals, and coverage is known less well."""
    forecast, truth = drawn(KNOWN["perfect"], 15, 0)
    forecast, truth = (data.isel(trajectory=np.repeat(np.arange(15), 4)) for data in (forecast, truth))
    along = {"recording": ("trajectory", np.zeros(60, int)), "order": ("trajectory", np.arange(60))}
    assert r.independent(forecast, truth) == 60
    assert r.independent(forecast, truth.assign_coords(along)) < 19
    r.fit(forecast, truth, levels=[0.8, 0.9])
    with pytest.raises(DataError, match=r"90% intervals need 19 trajectories, found \d+"):
        r.fit(forecast, truth.assign_coords(along), levels=[0.9])
    learnt = r.fit(*drawn(KNOWN["perfect"], 100, 1), levels=[0.5, 0.8])
    wide, narrow = (r.compare(learnt, forecast, data) for data in (truth.assign_coords(along), truth))
    widths = [(one["coverage_upper"] - one["coverage_lower"]).mean() for one in (wide, narrow)]
    assert widths[0] > 1.4 * widths[1]
