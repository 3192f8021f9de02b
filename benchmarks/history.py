"""What history is worth: nats gained over the best model of one frame, beside the closed form.

    python benchmarks/history.py [1.0 | 0.5 | 0.2 | bursts | control] [--windows 2 3] [--steps N] [--trajectories N] [--out FILE]

Persistent random walkers: dr = u dt, du = -u / tau dt + s dW, of which r is recorded every D = 0.1 without error, and u is not. One frame
says nothing about u; a window of k frames does, by its k - 1 steps. These are Normal, per axis, with

    variance  s^2 tau^3 (D / tau - 1 + exp(-D / tau))
    covariance at lag l  (s^2 tau^3 / 2) (1 - exp(-D / tau))^2 exp(-(l - 1) D / tau)

so what a window of k frames gains is half the log of the ratio of prediction variances, per axis and transition. The steps of the control
depend on nothing. In bursts the size of a step depends on that of the step before, and its direction on nothing: no autoregression sees it.

    step ~ Normal(0, (a + b |step before|^2) I)

The exact laws and the models score the same held-out transitions. `gain` is over the exact law of one frame; `shortfall` is how far the
model is below the exact law of its own window, with standard errors over trajectories; all in nats per axis and transition. For bursts the
zero is the best Normal law of one frame, and `exact_gain` what the exact law scores on these transitions. The models have no latents in use
(kl), so that the bound is the likelihood. References that see the same window: the last frame with fitted noise, constant velocity with
fitted noise, and the autoregression by least squares of `epns_pyro.evaluation.linear_forecasters`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import xarray as xr
import yaml
from common import train, write_table
from scipy.linalg import toeplitz

import epns_pyro
from epns_pyro.data import Store, open_store
from epns_pyro.evaluation.linear_forecasters import Autoregression, LinearForecaster, Persistence
from epns_pyro.simulator import Simulator

FRAME_DT, BODIES, SPACE = 0.1, 4, 2
APART = 100.0  # spread of the places at the start: else where a walker is would say how fast it is, after some frames
SETS = {"train": 0.3, "val": 0.02, "test": 0.68}  # many to test on: the error of a gain is that of the data
FIRST = 5  # frame from which transitions are scored: windows of up to 6 frames are then whole
SYSTEMS = {"1.0": 1.0, "0.5": 0.5, "0.2": 0.2, "bursts": -1.0, "control": 0.0}  # by tau; without one: -1 and 0
BURSTS, MEAN = 0.25, 0.01  # b, and the variance of a step per axis; a = MEAN (1 - SPACE b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", choices=[*SYSTEMS, []])
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--trajectories", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/history.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.only or SYSTEMS:
        with tempfile.TemporaryDirectory() as scratch:
            positions = walkers(SYSTEMS[name], options.trajectories, 30, np.random.default_rng(options.seed))
            for window in options.windows:
                rows.append({"system": name, "window": window} | measure(SYSTEMS[name], window, positions, Path(scratch), options))
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
                write_table(rows, options.out)


# -- the process, in closed form ---------------------------------------------------------------------------------------------


def walkers(tau: float, trajectories: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Positions (trajectory, time, body, space) of walkers whose speed is 1 per axis; for tau = 0 of steps that depend on nothing."""
    shape = (trajectories, BODIES, SPACE)
    place = [APART * rng.standard_normal(shape)]
    if tau < 0:
        move = np.sqrt(MEAN) * rng.standard_normal(shape)
        for _ in range(steps):
            move = np.sqrt(burst_variance(move)) * rng.standard_normal(shape)
            place.append(place[-1] + move)
        return np.stack(place, 1)
    if not tau:
        moves = np.sqrt(FRAME_DT) * rng.standard_normal((steps, *shape))
        return np.cumsum(np.stack([place[0], *moves]), 0).swapaxes(0, 1)
    a, power = np.exp(-FRAME_DT / tau), 2 / tau  # s^2, for the variance of u to be 1
    of_move = power * tau**2 * (FRAME_DT - 2 * tau * (1 - a) + tau / 2 * (1 - a**2))
    of_both, of_speed = power * tau**2 / 2 * (1 - a) ** 2, power * tau / 2 * (1 - a**2)
    root = np.linalg.cholesky(np.array([[of_move, of_both], [of_both, of_speed]]))
    u = rng.standard_normal(shape)
    for _ in range(steps):
        noise = rng.standard_normal((*shape, 2)) @ root.T
        place.append(place[-1] + tau * (1 - a) * u + noise[..., 0])
        u = a * u + noise[..., 1]
    return np.stack(place, 1)


def burst_variance(before: np.ndarray) -> np.ndarray:
    """Variance (..., 1) per axis of the step after a step (..., space)."""
    return MEAN * (1 - SPACE * BURSTS) + BURSTS * (before**2).sum(-1, keepdims=True)


def covariances(tau: float, lags: int) -> np.ndarray:
    """Covariances of steps at lags 0 .. `lags`."""
    if tau <= 0:
        return (FRAME_DT if tau == 0 else MEAN) * (np.arange(lags + 1) == 0)
    a, power = np.exp(-FRAME_DT / tau), 2 / tau
    later = power * tau**3 / 2 * (1 - a) ** 2 * a ** np.arange(lags)
    return np.concatenate([[power * tau**3 * (FRAME_DT / tau - 1 + a)], later])


