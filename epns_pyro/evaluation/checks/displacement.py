"""Check: how far are forecast positions from the truth? ADE and FDE, which papers on trajectories quote.

The displacement error of a member is its distance from the truth, mean over the bodies that are there. ADE is its mean over all lead
times, FDE that at the last one. Mean over K members: small only if the ensemble is sharp. Best of K: small if the truth is among them,
however wide it is; neither says whether the uncertainty is right.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np

from epns_pyro.calibration.wording import number
from epns_pyro.evaluation.check import Check, Inputs
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.parts import Section, Table
from epns_pyro.evaluation.record import Displacement, DisplacementRow, HeadlineLine

FEW, MANY = 5, 20  # the two K that papers use
HEAD = (
    "forecaster",
    "ADE, mean",
    "FDE, mean",
    f"ADE, best of {FEW}",
    f"FDE, best of {FEW}",
    f"ADE, best of {MANY}",
    f"FDE, best of {MANY}",
)


class DisplacementCheck(Check[Displacement]):
    key, title, record = "displacement", "displacement errors", Displacement

    def measure(self, inputs: Inputs) -> Displacement | None:
        found, position = inputs.forecasts("test").displacement, inputs.store.spec.position
        if found is None or position is None:
            return None
        found = found.isel(time=slice(1, None))
        rows = tuple(_row(str(name), found.sel(forecaster=name).values) for name in found["forecaster"].values)
        return Displacement(unit=position.unit, steps=found.sizes["time"], trajectories=found.sizes["trajectory"], rows=rows)

    def sections(self, record: Displacement | None, found: Evaluated) -> Iterator[Section]:
        if record is None or not record.rows:
            return
        section = Section(
            "displacement",
            "Displacement errors",
            f"Distance of members from the truth, {record.unit or 'in the unit of the positions'}, mean over bodies, on "
            f"{record.trajectories} forecasts of {record.steps} steps: averaged over lead times (ADE) and at the last (FDE).",
        )
        rows = [(row.name, *(number(value, ".3g") for value in row.values)) for row in record.rows]
        section.items.append(Table(HEAD, rows, frozenset(HEAD[1:])))
        yield section

    def headline(self, record: Displacement) -> Iterator[HeadlineLine]:
        known = {row.name: row for row in record.rows}
        if "model" in known:
            others = ", ".join(f"{name} {row.ade:.3g}/{row.fde:.3g}" for name, row in known.items() if name != "model")
            value = f"{known['model'].ade:.3g}/{known['model'].fde:.3g} {record.unit}".rstrip()
            yield HeadlineLine(label="displacement error, ADE/FDE", value=value, note=others)


def _row(name: str, errors: np.ndarray) -> DisplacementRow:
    """Summarise errors (sample, trajectory, lead time); the best of more members than there are is not known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        average, final = np.nanmean(errors, -1), errors[..., -1]

        def best(of: np.ndarray, count: int) -> float:
            return float(np.nanmean(np.nanmin(of[:count], 0))) if len(of) >= count else math.nan

        return DisplacementRow(
            name=name,
            ade=np.nanmean(average),
            fde=np.nanmean(final),
            ade_best_of_5=best(average, FEW),
            fde_best_of_5=best(final, FEW),
            ade_best_of_20=best(average, MANY),
            fde_best_of_20=best(final, MANY),
        )
