"""Reading RUN/evaluation/: whatever of it is there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from epns_pyro.errors import DataError
from epns_pyro.plain import read_json

FORMAT, VERSION = "epns-pyro evaluation", 1
GROUPS = {"observables": "observable", "fields": "field", "labels": ""}  # of diagnostics.nc, with the dim that lists their subjects
FILES = ("fans", "stability", "examples", "recalibration")


@dataclass(frozen=True)
class Subject:
    """One thing that was judged, with its diagnostics over lead time.

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
    """The files of an evaluation: metrics.json, the groups of diagnostics.nc, and other files by name; any of them may lack."""

    metrics: dict[str, Any]
    groups: dict[str, xr.Dataset]
    files: dict[str, xr.Dataset]

    @classmethod
    def read(cls, folder: Path) -> Evaluated:
        """Read a folder.

        Raises
        ------
        DataError
            If there is no evaluation, or not one that this version reads.
        """
        path, again = folder / "metrics.json", f"epns-pyro evaluate {shlex.quote(str(folder.parent))} makes it"
        if not folder.parent.is_dir():
            raise DataError(f"{folder.parent}: no such run: epns-pyro train --out {shlex.quote(str(folder.parent))} makes one")
        if not path.is_file():
            raise DataError(f"{folder}: no evaluation there: {again}")
        try:
            metrics = read_json(path)
        except DataError as error:
            raise DataError(f"{error}: {again} anew") from None
        if not isinstance(metrics, dict) or metrics.get("format") != FORMAT or metrics.get("version") != VERSION:
            raise DataError(f"{path}: expected {FORMAT!r} of version {VERSION}, which this version reads: {again} anew")
        groups = {name: data for name in GROUPS if (data := _load(folder / "diagnostics.nc", name)) is not None}
        files = {name: data for name in FILES if (data := _load(folder / f"{name}.nc")) is not None}
        return cls(metrics, groups, files)

    @property
    def run(self) -> dict[str, Any]:
        return self.metrics.get("run") or {}

    @property
    def time_unit(self) -> str:
        return str(self.run.get("time_unit") or "")

    @property
    def level(self) -> float | None:
        """The level that 90% intervals of this ensemble really have: few members promise less, 9 of them 80%; None without intervals."""
        shown = (s.data["nominal"] for s in self.subjects("observables", "fields") if "coverage" in s.data)
        return next((float(nominal.sel(level=0.9, method="nearest")) for nominal in shown), None)

    def subjects(self, *groups: str) -> Iterator[Subject]:
        """Iterate over what was judged, in the groups named or in all of them."""
        for group, dim in GROUPS.items():
            if group not in self.groups or (groups and group not in groups):
                continue
            data = self.groups[group]
            if not dim:
                judged = (self.metrics.get("verdicts") or {}).get(group) or [{}]  # figures call it what its verdict does
                yield Subject(group, group, str(judged[0].get("subject", "label image")), "", data)
                continue
            for name in data[dim].values:
                one = data.sel({dim: name})
                label, unit = (str(one[key].item()) if key in one.coords else default for key, default in (("label", name), ("unit", "")))
                yield Subject(group, str(name), label, unit, one)


def _load(path: Path, group: str | None = None) -> xr.Dataset | None:
    """Load a file or a group of it; None where there is none."""
    if not path.is_file():
        return None
    try:
        return xr.load_dataset(path, group=group, engine="h5netcdf")
    except (OSError, KeyError) as error:
        if group is not None and "group not found" in str(error):
            return None
        raise DataError(f"{path}: not a netCDF file that can be read ({error}): epns-pyro evaluate makes it anew") from None
