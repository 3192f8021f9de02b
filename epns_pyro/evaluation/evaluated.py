"""Reading the files in RUN/evaluation/; any of them may be missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from epns_pyro.errors import DataError
from epns_pyro.evaluation.record import EvaluationRecord

GROUPS = {"observables": "observable", "fields": "field", "labels": ""}  # of diagnostics.nc, with the dim that lists their quantities
# The variable that figures draw from a file, and its dims.
DRAWN = {
    "fans": ("value", {"source", "initial_state", "observable", "time", "quantile"}),
    "stability": ("alive", {"source", "time"}),
    "pair_law": ("learned", {"kind", "distance", "quantile"}),
    "recalibration": ("widen_low", {"observable", "lead_time", "level"}),
}
NOT_SHOWN = {"diagnostics", "inference_data"}  # the first is read by group, the second is for ArviZ


@dataclass(frozen=True)
class Subject:
    """One quantity that was tested, with its diagnostics over lead time.

    Parameters
    ----------
    group : {"observables", "fields", "labels"}
    name, label, unit : str
    data : Dataset, (lead_time, ...)
    """

    group: str
    name: str
    label: str
    unit: str
    data: xr.Dataset

    @property
    def lead_time(self) -> np.ndarray:
        return self.data["lead_time"].values


@dataclass(frozen=True)
class Evaluated:
    """The files of an evaluation: its record, the groups of diagnostics.nc, and other files by name; any of them may be missing."""

    record: EvaluationRecord
    groups: dict[str, xr.Dataset] = field(default_factory=dict)
    files: dict[str, xr.Dataset] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Evaluated:
        """Read a folder.

        Raises
        ------
        DataError
            If there is no evaluation, or not one that this version can read.
        """
        record = EvaluationRecord.read(folder)
        groups = {name: data for name in GROUPS if (data := _load(folder / "diagnostics.nc", name)) is not None}
        paths = sorted(path for path in folder.glob("*.nc") if path.stem not in NOT_SHOWN)
        files = {path.stem: _checked(path, data) for path in paths if (data := _load(path)) is not None}
        return cls(record, groups, files)

    @property
    def time_unit(self) -> str:
        return self.record.run.time_unit

    @property
    def level(self) -> float | None:
        """Exact level of the intervals called 90%: with few members it is lower, e.g. 80% with 9; None without intervals."""
        shown = (s.data["nominal"] for s in self.subjects("observables", "fields") if "coverage" in s.data)
        return next((float(nominal.sel(level=0.9, method="nearest")) for nominal in shown), None)

    def about(self, subject: Subject | None) -> Evaluated:
        """Return the diagnostics and files of one quantity, or with None those of no single quantity. The record stays whole."""
        groups, files = {}, {}
        if subject is not None:
            data, dim = self.groups[subject.group], GROUPS[subject.group]
            groups = {subject.group: data.sel({dim: [subject.name]}) if dim else data}
        for name, data in self.files.items():
            if "observable" not in data.dims:
                if subject is None:
                    files[name] = data
            elif subject is not None and subject.group == "observables" and subject.name in data["observable"]:
                files[name] = data.sel(observable=[subject.name])
        return Evaluated(self.record, groups, files)

    def subjects(self, *groups: str) -> Iterator[Subject]:
        """Iterate over the tested quantities, of the given groups or of all."""
        for group, dim in GROUPS.items():
            if group not in self.groups or (groups and group not in groups):
                continue
            data = self.groups[group]
            if not dim:
                judged = self.record.verdicts.get(group)  # figures use the name that the verdict uses
                yield Subject(group, group, judged[0].subject if judged else "label image", "", data)
                continue
            for name in data[dim].values:
                one = data.sel({dim: name})
                label, unit = (str(one[key].item()) if key in one.coords else default for key, default in (("label", name), ("unit", "")))
                yield Subject(group, str(name), label, unit, one)


def _checked(path: Path, data: xr.Dataset) -> xr.Dataset:
    """Return the content of a file if it has the variable that the figures show."""
    name, dims = DRAWN.get(path.stem, ("", set()))
    if name and (name not in data or set(data[name].dims) != dims or not all(data.sizes.values())):
        found = f"{name} with {', '.join(map(str, data[name].dims))}" if name in data else ", ".join(map(str, data.data_vars)) or "nothing"
        raise DataError(
            f"{path}: expected {name} with the dims {', '.join(sorted(dims))}, none empty; found {found}: run epns-pyro evaluate again"
        )
    return data


def _load(path: Path, group: str | None = None) -> xr.Dataset | None:
    """Load a file or a group of it; None where there is none."""
    if not path.is_file():
        return None
    try:
        return xr.load_dataset(path, group=group, engine="h5netcdf", decode_times=False)  # keep a time unit such as "days" as text
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:  # raised by HDF5 and xarray on damaged files
        if group is not None and "group not found" in str(error):
            return None
        words = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable netCDF file ({words}): run epns-pyro evaluate again") from None
