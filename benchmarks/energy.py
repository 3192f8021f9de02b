"""Energy in long runs: does the mean energy follow the exact line, and does a run without noise keep it?

    python benchmarks/energy.py [--only NAME ...] [--steps 600] [--frames 10000] [--folder runs/energy]

Five bodies, every two of them joined by a spring, with Brownian kicks. Energy is gained at the rate (3/2) sum m sigma^2, whatever the
springs are (Ito), so the mean over runs of any length is known. Every model is trained on the same data with the same number of steps,
then run for 10,000 frames from held-out states; training trajectories have 50. Energies are those of the true law. Runs without noise feed
the mean back. Then one-step likelihoods on the celestial system, at an equal budget. Trained runs are kept in the folder: an interrupted
command goes on from there, and `--only` adds rows to those of the table.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from common import ALONE, write_table

import epns_pyro
from epns_pyro.data import Store, generate, open_store
from epns_pyro.simulator import Simulator
from epns_pyro.systems import SpringsConfig, System, trajectory_seeds
from epns_pyro.training.presets import preset

FRAMES, MEMBERS, QUIET, KEPT = 10_000, 64, 8, 100  # frames of a run, runs with and without noise, every how many frames are kept
SIGMA, SCORED = 0.01, 100
SETS = {"train": (400, 50), "val": (40, 50), "test": (MEMBERS, 50)}
SPRINGS = SpringsConfig(
    share=1.0, noise=SIGMA, dt=0.002, velocity="recorded", given=2, sets={k: {"trajectories": n, "steps": t} for k, (n, t) in SETS.items()}
)
MODELS: dict[str, dict[str, Any]] = {
    "symplectic": {"model": "symplectic", "model.steps": 1, "model.noise.grade": "free-flight"},
    "symplectic, kicks": {"model": "symplectic", "model.steps": 1, "model.noise": "kicks"},
    "EPNS (default)": {},
    "PNS-GNN": ALONE | {"model.emission": "diagonal", "model.backbone": "message-passing"},
    "NSDE": {"model": "neural-sde", "model.backbone": "pairwise", "model.substeps": 2, "training.learning_rate": 1e-3},
}
CELESTIAL: dict[str, dict[str, Any]] = {
    "celestial: symplectic, free flight": {"model": "symplectic", "model.noise.grade": "free-flight"},
    "celestial: symplectic": {"model": "symplectic"},
    "celestial: symplectic, system": {"model": "symplectic", "model.noise.grade": "system"},
    "celestial: symplectic, kicks": {"model": "symplectic", "model.noise": "kicks"},
    "celestial: EPNS (default)": {},
}
CURVES = ("model", "noise", "time", "gain", "error", "plausible")
NOT_RUN = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of rows; all by default")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps of every model")
    parser.add_argument("--frames", type=int, default=FRAMES, help="length of a run")
    parser.add_argument("--folder", type=Path, default=Path("runs/energy"), help="where data and runs are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/energy.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only or ("true process", *MODELS, *CELESTIAL):
        celestial = name in CELESTIAL
        store = data(options.folder, celestial)
        curves: list[dict[str, Any]] = []
        if name == "true process":
            row = {"model": name} | heat(store.system, truth(store, options.frames), curves, name)
        else:
            sim, seconds = trained(name, store, options.folder, options.steps)
            row = {"model": name, "steps": sim.config.training.steps, "seconds": f"{seconds:.0f}"} | score(sim, store)
            if not celestial:
                noisy, quiet = runs(sim, store, options.frames)
                row |= heat(store.system, noisy, curves, name) | still(store.system, quiet, curves, name)
        print(row, flush=True)
        merge([row], options.out, HEAD)
        merge(curves, options.out.with_name("energy_curves.csv"), CURVES)


HEAD = (
    "model",
    "steps",
    "seconds",
    "nats",
    "oracle",
    "frames",
    "rate",
    "rate_error",
    "exact_rate",
    "errors_off",
    "most_off",
    "plausible",
    "quiet_change",
    "quiet_trend",
)


def data(folder: Path, celestial: bool) -> Store:
    path = folder / ("celestial.zarr" if celestial else "springs.zarr")
    sets = {k: {"trajectories": n, "steps": 100} for k, n in (("train", 400), ("val", 20), ("test", 40))}
    config = preset("nbody").system.override({"sets": sets}) if celestial else SPRINGS
    return open_store(path) if path.exists() else generate(config, path)


def trained(name: str, store: Store, folder: Path, steps: int) -> tuple[Simulator, float]:
    """Train, or load what is trained already; return the simulator and the seconds of processor time, NaN if it was loaded."""
    out = folder / name.replace(" ", "_").replace(",", "").replace(":", "")
    if (out / "best.ckpt").exists() and (out / "done").exists():
        return epns_pyro.load(out), float((out / "done").read_text())
    changes = {"training.steps": steps, "training.validate_every": steps // 4, "training.validation_transitions": 500}
    config = preset("nbody", data=store).override(changes | (MODELS | CELESTIAL)[name])
    started = time.process_time()
    sim = epns_pyro.train(config, store, out)
    seconds = time.process_time() - started
    (out / "done").write_text(str(seconds))
    return sim, seconds


def score(sim: Simulator, store: Store) -> dict[str, str]:
    """Likelihood of held-out transitions, nats per transition: exact without latents, else the bound of 16 samples."""
    x = store.read("test", slice(0, 40))[:, : SCORED // 2 + 1]
    torch.manual_seed(0)
    nats = float(sim.iwae(x[:, 0], x[:, 1:], num_samples=16).mean()) / (x.shape[1] - 1)
    oracle = store.system.transition_log_prob(x[:, :-1], x[:, 1:]).mean() if store.system.has_oracle else np.nan
    return {"nats": f"{nats:.2f}", "oracle": f"{oracle:.2f}" if np.isfinite(oracle) else NOT_RUN}


# -- runs: (run, time, body, channel), every so many frames --------------------------------------------------------------------------


def starts(store: Store, count: int) -> np.ndarray:
    return store.read("test", slice(0, count))[:, 0]


def truth(store: Store, frames: int) -> np.ndarray:
    seeds = trajectory_seeds(1, "long", MEMBERS)
    return store.system.simulate(starts(store, MEMBERS), frames, seeds)[:, ::KEPT]


@torch.no_grad()
def runs(sim: Simulator, store: Store, frames: int) -> list[np.ndarray]:
    """Return runs with noise, and without: the mean of the emission at the mean of the prior, fed back."""
    torch.manual_seed(1)
    x = sim.local(np.concatenate([starts(store, MEMBERS), starts(store, QUIET)]))
    carry, kept = sim.transition.start(x), [x]
    with pyro.validation_enabled(False):
        for frame in range(1, frames + 1):
            step = sim.transition.step(carry)
            prior = step.prior
            law = step.emission(torch.cat([prior.sample()[:MEMBERS], prior.mean[MEMBERS:]]))
            carry = step.advance(torch.cat([law.sample()[:MEMBERS], law.mean[MEMBERS:]]))
            if frame % KEPT == 0:
                kept.append(carry.x)
    return np.split(torch.stack(kept, 1).numpy(), [MEMBERS])


# -- energies ------------------------------------------------------------------------------------------------------------------------


def energy(system: System, x: np.ndarray) -> np.ndarray:
    """Return the true energy of states (run, time, body, channel), unit masses: (run, time)."""
    x = x.astype(np.float64)
    with np.errstate(all="ignore"):
        return 0.5 * (system.spec.get(x, "velocity") ** 2).sum((-2, -1)) + system.potential_energy(x)


def heat(system: System, x: np.ndarray, curves: list[dict[str, Any]], name: str) -> dict[str, str]:
    """Compare the gain of mean energy with the exact line; of runs that are not finite nothing is known, and they count as implausible."""
    found = energy(system, x)
    gain, duration = found - found[:, :1], (x.shape[1] - 1) * KEPT * system.frame_dt
    exact = 1.5 * x.shape[2] * SIGMA**2
    mean, error = spread(gain)
    rate, rate_error = mean[-1] / duration, error[-1] / duration
    times = np.linspace(0, duration, x.shape[1])[1:]
    with np.errstate(all="ignore"):
        off = np.abs(mean[1:] - exact * times) / error[1:]
    plausible = system.alive(x).mean(0)
    note(curves, name, "on", system, mean, error, plausible)
    numbers = {
        "frames": str((x.shape[1] - 1) * KEPT),
        "rate": f"{rate:.3g}",
        "rate_error": f"{rate_error:.2g}",
        "exact_rate": f"{exact:.3g}",
    }
    return numbers | {"errors_off": f"{off[-1]:.1f}", "most_off": f"{off.max():.1f}", "plausible": f"{plausible[-1]:.2f}"}


def still(system: System, x: np.ndarray, curves: list[dict[str, Any]], name: str) -> dict[str, str]:
    """Measure how the energy of runs without noise changes, in shares of the first: at most, and by a line fitted over the run."""
    found = energy(system, x)
    share = found / found[:, :1] - 1
    mean, error = spread(share)
    note(curves, name, "off", system, mean, error, system.alive(x).mean(0))
    if not np.isfinite(share).all():
        return {"quiet_change": "not finite", "quiet_trend": "not finite"}
    times = np.linspace(-0.5, 0.5, x.shape[1])
    trend = (share.mean(0) * times).sum() / (times**2).sum()
    return {"quiet_change": f"{np.abs(share).max():.2g}", "quiet_trend": f"{trend:.2g}"}


def spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard error over runs."""
    with np.errstate(all="ignore"):
        return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def note(curves: list[dict[str, Any]], name: str, noise: str, system: System, *series: np.ndarray) -> None:
    times = np.arange(len(series[0])) * KEPT * system.frame_dt
    for time_, *values in zip(times, *series, strict=True):
        curves.append(dict(zip(CURVES, (name, noise, f"{time_:g}", *(f"{v:.5g}" for v in values)), strict=True)))


def merge(rows: list[dict[str, Any]], out: Path, head: tuple[str, ...]) -> None:
    """Write rows into a table, in place of those of the same models."""
    new = {row["model"] for row in rows}
    kept = []
    if out.exists():
        with open(out, newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["model"] not in new]
    order = ("true process", *MODELS, *CELESTIAL)
    complete = [{key: row.get(key, NOT_RUN) for key in head} for row in [*kept, *rows]]
    if complete:
        write_table(sorted(complete, key=lambda row: order.index(row["model"])), out)


if __name__ == "__main__":
    main()
