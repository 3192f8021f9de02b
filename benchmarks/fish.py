"""Films of fish, tracked by idtracker.ai: is the ensemble honest on the end of a film that was trained on its beginning?

    python benchmarks/fish.py FILE [FILE ...] [--folder runs/fish] [--out benchmarks/results/fish.csv]

Files hold positions (frame, animal, axis), as arrays or in the dictionaries that idtracker.ai saves. Two come with the package
trajectorytools (0.4.2): `trajectories_with_points.npy`, 15 fish, 31 s, and `test_trajectories.npy`, 100 fish, 300 frames, 5.8% of
positions missing. Nothing is chosen: import, preset and training are those of `data import-tracks` and `train particles`. Coverage and
CRPS are of every fish that is there at the start, as long as it is tracked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from track_scores import coverage, crps, forecasts, recorded

import epns_pyro
from epns_pyro.data import open_store
from epns_pyro.data.importers.tracks import Options, import_tracks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("runs/fish"), help="where data and runs are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fish.csv"))
    options = parser.parse_args()
    rows = []
    for file in options.files:
        data, run = options.folder / f"{file.stem}.zarr", options.folder / file.stem
        store = open_store(data) if data.exists() else import_tracks([file], data, Options(unit="px"))
        trained = (run / "best.ckpt").exists()
        simulator = epns_pyro.load(run) if trained else epns_pyro.train(epns_pyro.preset("particles", data=store), store, run)
        _, truth, there = recorded(store, "test")
        known = there[:, 0]
        for who, ensemble in forecasts(simulator, store, simulator.config.seed).items():
            row = {"file": file.stem, "forecast": who, "fish and trials": int(known.sum()), "frames": truth.shape[1]}
            row |= {"CRPS": crps(ensemble, truth, there)}
            rows.append(row | {f"90% at frame {t + 1}": share for t, share in enumerate(coverage(ensemble, truth, there))})
        print(pd.DataFrame(rows).to_string(index=False), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
