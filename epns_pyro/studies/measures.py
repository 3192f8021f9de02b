"""The numbers of a study: what was measured of each model, its mean and its spread over seeds, and the table as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from epns_pyro.studies.definition import StudyModel
from epns_pyro.studies.judging import Results, parts_of
from epns_pyro.studies.plan import Plan
from epns_pyro.whole import whole

TRUTH = "truth"  # the model of a study that others are measured against


@dataclass(frozen=True)
class Measure:
    """A number of one run.

    Parameters
    ----------
    label : str
        Head of its column.
    form : str
        Format of a number without spread.
    better : {1, -1, 0}
        Whether more is better, less is, or neither.
    part, key : str
        Where it is in the results of a run.
    scale : float
        Factor of the shown number.
    """

    label: str
    form: str
    better: int
    part: str
    key: str
    scale: float = 1.0

    def of(self, parts: Mapping[str, Any]) -> float:
        """Return the number in the results of a run; NaN where it is missing."""
        value = (parts.get(self.part) or {}).get(self.key)
        return math.nan if value is None else float(value) * self.scale


MEASURES: dict[str, Measure] = {
    "elbo": Measure("ELBO", ".2f", 1, "likelihood", "elbo"),
    "iwae": Measure("IWAE", ".2f", 1, "likelihood", "iwae"),
    "gap": Measure("gap to oracle", ".2f", -1, "likelihood", "gap"),
    "path": Measure("whole paths", ".2f", 1, "path", "path"),
    "ks": Measure("D_KS", ".3f", -1, "distances", "ks"),
    "crps": Measure("CRPS", ".2f", -1, "calibration", "relative_crps"),
    "coverage": Measure("coverage, %", ".0f", 0, "calibration", "coverage", 100.0),
    "coverage_error": Measure("coverage error, %", ".0f", -1, "calibration", "coverage_error", 100.0),
    "alive": Measure("plausible, %", ".0f", 1, "long_runs", "alive", 100.0),
    "symmetry": Measure("symmetry error", ".0e", -1, "symmetry", "symmetry"),
    "parameters": Measure("parameters", ",.0f", 0, "cost", "parameters"),
    "steps": Measure("steps", ",.0f", 0, "cost", "steps"),
    "minutes": Measure("minutes", ".1f", 0, "cost", "seconds", 1 / 60),
}


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation of a number over seeds; `error` is the standard error of the mean."""

    mean: float
    spread: float
    error: float
    count: int


@dataclass(eq=False)
class Row:
    """All seeds of one model on one set of training data.

    Parameters
    ----------
    name : str
    model : StudyModel
    trajectories : int
    whole : bool
        Whether it was trained on all data.
    planned : int
        Number of seeds.
    seeds : dict of int to dict
        What was measured, by seed; only complete ones.
    failures : dict of int to str
        Why runs failed, by seed.
    """

    name: str
    model: StudyModel
    trajectories: int
    whole: bool
    planned: int = 0
    seeds: dict[int, dict[str, Any]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def values(self, measure: str) -> np.ndarray:
        """Return the finite values of a measure: (seed,)."""
        found = np.array([MEASURES[measure].of(parts) for parts in self.seeds.values()], float)
        return found[np.isfinite(found)]

    def summary(self, measure: str) -> Summary:
        """Return mean and spread over seeds; NaN where there is none.

        The standard error of a share of runs is at least that of so many runs: equal shares of few runs do not make it zero.
        """
        values = self.values(measure)
        if not len(values):
            return Summary(math.nan, math.nan, math.nan, 0)
        mean, n = float(values.mean()), len(values)
        spread = float(values.std(ddof=1)) if n > 1 else math.nan
        error = spread / math.sqrt(n)
        if measure == "alive" and n > 1:
            runs = sum(parts["long_runs"]["runs"] for parts in self.seeds.values())
            share = (mean / 100 * runs + 1) / (runs + 2)
            error = max(error, 100 * math.sqrt(share * (1 - share) / runs))
        return Summary(mean, spread, error, n)


def collect(plan: Plan, unfinished: Mapping[int, str]) -> list[Row]:
    """Read what was measured of all runs of a plan, with why some are not finished, by number."""
    rows: dict[tuple[str, int], Row] = {}
    for number, job in enumerate(plan.jobs):
        row = rows.setdefault((job.name, job.trajectories), Row(job.name, job.model, job.trajectories, job.whole))
        row.planned += 1
        results = Results(job.folder.path)
        if problem := results.failure or unfinished.get(number, ""):
            row.failures[job.seed] = problem
        elif not results.missing(parts_of(job)):
            row.seeds[job.seed] = results.parts
    ordered = [row for name in plan.models() for row in rows.values() if row.name == name]
    _relate(ordered)
    return ordered


def _relate(rows: list[Row]) -> None:
    """Add the CRPS relative to that of the true process, averaged over observables."""
    true: dict[str, float] = next((parts["calibration"]["crps"] for row in rows if row.name == TRUTH for parts in row.seeds.values()), {})
    for row in rows:
        for parts in row.seeds.values():
            if calibration := parts.get("calibration"):
                ratios = [own / true[name] for name, own in calibration["crps"].items() if own is not None and true.get(name)]
                calibration["relative_crps"] = float(np.mean(ratios)) if ratios else None


def as_csv(rows: list[Row]) -> str:
    """Write the table as CSV: a line per model and size of the training data, mean and standard deviation over seeds."""
    lines = [dict(_cells(row)) for row in rows]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def write_csv(rows: list[Row], out: Path) -> None:
    """Write the table as a CSV file, completely or not at all."""
    with whole(out) as partial:
        partial.write_text(as_csv(rows), encoding="utf-8")


def _cells(row: Row) -> Iterator[tuple[str, str | int]]:
    yield from (("model", row.name), ("title", row.model.title), ("group", row.model.group), ("trajectories", row.trajectories))
    yield from (("seeds", len(row.seeds)), ("failed", len(row.failures)))
    for name in MEASURES:
        found = row.summary(name)
        yield f"{name}_mean", _text(found.mean)
        yield f"{name}_sd", _text(found.spread)
    for (observable, frame), places in by_place(row).items():
        yield f"ks_{observable}_{frame}_mean", _text(float(np.mean([place["ks"] for place in places])))
        yield f"ks_{observable}_{frame}_floor", _text(float(np.mean([place["typical"] for place in places])))
    scores = [(parts.get("calibration") or {}).get("crps", {}) for parts in row.seeds.values()]
    for name in dict.fromkeys(name for one in scores for name in one):
        known = [one[name] for one in scores if one[name] is not None]
        yield f"crps_{name}_mean", _text(float(np.mean(known)) if known else math.nan)


def by_place(row: Row) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the distances of all seeds by observable and frame."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for parts in row.seeds.values():
        for place in (parts.get("distances") or {}).get("distances", []):
            found.setdefault((place["observable"], place["frame"]), []).append(place)
    return found


def _text(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
