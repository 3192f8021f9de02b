"""The N-body benchmark of EGNN (Satorras et al., ICML 2021): where five charged particles are after 1,000 integrator steps.

    python benchmarks/egnn_protocol.py [--seeds 1] [--folder FOLDER]

Positions, velocities and charges at time 3 are given, positions at time 4 are predicted: one frame of one time unit, in which particles
meet and swing around each other. 3,000 training, 2,000 validation and 2,000 test simulations. The score is the mean squared error of a
coordinate. The law is that of `epns-pyro data generate charged`; the store is written with xarray, as a user would, and the program is told
of charges, not of the law. "without noise" is one forecast, as those of the published methods are; "ensemble mean" is that of 19 members,
whose 90% intervals cover "90%" of the coordinates. Published rows are quoted, not run here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import xarray as xr
import yaml
from nbody_protocol import train, write

import epns_pyro
from epns_pyro.data import Store, generate, open_store
from epns_pyro.models import Feedback
from epns_pyro.simulator import Simulator
from epns_pyro.systems import ChargedConfig
from epns_pyro.training.presets import preset

FIRST, LAST, FRAME_DT, MEMBERS = 30, 40, 0.1, 19  # of 19 members the first to the last are an exact 90% interval
SETS = {"train": 3000, "val": 2000, "test": 2000}
PUBLISHED = {
    "linear": 0.0819,
    "SE(3) Transformer": 0.0244,
    "TFN": 0.0155,
    "GNN": 0.0107,
    "Radial Field": 0.0104,
    "EGNN": 0.0071,
    "SEGNN": 0.0043,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/egnn_protocol"), help="where data and runs are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/egnn_protocol.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    store = recorded(options.folder)
    rows = [{"method": method, "mean squared error": error} for method, error in PUBLISHED.items()]
    rows.append({"method": "linear, computed here"} | linear(store))
    for seed in range(options.seeds):
        folder = options.folder / f"run_{seed}"
        train(preset("particles", "pairs", store).override({"seed": seed}), store, folder)
        simulator = epns_pyro.load(folder, which="last").to(torch.float64)
        for method, feedback in (("without noise", Feedback.PUSHFORWARD), ("ensemble mean", None)):
            rows.append({"method": f"epns-pyro, {method}", "seed": seed} | judge(simulator, store, feedback))
        write(rows, options.out)


def recorded(folder: Path) -> Store:
    """The store of the two frames of every simulation; it is written if it is not there yet."""
    path = folder / "two_frames.zarr"
    if not path.exists():
        sets = {name: {"trajectories": count, "steps": LAST} for name, count in SETS.items()}
        whole = generate(ChargedConfig.parse({"velocity": "recorded", "frame_dt": FRAME_DT, "sets": sets}), folder / "whole.zarr")
        for name, count in SETS.items():
            x = whole.read(name, slice(0, count))[:, [FIRST, LAST]]
            data = {field: (("trajectory", "time", "body", "space"), whole.spec.get(x, field)) for field in ("position", "velocity")}
            data["charge"] = (("trajectory", "body"), whole.spec.get(x, "charge")[:, 0])
            xr.Dataset(data).to_zarr(path, group=name, mode="a", consolidated=False)
        fields = [
            {"name": "charge", "irreps": "0e", "dynamic": False},
            {"name": "position", "irreps": "1o", "translates": True},
            {"name": "velocity", "irreps": "1o", "rate_of": "position"},
        ]
        description = {"frame_dt": (LAST - FIRST) * FRAME_DT, "space": 3, "sites": ["body"], "fields": fields}
        path.with_name(path.name + ".yaml").write_text(yaml.safe_dump(description))
    return open_store(path)


def linear(store: Store) -> dict[str, float]:
    """Errors of bodies that go on with their velocity, for a time that is fitted to the training set."""

    def read(split: str) -> tuple[np.ndarray, np.ndarray]:
        x = store.read(split, slice(0, SETS[split]))
        position = store.spec.get(x, "position")
        return position[:, 1] - position[:, 0], store.spec.get(x, "velocity")[:, 0]

    way, velocity = read("train")
    duration = (velocity * way).sum() / (velocity**2).sum()
    way, velocity = read("test")
    return scores(duration * velocity - way)


def judge(simulator: Simulator, store: Store, feedback: Feedback | None) -> dict[str, float]:
    """Errors of one forecast without noise, or of the mean of an ensemble, and how much of the truth its 90% intervals cover."""
    x = store.read("test", slice(0, SETS["test"]))
    truth = store.spec.get(x, "position")[:, 1]
    members, drawn = (MEMBERS, {"seed": 0}) if feedback is None else (1, {"feedback": feedback})
    found = np.empty((members, *truth.shape))
    for block in simulator.rollout_blocks(x[:, 0], steps=1, members=members, block_size=1000, **drawn):
        found[block.samples, block.trajectories] = store.spec.get(block.states, "position")[:, :, 1]
    covered = {"90%": float(((truth >= found.min(0)) & (truth <= found.max(0))).mean())} if members > 1 else {}
    return scores(found.mean(0) - truth) | covered


def scores(error: np.ndarray) -> dict[str, float]:
    """Mean squared error of a coordinate, and the median distance, of errors (trajectory, body, space)."""
    return {"mean squared error": float((error**2).mean()), "median distance": float(np.median(np.linalg.norm(error, axis=-1)))}


if __name__ == "__main__":
    main()
