"""Pedestrians of three scenes, one side left out: is the ensemble honest, and is it better than a linear autoregression?

    python benchmarks/pedestrians.py DIR [--steps 1000] [--seed 0] [--jitter J] [--out benchmarks/results/pedestrians.csv]

DIR holds biwi_hotel.txt, crowds_zara01.txt and crowds_zara02.txt of the ETH/UCY recordings (frame, person, x, y; 10 frame numbers are
0.4 s). 8 frames are seen and 12 predicted. Coverage and CRPS are of every person who is there at the start, as long as the recording
has them; best-of-20 ADE and FDE of those who are there in all 20 frames, as is usual.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from track_scores import coverage, crps, forecasts, recorded

import epns_pyro
from epns_pyro.data import Store
from epns_pyro.data.importers.tracks import Options, import_tracks
from epns_pyro.simulator import Simulator

ZARA, HOTEL = ("crowds_zara01.txt", "crowds_zara02.txt"), ("biwi_hotel.txt",)
SIDES = {"hotel": (ZARA, HOTEL), "zara": (HOTEL, ZARA)}  # by what is left out for the test
JITTER = {"hotel": 0.045, "zara": 0.022}  # m, as `epns-pyro data info` proposes: hotel tracks jitter, zara tracks are interpolated
SEEN, STEPS = 8, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SIDES)
    parser.add_argument("--jitter", type=float, help="of training, in place of what `data info` proposes, m")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pedestrians.csv"))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in [options.only] if options.only else SIDES:
            train, test = ([options.folder / file for file in files] for files in SIDES[name])
            how = Options(columns="frame,id,x,y", frame_dt=0.04, every=10, unit="m", time_unit="s", segment=SEEN + STEPS, history=SEEN - 1)
            store = import_tracks(train, Path(scratch) / f"{name}.zarr", how, tests=test)
            config = epns_pyro.preset("particles", data=store)
            jitter = JITTER[name] if options.jitter is None else options.jitter
            config = config.override({"training.steps": options.steps, "training.jitter": jitter, "seed": options.seed})
            simulator = epns_pyro.train(config, store, Path(scratch) / name)
            rows += judge(name, simulator, store, options.seed)
            print(pd.DataFrame(rows).to_string(index=False), flush=True)
    pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.4g")


def judge(name: str, simulator: Simulator, store: Store, seed: int) -> list[dict]:
    """Score the model and autoregressions on the side that was left out."""
    _, truth, there = recorded(store, "test")
    whole = there.all(1) & ~np.isnan(store.spec.get(store.read("test"), "position")).any((1, -1))
    rows = []
    for who, ensemble in forecasts(simulator, store, seed).items():
        distance = np.linalg.norm(ensemble[:20] - truth, axis=-1)  # (sample, trajectory, time, body)
        of_whole = np.moveaxis(distance, 2, 3)[:, whole]  # (sample, person, time)
        row = {"left out": name, "forecast": who, "persons": int(there[:, 0].sum()), "in all frames": int(whole.sum())}
        row |= {"CRPS (m)": crps(ensemble, truth, there), "ADE": of_whole.mean(-1).min(0).mean(), "FDE": of_whole[..., -1].min(0).mean()}
        row |= {f"90% at {0.4 * (t + 1):.1f} s": c for t, c in enumerate(coverage(ensemble, truth, there))}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
