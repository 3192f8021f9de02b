"""A film of telomeres, tracked by trackpy: does a model that infers where they are forecast better than one that takes errors for motion?

    pip install trackpy tifffile imagecodecs
    python benchmarks/telomeres.py timelapse_telomeres_2d.tif [--folder runs/telomeres] [--out benchmarks/results/telomeres.csv]

The film (200 frames of 133 x 162 pixels, a dozen telomeres) comes with the package spotiflow (0.6.5). Its tracks are imported twice, every
track by itself: with `--noise learn`, and with velocities of the last steps as state, the default. Nothing else is chosen. The reference
with noise is a random walk recorded with an error, its two numbers the likeliest in training, filtered over the frames that the model is
given (Kalman). CRPS and coverage are of every coordinate that was recorded after these frames.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from track_scores import MEMBERS, coverage, crps, forecasts, recorded

import epns_pyro
from epns_pyro.data import Store, open_store
from epns_pyro.data.importers.tracks import Options, import_tracks

SHOWN = (1, 2, 5, 10, 14)
STATES = {"noise learn": Options(singles=True, noise="learn", unit="px"), "history 4": Options(singles=True, unit="px")}


def track(film: Path, table: Path) -> None:
    """Find spots of about 7 pixels, and link those less than 3 apart; a track has at least 10 detections."""
    import tifffile
    import trackpy

    trackpy.quiet()
    spots = trackpy.batch(tifffile.imread(film), 7, minmass=60, processes=1)
    tracks = trackpy.filter_stubs(trackpy.link(spots, 3, memory=3), 10)
    table.parent.mkdir(parents=True, exist_ok=True)
    tracks.reset_index(drop=True).to_csv(table, index=False)


def walk_forecasts(store: Store) -> np.ndarray:
    """Return the ensemble (sample, trajectory, time, body, space) of a random walk that is recorded with an error."""
    variance, error = np.exp(minimize(lambda p: -_likelihood(_given(store, "train")[0], *np.exp(p)), [-4.0, -2.0], method="Nelder-Mead").x)
    given, later = _given(store, "test")
    mean, spread = (np.concatenate(part, -1) for part in zip(*(_filtered(given[..., k], variance, error) for k in range(2)), strict=True))
    ahead = variance * np.arange(1, later.shape[1] + 1)
    e = np.random.default_rng(0).normal(size=(MEMBERS, len(given), later.shape[1], 1, 2))
    scale = np.sqrt(spread[:, None] + ahead[None, :, None] + error**2)
    return mean[None, :, None, None] + scale[None, :, :, None] * e


def _given(store: Store, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (trajectory, time, space) of the frames given, in training of all, and of those after them."""
    x = store.spec.get(store.read(split), "position")[:, :, 0].astype(np.float64)
    last = x.shape[1] if split == "train" else store.system.forecast_frame + 1
    return x[:, :last], x[:, last:]


def _filtered(y: np.ndarray, variance: float, error: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (trajectory, 1) of where a walk is at the last frame of its record y (trajectory, time)."""
    *_, (mean, spread, _) = _steps(y, variance, error)
    return mean[:, None], spread[:, None]


def _likelihood(x: np.ndarray, variance: float, error: float) -> float:
    return sum(float(told.sum()) for k in range(2) for _, _, told in _steps(x[..., k], variance, error))


def _steps(y, variance, error):
    """Yield mean, variance and log-likelihood (trajectory,) after every frame; the first detection is given."""
    mean, spread, begun = np.zeros(len(y)), np.zeros(len(y)), np.zeros(len(y), bool)
    for now in y.T:
        seen, spread = ~np.isnan(now), spread + variance
        total = spread + error**2
        miss = np.where(seen, now - mean, 0.0)
        told = np.where(seen & begun, -0.5 * (np.log(2 * np.pi * total) + miss**2 / total), 0.0)
        gain = np.where(seen, spread / total, 0.0)
        first = seen & ~begun
        mean = np.where(first, now, mean + gain * miss)
        spread = np.where(first, error**2, (1 - gain) * spread)
        begun = begun | seen
        yield mean, spread, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/telomeres"), help="where tracks, data and runs are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/telomeres.csv"))
    options = parser.parse_args()
    table, rows = options.folder / "tracks.csv", []
    if not table.exists():
        track(options.film, table)
    for name, how in STATES.items():
        data, run = options.folder / f"{name}.zarr", options.folder / name
        store = open_store(data) if data.exists() else import_tracks([table], data, how)
        trained = (run / "best.ckpt").exists()
        simulator = epns_pyro.load(run) if trained else epns_pyro.train(epns_pyro.preset("particles", data=store), store, run)
        _, truth, there = recorded(store, "test")
        if simulator.infers_states:
            given = store.read("test")[:, : store.system.forecast_frame + 1]
            model = simulator.rollout(given, steps=truth.shape[1], members=MEMBERS, seed=0)["position"].values[:, :, 1:]
            there = ~np.isnan(truth).any(-1) & ~np.isnan(model[0]).any(-1)
            found = {"model": model, "random walk with an error of recording": walk_forecasts(store)}
        else:
            found = forecasts(simulator, store, 0)
        for who, ensemble in found.items():
            row = {"state": name, "forecast": who, "trajectories": int(there.any((1, 2)).sum()), "frames": truth.shape[1]}
            row |= {"CRPS, px": crps(ensemble, truth, there)}
            for frame in (1, 5, 10):
                row[f"CRPS at frame {frame}"] = crps(
                    *(part[..., frame - 1 : frame, :, :] for part in (ensemble, truth)), there[:, frame - 1 : frame]
                )
            shares = coverage(ensemble, truth, there)
            rows.append(row | {f"90% at frame {t}": shares[t - 1] for t in SHOWN if t <= len(shares)})
        print(pd.DataFrame(rows).to_string(index=False), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
