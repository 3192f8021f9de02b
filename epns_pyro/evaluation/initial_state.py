"""Comparison of model and truth by many futures of one initial state, beside the noise floor of truth against truth."""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple

import numpy as np
import xarray as xr

from epns_pyro.calibration.scores import difference_of_means, ks_distance
from epns_pyro.calibration.two_sample import classifier_test, energy_test, ks_test, relabellings_for
from epns_pyro.data import Store
from epns_pyro.evaluation import ensembles
from epns_pyro.evaluation.archive import Archive
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.evaluation.record import Distance, JointTest
from epns_pyro.training.run import EvaluationConfig

logger = logging.getLogger(__name__)
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
GROUP = "same_init"
FEWEST = 40  # runs per initial state: fewer are too few to compare distributions
TOGETHER = 1000  # runs of each that all observables are compared by: these tests take all pairs of runs
LEFT = 10  # runs that must still be finite at the last report frame
SECOND = "truth (second ensemble)"


class Compared(NamedTuple):
    """Runs from one initial state, model against truth.

    Parameters
    ----------
    distances : tuple of Distance
        One per observable and frame, averaged over initial states; p-values are corrected for the number of these.
    tests : tuple of JointTest
        One per initial state: the observables together at the last report frame; p-values are not corrected.
    fans : Dataset, (source, initial_state, observable, time, quantile)
    """

    distances: tuple[Distance, ...]
    tests: tuple[JointTest, ...]
    fans: xr.Dataset


