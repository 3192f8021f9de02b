"""Check: how far are forecast positions from the truth? ADE and FDE, which papers on trajectories quote.

The displacement error of a member is its distance from the truth, mean over the bodies that are there. ADE is its mean over all lead
times, FDE that at the last one. Mean over K members: small only if the ensemble is sharp. Best of K: small if the truth is among them,
however wide it is; neither says whether the uncertainty is right.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from epns_pyro.evaluation import ensembles
from epns_pyro.evaluation.check import Check, Inputs
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.evaluation.parts import Section, Table
from epns_pyro.evaluation.record import Displacement, DisplacementRow, HeadlineLine
from epns_pyro.evaluation.trials import trials
from epns_pyro.state import StateSpec

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
        spec = inputs.store.spec
        if len(spec.sites) != 1 or spec.position is None or not spec.position.dynamic:
            return None
        held_out = trials(inputs.store, "test", inputs.settings)
        forecasters = {"model": inputs.model, **inputs.references}
        sums: dict[str, list[np.ndarray]] = {name: [] for name in forecasters}
        for block in ensembles.blocks(len(held_out), inputs.settings.block):
            path, x0 = held_out.read(block), held_out.initial(block)
            for number, (name, one) in enumerate(forecasters.items()):
                seed = inputs.settings.seed + 11 + number + block.start
                past = held_out.past(block, one.earlier_frames)
                sums[name].append(_errors(inputs, one, x0, path, held_out.steps, seed, past))
        rows = tuple(_row(name, np.concatenate(parts, 1)) for name, parts in sums.items())
        return Displacement(unit=spec.position.unit, steps=held_out.steps, trajectories=len(held_out), rows=rows)

    def sections(self, record: Displacement | None, found: Evaluated) -> Iterator[Section]:
        if record is None or not record.rows:
            return
        section = Section(
            "displacement",
            "Displacement errors",
            f"Distance of {MANY} members from the truth, {record.unit or 'in the unit of the positions'}, mean over bodies, on "
            f"{record.trajectories} forecasts of {record.steps} steps: averaged over lead times (ADE) and at the last (FDE).",
        )
        rows = [(row.name, *(f"{value:.3g}" for value in row.values)) for row in record.rows]
        section.items.append(Table(HEAD, rows, frozenset(HEAD[1:])))
        yield section

    def headline(self, record: Displacement) -> Iterator[HeadlineLine]:
        known = {row.name: row for row in record.rows}
        if "model" in known:
            others = ", ".join(f"{name} {row.ade:.3g}/{row.fde:.3g}" for name, row in known.items() if name != "model")
            value = f"{known['model'].ade:.3g}/{known['model'].fde:.3g} {record.unit}".rstrip()
            yield HeadlineLine(label="displacement error, ADE/FDE", value=value, note=others)


def _errors(
    inputs: Inputs, one: Forecaster, x0: np.ndarray, path: np.ndarray, steps: int, seed: int, past: np.ndarray | None
) -> np.ndarray:
    """Displacement errors of MANY members: (sample, trajectory, lead time)."""
    system, entries = inputs.store.system, inputs.settings.entries
    schedule = ensembles.schedule_of(system, path, entries)
    more = {} if past is None else {"past": past}
    return displacement(system.spec, one.sample(x0, steps, MANY, seed, schedule=schedule, **more)[:, :, 1:], path[:, 1:])


def displacement(spec: StateSpec, forecast: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return mean distances over bodies of forecasts (sample, trajectory, time, body, channel) from the truth: (sample, trajectory, time).

    Bodies that are absent, NaN, from either do not count; NaN where none is left.
    """
    place = spec.slice(spec.position.name if spec.position else "position")
    way = spec.space_of(truth[..., :1, :, :]).displacement(truth[..., place], forecast[..., place])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of frames without a body
        return np.nanmean(np.linalg.norm(way.astype(np.float64), axis=-1), axis=-1)


def _row(name: str, errors: np.ndarray) -> DisplacementRow:
    """Summarise errors (sample, trajectory, lead time)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        average, final = np.nanmean(errors, -1), errors[..., -1]

        def best(of: np.ndarray, count: int) -> float:
            return float(np.nanmean(np.nanmin(of[:count], 0)))

        return DisplacementRow(
            name=name,
            ade=np.nanmean(average),
            fde=np.nanmean(final),
            ade_best_of_5=best(average, FEW),
            fde_best_of_5=best(final, FEW),
            ade_best_of_20=best(average, MANY),
            fde_best_of_20=best(final, MANY),
        )
