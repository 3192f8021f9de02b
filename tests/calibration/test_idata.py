"""InferenceData: groups and dims that ArviZ expects, written and read back."""

from __future__ import annotations

import arviz
import matplotlib
import numpy as np
import pytest
import xarray as xr

from epns_pyro.calibration.idata import inference_data, write_inference_data
from epns_pyro.calibration.known import KNOWN
from epns_pyro.errors import DataError

matplotlib.use("Agg")
OLD = arviz.__version__.startswith("0.")  # InferenceData; from 1 on xarray's DataTree


@pytest.fixture
def data() -> tuple[xr.Dataset, xr.Dataset]:
    forecast, truth = KNOWN["perfect"].draw(np.random.default_rng(0), trajectories=6, members=15, steps=4)
    forecast["alive"] = (("sample", "trajectory", "time"), np.ones((15, 6, 5), bool))
    return forecast, truth


def group_names(idata) -> set[str]:
    """Names of the groups of InferenceData (ArviZ 0.x) or of a DataTree (1.x)."""
    return set(idata.children) if isinstance(idata, xr.DataTree) else set(idata.groups())


def test_it_is_what_this_arviz_works_on(data):
    assert type(inference_data(*data)) is (arviz.InferenceData if OLD else xr.DataTree)


def test_groups_have_the_dims_of_arviz(data):
    forecast, truth = data
    bound = xr.DataArray(np.arange(6.0), dims="trajectory")
    weights = xr.DataArray(np.random.default_rng(0).normal(size=(64, 6)), dims=("sample", "trajectory"))
    idata = inference_data(forecast, truth, log_likelihood={"iwae": weights}, sample_stats={"energy_jump": forecast["level"]})
    assert group_names(idata) == {"posterior_predictive", "log_likelihood", "sample_stats", "observed_data"}
    assert idata.posterior_predictive["vector"].dims == ("chain", "draw", "trajectory", "time", "component")
    assert idata.posterior_predictive.sizes["draw"] == 15
    assert float(idata.posterior_predictive["time"].min()) > 0  # the initial state is not predicted
    assert idata.observed_data["vector"].dims == ("trajectory", "time", "component")
    assert set(idata.sample_stats.data_vars) == {"alive", "energy_jump"}
    assert "alive" not in idata.posterior_predictive
    assert dict(idata.log_likelihood.sizes) == {"chain": 1, "draw": 64, "trajectory": 6}
    np.testing.assert_array_equal(idata.posterior_predictive["level"].values[0], forecast["level"].values[..., 1:])
    assert inference_data(forecast, truth, log_likelihood={"elbo": bound}).log_likelihood["elbo"].dims == ("chain", "draw", "trajectory")


def test_what_is_written_is_read_back(data, tmp_path):
    idata = inference_data(
        *data, constant_data={"mass": xr.DataArray([1.0, 2.0], dims="body")}, attrs={"seed": 3, "resumed": True, "note": None}
    )
    write_inference_data(idata, tmp_path / "idata.nc")
    back = arviz.from_netcdf(tmp_path / "idata.nc")
    assert list(tmp_path.iterdir()) == [tmp_path / "idata.nc"]
    assert group_names(back) == group_names(idata)
    for name in group_names(idata):
        one, other = (found[name] if OLD else found[name].to_dataset() for found in (back, idata))
        xr.testing.assert_allclose(one, other)
    assert back.posterior_predictive.attrs["seed"] == 3
    assert back.posterior_predictive.attrs["resumed"] == 1
    assert "note" not in back.posterior_predictive.attrs
    assert bool(back.sample_stats["alive"].all())


def test_arviz_functions_work_on_it(data):
    idata = inference_data(*data)
    summary = arviz.summary(idata, group="posterior_predictive", var_names=["level"], coords={"time": 2.0}, kind="stats")
    expected = data[0]["level"].sel(time=2.0).mean("sample")
    np.testing.assert_allclose(summary["mean"], expected, atol=1e-3)
    if OLD:
        assert arviz.plot_ppc(idata, var_names=["level"], num_pp_samples=5, random_seed=0) is not None
    else:
        last = idata.isel(time=-1)
        assert arviz.plot_ppc_dist(last, var_names=["level"], num_samples=5) is not None
        assert arviz.plot_ppc_pit(last, var_names=["level"]) is not None


def test_variables_are_not_changed_by_building(data):
    forecast, truth = data
    before = forecast.copy(deep=True)
    inference_data(forecast, truth, attrs={"seed": 1})
    xr.testing.assert_identical(forecast, before)


def test_what_does_not_belong_together_is_refused(data):
    forecast, truth = data
    with pytest.raises(DataError, match="the truth has no variable 'count', which the forecast has"):
        inference_data(forecast, truth.drop_vars("count"))
    with pytest.raises(DataError, match="variable 'level' has no dim 'sample'"):
        inference_data(truth, truth)