def exact_law(tau: float, window: int) -> tuple[np.ndarray, float]:
    """Weights of the steps in a window, the latest first, in the mean of the next step, and the variance about this mean."""
    c = covariances(tau, window - 1)
    weights = np.linalg.solve(toeplitz(c[:-1]), c[1:]) if window > 1 else np.zeros(0)
    return weights, float(c[0] - weights @ c[1:])


def exact_score(tau: float, window: int, positions: np.ndarray) -> np.ndarray:
    """Mean log density of the scored steps, (trajectory,), per axis and transition."""
    moves, (weights, variance) = np.diff(positions, axis=1), exact_law(tau, window)
    if tau < 0 and window > 1:
        variance = burst_variance(moves[:, FIRST - 1 : -1])
    left = moves[:, FIRST:] - sum(w * moves[:, FIRST - 1 - i : -1 - i] for i, w in enumerate(weights))
    return (-0.5 * left**2 / variance - 0.5 * np.log(2 * np.pi * variance) * np.ones_like(left)).mean((1, 2, 3))


# -- models and references ---------------------------------------------------------------------------------------------------


def measure(tau: float, window: int, positions: np.ndarray, folder: Path, options: argparse.Namespace) -> dict[str, float | int]:
    store = opened(positions, folder / f"positions{window}.zarr")
    simulator, _ = train(settings(store, window, options), store, which="best")
    tested = store.spec.get(store.read("test").astype(np.float64), "position")
    one, best = exact_score(tau, 1, tested), exact_score(tau, window, tested)
    found, kl = model_score(simulator, store, window)
    gain, shortfall = found - one, best - found
    exact = 0.5 * np.log(exact_law(tau, 1)[1] / exact_law(tau, window)[1]) if tau >= 0 else (best - one).mean()
    row = {
        "steps": options.steps,
        "tested": len(tested),
        "exact_gain": exact,
        "gain": gain.mean(),
        "gain_error": error(gain),
        "shortfall": shortfall.mean(),
        "shortfall_error": error(shortfall),
        "kl": kl,
    }
    row |= references(positions, window, folder, one)
    return {key: value if isinstance(value, int) else float(f"{round(float(value), 5):.4g}") + 0.0 for key, value in row.items()}


def settings(store: Store, window: int, options: argparse.Namespace) -> epns_pyro.training.run.RunConfig:
    return epns_pyro.preset("particles", data=store).override(
        {
            "seed": options.seed,
            "training.steps": options.steps,
            "training.batch": 64,
            "training.feedback": "teacher",
            "training.validate_every": max(1, options.steps // 10),
            "training.checkpoint_every": options.steps,
            "training.validation_transitions": 3000,
            "model.history.frames": window,
            "model.history.network": {"name": "estag", "width": 16, "vectors": 4, "layers": 1},
            "model.backbone": {"name": "vector", "width": 16, "vectors": 4, "layers": 1},
            "model.width": 16,
            "model.latent": 1,
            "model.linear_path": False,  # no latents in use: the bound is then the likelihood
            "model.emission": "diagonal",
            "model.integrator": None,
        }
    )


def model_score(simulator: Simulator, store: Store, window: int) -> tuple[np.ndarray, float]:
    """ELBO of the scored steps, (trajectory,), and the mean KL, per axis and transition."""
    x = store.read("test")
    torch.manual_seed(0)
    past = x[:, FIRST - window + 1 : FIRST] if window > 1 else None
    bounds = simulator.bounds(x[:, FIRST], x[:, FIRST + 1 :], past=past)
    size = (x.shape[1] - 1 - FIRST) * BODIES * SPACE
    return bounds.elbo.double().numpy() / size, float(bounds.kl.mean()) / size


def references(positions: np.ndarray, window: int, folder: Path, one: np.ndarray) -> dict[str, float]:
    """Gains of the references over the exact law of one frame."""
    alone = opened(positions, folder / f"alone{window}.zarr")
    found = {"last_frame": reference_score(Persistence(alone.context()), alone, FIRST)}
    if window > 1:
        moving = opened(positions, folder / f"moving{window}.zarr", history=window - 1)  # states begin at the second frame
        found["constant_velocity"] = reference_score(Persistence(moving.context()), moving, FIRST - 1)
        found["autoregression"] = reference_score(Autoregression.fit(moving, moving.context()), moving, FIRST - 1)
    names = ("last_frame", "constant_velocity", "autoregression")
    return {f"{name}_gain": float((found[name] - one).mean()) if name in found else np.nan for name in names}


def reference_score(reference: LinearForecaster, store: Store, first: int) -> np.ndarray:
    """Mean log density of positions, (trajectory,), per axis and transition."""
    x = store.read("test").astype(np.float64)
    volume = np.log(FRAME_DT) if "velocity" in store.spec else 0.0  # densities of differences are per their unit
    return reference.log_prob(x[:, first:-1], x[:, first + 1 :]).mean(1) / (BODIES * SPACE) - volume


def opened(positions: np.ndarray, path: Path, **more: int) -> Store:
    xr.Dataset({"position": (("trajectory", "time", "body", "space"), positions)}).to_zarr(path)
    fields = [{"name": "position", "irreps": "1o", "translates": True}]
    description = {"fields": fields, "space": SPACE, "frame_dt": FRAME_DT, "split": SETS} | more
    path.with_name(f"{path.name}.yaml").write_text(yaml.safe_dump(description))
    return open_store(path)


def error(values: np.ndarray) -> float:
    """Standard error of a mean over trajectories."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


if __name__ == "__main__":
    main()
