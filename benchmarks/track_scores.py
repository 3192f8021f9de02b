"""Scores of forecasts of recorded tracks beside linear autoregressions: CRPS and coverage of single coordinates, by lead time."""

from __future__ import annotations

import numpy as np
import scoringrules

from epns_pyro.context import DataContext
from epns_pyro.data import Store
from epns_pyro.derived import memory_frames
from epns_pyro.evaluation.linear_forecasters import Autoregression
from epns_pyro.simulator import Simulator

MEMBERS = 99


def forecasts(simulator: Simulator, store: Store, seed: int) -> dict[str, np.ndarray]:
    """Return ensembles (sample, trajectory, time, body, space) of the test set, by who made them: the model, and autoregressions."""
    x, truth, _ = recorded(store, "test")
    futures = simulator.rollout(x[:, 0], steps=truth.shape[1], members=MEMBERS, seed=seed)["position"].values[:, :, 1:]
    return {"model": futures, **autoregressions(store, simulator.context, seed)}


def recorded(store: Store, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return states from the last frame seen on, positions that are to be forecast (trajectory, time, body, space), and which are known."""
    x = store.read(split, start=store.system.forecast_frame)
    position = store.spec.get(x, "position")
    return x, position[:, 1:], ~np.isnan(position[:, 1:]).any(-1) & ~np.isnan(position[:, :1]).any(-1)


def autoregressions(store: Store, context: DataContext, seed: int) -> dict[str, np.ndarray]:
    """Return forecasts of the test set by the order that is best in validation, and by the one that is best in the test.

    An autoregression is as good as its order: the one that is best in validation is what a user has, and the one that is best on the TEST
    set the strictest reference.
    """
    sets, forecasts = {split: recorded(store, split) for split in ("val", "test")}, []
    scores: dict[str, list[float]] = {split: [] for split in sets}
    for order in range(1, memory_frames(store.spec) + 1):
        law = Autoregression.fit(store, context, order=order)
        for split, (x, truth, there) in sets.items():
            ensemble = store.spec.get(law.sample(x[:, 0], truth.shape[1], MEMBERS, seed), "position")[:, :, 1:]
            scores[split].append(crps(ensemble, truth, there))
        forecasts.append(ensemble)  # of the test set, the last
    chosen, best = (int(np.argmin(found)) for found in scores.values())
    return {
        f"autoregression chosen in validation: order {chosen + 1}": forecasts[chosen],
        f"autoregression best on the test set: order {best + 1}": forecasts[best],
    }


def crps(ensemble: np.ndarray, truth: np.ndarray, there: np.ndarray) -> float:
    """Mean CRPS of single coordinates of persons who are there, m; ensemble (sample, trajectory, time, body, space)."""
    return float(scoringrules.crps_ensemble(truth[there], np.moveaxis(ensemble[:, there], 0, -1), estimator="fair").mean())


def coverage(ensemble: np.ndarray, truth: np.ndarray, there: np.ndarray) -> list[float]:
    """Share of coordinates within the central 90% interval, exact for 99 members, by lead time."""
    ordered = np.sort(ensemble, axis=0)
    inside = (truth >= ordered[4]) & (truth <= ordered[-5])
    return [float(inside[:, t][there[:, t]].mean()) for t in range(truth.shape[1])]
