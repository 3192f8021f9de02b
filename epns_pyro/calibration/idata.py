"""Export of an evaluation as ArviZ InferenceData, for use in notebooks. The only file that uses ArviZ.

Groups: `posterior_predictive` (chain, draw, trajectory, time, ...), `observed_data` (trajectory, time, ...) and, where given,
`log_likelihood`, `sample_stats` and `constant_data`. The ensemble is one chain of independent draws. Time 0, the known initial state,
is left out of the predictive groups, because it is not forecast.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from epns_pyro.errors import DataError, nearest

NOT_PREDICTED = "alive"


def inference_data(
    forecast: xr.Dataset,
    truth: xr.Dataset,
    *,
    log_likelihood: xr.Dataset | Mapping[str, xr.DataArray] | None = None,
    sample_stats: xr.Dataset | Mapping[str, xr.DataArray] | None = None,
    constant_data: xr.Dataset | Mapping[str, xr.DataArray] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Build InferenceData (ArviZ 0.x) or its successor, a DataTree with the same groups (ArviZ 1.x).

    Parameters
    ----------
    forecast : Dataset, (sample, trajectory, time, ...)
        Its variable `alive` goes to the group sample_stats.
    truth : Dataset, (trajectory, time, ...)
        The same variables.
    log_likelihood : Dataset or mapping of str to DataArray, optional
        Nats; with a dim `sample` (importance samples, say) or without one (a bound), which becomes a single draw.
    sample_stats : Dataset or mapping of str to DataArray, optional
        More variables of each member, with a dim `sample`.
    constant_data : Dataset or mapping of str to DataArray, optional
        Conditions of the forecast: static fields, initial states.
    attrs : mapping, optional
        Written to every group; booleans become 0 and 1, None is left out.

    Raises
    ------
    DataError
        If forecast and truth do not hold the same variables, or the forecast has no dim `sample`.
    """
    names = [str(name) for name in forecast.data_vars if name != NOT_PREDICTED]
    for name in names:
        if name not in truth:
            raise DataError(f"the truth has no variable {name!r}, which the forecast has: {nearest(name, map(str, truth.data_vars))}")
        if "sample" not in forecast[name].dims:
            raise DataError(f"forecast: variable {name!r} has no dim 'sample', found {forecast[name].dims}")
    stats = dict(sample_stats or {})
    if NOT_PREDICTED in forecast:
        stats[NOT_PREDICTED] = _predicted(forecast[[NOT_PREDICTED]])[NOT_PREDICTED]
    groups = {
        "posterior_predictive": _draws(_predicted(forecast[names])),
        "observed_data": _predicted(truth[names]),
        "log_likelihood": _draws(xr.Dataset(log_likelihood)) if log_likelihood is not None else None,
        "sample_stats": _draws(xr.Dataset(stats)) if stats else None,
        "constant_data": xr.Dataset(constant_data) if constant_data is not None else None,
    }
    given = {name: _clean(group, attrs or {}) for name, group in groups.items() if group is not None}
    arviz = _arviz()
    if arviz.__version__.startswith("0."):
        return arviz.InferenceData(**given)
    return xr.DataTree.from_dict(given)


def write_inference_data(idata: Any, path: str | Path) -> None:
    """Write InferenceData or a DataTree as netCDF; an existing file is replaced after the new one is complete.

    `arviz.from_netcdf` reads it: ArviZ 0.x as InferenceData, ArviZ 1.x as a DataTree, whichever wrote it.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    idata.to_netcdf(str(partial), engine="h5netcdf")
    partial.replace(path)


def _arviz() -> Any:
    """Import ArviZ where it is needed: that takes a second, which most commands do without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0 at import
        import arviz
    return arviz


def _predicted(data: xr.Dataset) -> xr.Dataset:
    return data.sel(time=data["time"] > 0) if "time" in data.dims else data


def _draws(data: xr.Dataset) -> xr.Dataset:
    """Rename sample to draw, and add a dim for the single chain."""
    variables = {}
    for name, values in data.data_vars.items():
        values = values.rename(sample="draw") if "sample" in values.dims else values.expand_dims("draw")
        variables[name] = values.expand_dims("chain").transpose("chain", "draw", ...)
    out = xr.Dataset(variables)
    return out.assign_coords(chain=[0], draw=np.arange(out.sizes["draw"]))


def _clean(group: xr.Dataset, attrs: Mapping[str, Any]) -> xr.Dataset:
    """Convert attributes of the group and its variables to types that netCDF can store; values are not copied."""

    def plain(raw: Mapping[str, Any]) -> dict[str, Any]:
        return {str(k): int(v) if isinstance(v, bool | np.bool_) else v for k, v in raw.items() if v is not None}

    out = group.copy()
    out.attrs = plain({**group.attrs, **attrs})
    for variable in out.variables.values():
        variable.attrs = plain(variable.attrs)
    return out
