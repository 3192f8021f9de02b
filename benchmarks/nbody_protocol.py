"""The N-body benchmark of GeoTDM (Han et al., NeurIPS 2024): our row beside the published ones.

    python benchmarks/nbody_protocol.py [--systems charged springs gravity] [--seeds 3] [--steps N] [--test 2000] [--folder FOLDER]

Makes the data (3,000 training simulations), trains the preset of each system, one thread each, and evaluates on the first `--test` test
simulations: 10 frames are given, positions alone, and 20 predicted; K = 5 samples. The displacement error of a sample is its distance
from the truth, mean over bodies; ADE is its mean over the 20 frames, FDE that at the last. "mean fed back" is one forecast without noise,
as those of the deterministic methods are. Published rows are quoted, not run here.
`--runs FOLDER ...` evaluates runs that are trained already.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import epns_pyro
from epns_pyro.data import Store, generate, open_store
from epns_pyro.models import Feedback
from epns_pyro.simulator import Simulator
from epns_pyro.training.checkpoint import read_checkpoint
from epns_pyro.training.presets import preset
from epns_pyro.training.run import RunConfig

GIVEN, PREDICTED, SAMPLES, MEMBERS = 10, 20, 5, 19  # of 19 members the first to the last are an exact 90% interval
LEADS = (1, 5, 10, 20)  # frames at which coverage is printed
PUBLISHED = {  # ADE, FDE: mean over K = 5 samples (K = 1 where a method is deterministic)
    "mean velocity of the given frames": {"gravity": (1.591, 3.101), "springs": (0.231, 0.508), "charged": (0.526, 1.013)},
    "EGNN": {"gravity": (0.310, 0.709), "springs": (0.0101, 0.0231), "charged": (0.186, 0.426)},
    "EqMotion": {"gravity": (0.302, 0.671), "springs": (0.0134, 0.0358), "charged": (0.141, 0.310)},
    "GeoTDM": {"gravity": (0.256, 0.613), "springs": (0.0030, 0.0079), "charged": (0.110, 0.258)},
    "STFlow (its released inference sees a future displacement)": {
        "gravity": (0.115, 0.245),
        "springs": (0.0002, 0.0004),
        "charged": (0.093, 0.172),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=("charged", "springs", "gravity"), default=["gravity", "springs", "charged"])
    parser.add_argument("--seeds", type=int, default=1, help="runs per system")
    parser.add_argument("--steps", type=int, help="optimiser steps; by default those of the preset")
    parser.add_argument("--test", type=int, default=2000, help="test simulations")
    parser.add_argument("--folder", type=Path, default=Path("runs/nbody_protocol"), help="where data and runs are kept")
    parser.add_argument("--runs", type=Path, nargs="*", help="runs that are trained already, in place of training")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/nbody_protocol.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        {"method": method, "system": system, "ADE": errors[system][0], "FDE": errors[system][1]}
        for method, errors in PUBLISHED.items()
        for system in options.systems
    ]
    for system in options.systems:
        path = options.folder / f"{system}.zarr"
        store = open_store(path) if path.exists() else generate(preset(system).system, path)
        rows.append({"method": "mean velocity, computed here", "system": system} | straight(store, options.test))
        folders = [run for run in options.runs or () if epns_pyro.load(run).system.name == system]
        for seed in () if options.runs is not None else range(options.seeds):
            folders.append(options.folder / f"{system}_{seed}")
            changes = {"seed": seed} | ({"training.steps": options.steps} if options.steps else {})
            train(preset(system).override(changes), store, folders[-1])
        for folder in folders:
            simulator = epns_pyro.load(folder, which="last").to(torch.float64)  # springs are foreseen to the rounding of single precision
            steps = read_checkpoint(folder / "last.ckpt")["counters"].step  # fewer than its settings say if it was interrupted
            trained = {"seed": simulator.config.seed, "training steps": steps}
            row = {"method": "epns-pyro", "system": system} | trained | judge(simulator, store, options.test)
            rows.append(row)
            write(rows, options.out)


def train(config: RunConfig, store: Store, folder: Path) -> None:
    """Train a run that is not there yet, and say how long it took."""
    if (folder / "last.ckpt").exists():
        return
    started = time.process_time()
    epns_pyro.train(config, store, folder)
    print(f"{folder}: trained in {time.process_time() - started:.0f} s of processor time", flush=True)


def write(rows: list[dict], path: Path) -> None:
    """Print the table so far, and write it."""
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, na_rep="", float_format=lambda v: f"{v:.3g}"), flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")


def positions(store: Store, count: int) -> tuple[np.ndarray, np.ndarray]:
    """States with the given frames as the last but PREDICTED (trajectory, time, body, channel), and all their positions."""
    x = store.read("test", slice(0, count))
    return x, store.spec.get(x, "position")


def straight(store: Store, count: int) -> dict[str, float]:
    """Errors of bodies that go on with the mean velocity of the given frames."""
    x, r = positions(store, count)
    first = r[:, 0] - store.frame_dt * store.spec.get(x, "velocity")[:, 0]  # the first frame has no state of its own
    last = r[:, GIVEN - 2]
    steps = np.arange(1, PREDICTED + 1)[:, None, None]
    guess = last[:, None] + steps * ((last - first) / (GIVEN - 1))[:, None]
    return errors(guess[None], r[:, GIVEN - 1 :]) | {"test simulations": len(x)}


def judge(simulator: Simulator, store: Store, count: int) -> dict[str, float]:
    """Errors of K samples, and coverage of 90% intervals of every coordinate by 19 members, of which these are the first."""
    x, r = positions(store, count)
    start, truth = GIVEN - 2, r[:, GIVEN - 1 :]
    settings = {"steps": PREDICTED, "past": x[:, :start], "block_size": 1000}
    found: dict[str, float] = {}
    means = simulator.rollout_blocks(x[:, start], members=1, feedback=Feedback.PUSHFORWARD, **settings)
    mean = np.concatenate([store.spec.get(block.states, "position")[:, :, 1:] for block in means], 1)
    one = errors(mean, truth)
    ensemble = np.empty((MEMBERS, len(x), *truth.shape[1:]))
    for block in simulator.rollout_blocks(x[:, start], members=MEMBERS, seed=0, **settings):
        ensemble[block.samples, block.trajectories] = store.spec.get(block.states, "position")[:, :, 1:]
    found |= errors(ensemble[:SAMPLES], truth) | {"ADE, mean fed back": one["ADE"], "FDE, mean fed back": one["FDE"]}
    covered = ((truth >= ensemble.min(0)) & (truth <= ensemble.max(0))).mean((0, 2, 3))
    found |= {f"90% at frame {lead}": covered[lead - 1] for lead in LEADS}
    return found | {"test simulations": len(x)}


def errors(ensemble: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """ADE and FDE of an ensemble (sample, trajectory, time, body, space): mean over samples, the least of them, and the median."""
    distance = np.linalg.norm(ensemble - truth, axis=-1).mean(-1)  # (sample, trajectory, time)
    average, final = distance.mean(-1), distance[..., -1]
    best = {"ADE, best of K": average.min(0).mean(), "FDE, best of K": final.min(0).mean()}
    return {"ADE": average.mean(), "FDE": final.mean()} | best | {"median FDE": float(np.median(final))}


if __name__ == "__main__":
    main()