def compare(
    forecaster: Forecaster,
    store: Store,
    settings: EvaluationConfig,
    references: dict[str, Forecaster],
    *,
    archive: Archive | None = None,
) -> Compared | None:
    """Compare distributions of observables at the report frames, for every initial state of the set `same_init`.

    Runs that are no longer finite are left out and counted; an initial state from which fewer than LEFT runs of the model are left at
    the last report frame is not compared.

    Returns
    -------
    Compared
        None if the store has no such set, or too few runs from every initial state.
    """
    if GROUP not in store.splits or not (starts := starts_of(store)):
        return None
    system = store.system
    steps = steps_of(store, settings)
    frames = [f for f in system.report_frames if f <= steps] or sorted({max(1, steps * k // 4) for k in (1, 2, 3, 4)})
    rng = np.random.default_rng((settings.seed, 4))
    records, tests, fans = [], [], []
    for number, rows in enumerate(starts):
        sources = _sources(forecaster, references, store, rows, settings, settings.seed + 10 + number, archive)
        names = [n for n in (system.key_observables or tuple(sources["truth"].data_vars)) if n in sources["truth"]]
        fans.append(xr.concat([_quantiles(data, names) for data in sources.values()], "source").assign_coords(source=list(sources)))
        values = {key: _values(data, names, frames) for key, data in sources.items()}  # (run, observable, frame)
        left = len(values["model"]) / sources["model"].sizes["run"]
        if len(values["model"]) < LEFT:
            logger.info("initial state %d is not compared: only %.0f%% of the runs of the model are finite", number, 100 * left)
            continue
        records.append(_distances(values, rng) | {"runs_left": np.full((len(names), len(frames)), left)})
        tests.append(_together(values, frames[-1] * system.frame_dt, number, rng, relabellings_for(2 * len(starts))))
    about = sources["truth"]
    distances = _table(records, names, frames, about, system.frame_dt) if records else ()
    return Compared(distances, tuple(tests), _finish(fans, names, about))


def _sources(
    forecaster: Forecaster,
    references: dict[str, Forecaster],
    store: Store,
    rows: np.ndarray,
    settings: EvaluationConfig,
    seed: int,
    archive: Archive | None,
) -> dict[str, xr.Dataset]:
    """Observables of runs from one initial state, each (run, time): model, truth, a second ensemble of the truth, persistence."""
    system, first = store.system, store.system.forecast_frame
    keep, steps = ensembles.observables(system), steps_of(store, settings)
    rows, second = rows[: settings.initial_members], rows[settings.initial_members : 2 * settings.initial_members]
    # After a burn-in the runs have different states: each forecast starts from one true run.
    x0, members = (ensembles.initial(store, GROUP, rows), 1) if first else (ensembles.initial(store, GROUP, rows[:1]), len(rows))

    def runs(one: Forecaster, seed: int) -> xr.Dataset:
        data = ensembles.forecast(one, x0, steps, members, seed, keep, archive=archive)["observables"]
        return data.squeeze("sample" if first else "trajectory").rename({"trajectory" if first else "sample": "run"})

    def true(rows: np.ndarray) -> xr.Dataset:
        return ensembles.recorded(store, GROUP, rows, keep, steps)["observables"].rename(trajectory="run")

    sources = {"model": runs(forecaster, seed), "truth": true(rows)}
    if len(second) >= FEWEST:
        sources[SECOND] = true(second)
    if "persistence" in references:
        sources["persistence"] = runs(references["persistence"], seed + 10)
    return sources


def steps_of(store: Store, settings: EvaluationConfig) -> int:
    """Return how many steps of the runs are compared."""
    longest = store.steps(GROUP) - store.system.forecast_frame
    return min(settings.initial_steps or longest, longest)


def starts_of(store: Store) -> list[np.ndarray]:
    """Return the trajectories of the set that share an initial state, in the order of the set."""
    x0 = store.read(GROUP, stop=1)[:, 0].reshape(store.size(GROUP), -1)
    same = (x0[1:] == x0[:-1]).all(1)
    return [rows for rows in np.split(np.arange(len(x0)), np.flatnonzero(~same) + 1) if len(rows) >= FEWEST]


def _values(data: xr.Dataset, names: list[str], frames: list[int]) -> np.ndarray:
    values = np.stack([data[name].isel(time=frames).values for name in names], 1)
    return values[np.isfinite(values).all((1, 2))]


def _distances(values: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the numbers of one initial state, each (observable, frame)."""
    model, truth = values["model"], values["truth"]
    test, difference = ks_test(model, truth, rng=rng), difference_of_means(model, truth)
    floor = ks_distance(values[SECOND], truth) if SECOND in values else test.typical
    naive = ks_distance(values["persistence"], truth) if len(values.get("persistence", ())) else np.full(floor.shape, np.nan)
    return {
        "ks": test.statistic,
        "typical": floor,
        "floor": test.floor,
        "p_value": test.p_value,
        "model_mean": model.mean(0),
        "truth_mean": truth.mean(0),
        "difference": difference.value,
        "error": difference.error,
        "persistence_ks": naive,
    }


def _table(records: list[dict], names: list[str], frames: list[int], about: xr.Dataset, frame_dt: float) -> tuple[Distance, ...]:
    states = len(records)
    mean = {key: np.mean([r[key] for r in records], 0) for key in records[0]}
    mean["error"] = np.sqrt(np.sum([r["error"] ** 2 for r in records], 0)) / states
    least = np.minimum(1.0, states * np.min([r["p_value"] for r in records], 0))  # Bonferroni over the initial states
    rows = []
    for i, name in enumerate(names):
        for j, frame in enumerate(frames):
            at = {key: float(value[i, j]) for key, value in mean.items()} | {"p_value": float(least[i, j])}
            z = at["difference"] / at["error"] if at["error"] > 0 else 0.0
            unit = str(about[name].attrs.get("unit", ""))
            sentence = f"D_KS {at['ks']:.2f} (between two true ensembles: {at['typical']:.2f}); means differ by {z:+.1f} standard errors"
            if at["runs_left"] < 1:
                sentence += f"; {1 - at['runs_left']:.0%} of the runs of the model had diverged and are left out"
            label = str(about[name].attrs.get("label", name))
            place = {"observable": name, "label": label, "unit": unit, "frame": frame, "time": frame * frame_dt}
            rows.append(Distance.model_validate(place | at | {"sentence": sentence}))
    return tuple(rows)


def _together(values: dict[str, np.ndarray], time: float, number: int, rng: np.random.Generator, relabellings: int) -> JointTest:
    model, truth = values["model"][:TOGETHER, :, -1], values["truth"][:TOGETHER, :, -1]
    energy, classifier = (test(model, truth, rng=rng, relabellings=relabellings) for test in (energy_test, classifier_test))
    return JointTest(
        initial_state=number,
        time=time,
        energy_p=float(energy.p_value),
        classifier_p=float(classifier.p_value),
        classifier_accuracy=float(classifier.statistic),
        lower=classifier.lower,
        upper=classifier.upper,
        floor=float(classifier.floor),
        sentence=energy.sentence() + "; " + classifier.sentence(),
    )


def _quantiles(data: xr.Dataset, names: list[str]) -> xr.DataArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where no run is left
        finite = [data[name].where(np.isfinite(data[name])).values for name in names]
        values = np.stack([np.nanquantile(x, QUANTILES, axis=0).T for x in finite])
    return xr.DataArray(values, dims=("observable", "time", "quantile"), coords={"time": data["time"], "quantile": list(QUANTILES)})


def _finish(fans: list[xr.DataArray], names: list[str], about: xr.Dataset) -> xr.Dataset:
    data = xr.concat(fans, "initial_state", join="outer").transpose("source", "initial_state", "observable", "time", "quantile")
    labels = [str(about[n].attrs.get("label", n)) for n in names]
    units = [str(about[n].attrs.get("unit", "")) for n in names]
    coords = {"observable": names, "label": ("observable", labels), "unit": ("observable", units)}
    return data.to_dataset(name="value").assign_coords(coords)
