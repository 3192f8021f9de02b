"""Recordings that are not the state: how close is the bound to what is possible, and is what was hidden found?

    python benchmarks/hidden_states.py [bead | free | nbody | forces] [--steps N] [--seeds 0 1 2] [--out FILE.csv]

bead     a bead in a harmonic trap (Ornstein-Uhlenbeck positions), localisation noise that is learned, 5% of the detections missing
free     bodies with Brownian kicks to a hidden velocity, the same noise and gaps
nbody    celestial dynamics, positions alone and exact; beside the road of differences
forces   bodies on springs with hidden velocity, noise of 1% of the typical distance, 5% missing: is the force recovered?

The reference is the log likelihood of what was recorded under the TRUE law: a Kalman filter for the linear systems, an iterated extended
Kalman filter of all bodies together for celestial dynamics, whose law over a frame is Normal to first order in the noise. Everything is per
transition, given the first frame, on held-out trajectories. A learned noise is compared with the truth, and with the noise that makes the
training data likeliest when all of the law but the kicks is known: no method comes nearer to the truth on the same data.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import scipy.optimize
import torch
import xarray as xr
import yaml
from common import write_table

import epns_pyro
from epns_pyro.data import Store, generate, open_store
from epns_pyro.data.description import Split
from epns_pyro.simulator import Simulator
from epns_pyro.systems import NBodyConfig
from epns_pyro.systems.nbody import NBody

SETS = {"train": 0.8, "val": 0.1, "test": 0.1}
MISSING = 0.05
WINDOW_LINEAR = 10  # steps of the training windows of all but the celestial case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", choices=[*CASES, []])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the data and of training")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hidden_states.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, seed in itertools.product(options.only or CASES, options.seeds):
        options.seed = seed
        with tempfile.TemporaryDirectory() as scratch:
            found = CASES[name](Path(scratch), options)
        rows += [{"case": name, "seed": seed, "quantity": key, "found": value} for key, value in found.items()]
        for key, value in found.items():
            print(f"{name:8s} {seed:4d} {key:50s} {value:.4g}", flush=True)
    write_table(rows, options.out)


# -- linear systems ----------------------------------------------------------------------------------------------------------


def linear(positions: np.ndarray, fields: list[dict], frame_dt: float, folder: Path, options, **settings) -> tuple[Store, Simulator]:
    """Train on positions (trajectory, time, body, space) that are recorded as the fields say."""
    path = folder / "tracks.zarr"
    xr.Dataset({"position": (("trajectory", "time", "body", "space"), positions)}).to_zarr(path)
    description = {"fields": fields, "space": positions.shape[-1], "frame_dt": frame_dt, "split": SETS} | settings
    path.with_name("tracks.zarr.yaml").write_text(yaml.safe_dump(description))
    store = open_store(path)
    config = epns_pyro.preset("particles", data=store)
    window = min(WINDOW_LINEAR, positions.shape[1] - 1)
    small = {"name": "vector", "width": 16, "vectors": 8, "layers": 1}
    config = config.override(
        {
            "seed": options.seed,
            "training.steps": options.steps,
            "training.batch": 80 // window,
            "training.horizon": {"start": window, "end": window},
            "training.validation_transitions": 1000,
            "training.checkpoint_every": options.steps,
            "model.width": 32,
            "model.backbone": small,
            "model.integrator.steps": 2,
            "model.latent": 2,
        }
    )
    return store, epns_pyro.train(config, store, folder / "run")


def recorded(positions: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Positions with a localisation error, of which 5% are missing."""
    y = positions + noise * rng.standard_normal(positions.shape)
    y[rng.random(y.shape[:-1]) < MISSING] = np.nan
    return y


def kalman(y: np.ndarray, drift: np.ndarray, kicks: np.ndarray, noise: float, spread: np.ndarray) -> float:
    """Mean log p(y_{1:T} | y_0) per transition of tracks y (trajectory, time, body, space), every axis of its own.

    x' = drift x + Normal(0, kicks); the first component is recorded. The first detection is given; x - y is then Normal(0, spread).
    """
    total = 0.0
    for track in y.transpose(0, 2, 3, 1).reshape(-1, y.shape[1]):
        seen = np.flatnonzero(np.isfinite(track))
        if not len(seen):
            continue
        mean, covariance = np.zeros(len(drift)), spread.copy()
        mean[0] = track[seen[0]]
        for value in track[seen[0] + 1 :]:
            mean, covariance = drift @ mean, drift @ covariance @ drift.T + kicks
            if np.isfinite(value):
                variance = covariance[0, 0] + noise**2
                total -= 0.5 * ((value - mean[0]) ** 2 / variance + np.log(2 * np.pi * variance))
                gain = covariance[:, 0] / variance
                mean, covariance = mean + gain * (value - mean[0]), covariance - np.outer(gain, covariance[0])
    return total / (y.shape[0] * (y.shape[1] - 1))


def per_transition(simulator: Simulator, x: np.ndarray, samples: int) -> tuple[float, float]:
    """ELBO and IWAE bound of recordings (trajectory, time, body, channel), nats per transition."""
    torch.manual_seed(0)
    bounds = simulator.bounds(x[:, 0], x[:, 1:], num_samples=samples)
    steps = x.shape[1] - 1
    return float(bounds.elbo.mean()) / steps, float(bounds.iwae.mean()) / steps


def scores(store: Store, simulator: Simulator, exact: float, noise: float) -> dict[str, float]:
    elbo, iwae = per_transition(simulator, store.read("test"), 16)
    learned = float(simulator.transition.recording.noise[0].detach())
    return {
        "Kalman filter with the true law, nats": exact,
        "ELBO, nats": elbo,
        "IWAE bound (K = 16), nats": iwae,
        "learned noise over true noise": learned / noise,
    }


def bead(folder: Path, options) -> dict[str, float]:
    rng, rate, dt, noise = np.random.default_rng(options.seed), 0.8, 0.25, 0.4
    decay, x = np.exp(-rate * dt), [rng.standard_normal((2000, 1, 2))]
    for _ in range(30):
        x.append(decay * x[-1] + np.sqrt(1 - decay**2) * rng.standard_normal(x[-1].shape))
    y = recorded(np.stack(x, 1), noise, rng)
    store, simulator = linear(y, [{"name": "position", "irreps": "1o", "noise": "learn"}], dt, folder, options, symmetry="point")
    test = store.spec.get(store.read("test"), "position")
    exact = kalman(test, np.array([[decay]]), np.array([[1 - decay**2]]), noise, np.array([[noise**2]]))
    return scores(store, simulator, exact, noise)


def free(folder: Path, options) -> dict[str, float]:
    rng, dt, kick, noise, speed = np.random.default_rng(options.seed), 0.5, 0.5, 0.1, 1.0
    root = np.linalg.cholesky(kick**2 * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]))
    drift = np.array([[1.0, dt], [0.0, 1.0]])
    x = [np.stack([rng.standard_normal((400, 1, 2)), speed * rng.standard_normal((400, 1, 2))], -2)]
    for _ in range(20):
        x.append(drift @ x[-1] + root @ rng.standard_normal(x[-1].shape))
    y = recorded(np.stack(x, 1)[..., 0, :], noise, rng)
    fields = [
        {"name": "position", "irreps": "1o", "noise": "learn", "translates": True},
        {"name": "velocity", "irreps": "1o", "rate_of": "position", "hidden": True},
    ]
    store, simulator = linear(y, fields, dt, folder, options)
    test = store.spec.get(store.read("test"), "position")
    exact = kalman(test, drift, root @ root.T, noise, np.diag([noise**2, speed**2]))
    tracks = store.spec.get(store.read("train"), "position").transpose(0, 2, 3, 1).reshape(-1, y.shape[1], 1)
    still = np.zeros((*tracks.shape[:2], 2))
    best = likeliest_noise(tracks, still, still[:, 1:], np.broadcast_to(drift, (*still[:, 1:].shape, 2)), root, noise, speed)
    return scores(store, simulator, exact, noise) | {"likeliest noise over true noise": best / noise}


def likeliest_noise(
    y: np.ndarray, at: np.ndarray, ahead: np.ndarray, jacobian: np.ndarray, kicks: np.ndarray, noise: float, speed: float
) -> float:
    """Noise of maximum likelihood of y (track, time, component), together with the covariance of the kicks of an axis.

    A state is all positions, then all velocities; over a frame x' = ahead + jacobian (x - at) + kicks, with `kicks` the lower triangular
    root (2, 2) to start from. Velocities are Normal(0, speed) at the start. Tracks whose first frame has a gap are left out.
    """
    whole = np.isfinite(y[:, 0]).all(-1)
    y, at, ahead, jacobian = y[whole], at[whole], ahead[whole], jacobian[whole]
    size, seen = y.shape[-1], np.isfinite(y)
    axes, scale = np.eye(size), np.array([0.1, 0.3, 0.05 * kicks[1, 1], 0.1])  # of the order of the standard errors

    def cost(units: np.ndarray) -> float:
        change = scale * units
        root = np.array([[kicks[0, 0] * np.exp(change[1]), 0.0], [kicks[1, 0] + change[2], kicks[1, 1] * np.exp(change[3])]])
        every, variance = np.kron(root @ root.T, axes), (noise * np.exp(change[0])) ** 2
        mean = np.concatenate([y[:, 0], np.zeros_like(y[:, 0])], -1)
        spread = np.broadcast_to(np.diag(np.repeat([variance, speed**2], size)), (len(y), 2 * size, 2 * size))
        total = 0.0
        for t in range(y.shape[1] - 1):
            mean = ahead[:, t] + np.einsum("nij,nj->ni", jacobian[:, t], mean - at[:, t])
            spread = jacobian[:, t] @ spread @ jacobian[:, t].swapaxes(1, 2) + every
            known = seen[:, t + 1]
            surprise = np.where(known, y[:, t + 1] - mean[:, :size], 0.0)
            of_seen = np.where(known[:, :, None] & known[:, None, :], spread[:, :size, :size] + variance * axes, axes)
            gain = np.linalg.solve(of_seen, known[..., None] * spread[:, :size]).swapaxes(1, 2)
            total += 0.5 * ((surprise * np.linalg.solve(of_seen, surprise[..., None])[..., 0]).sum() + np.linalg.slogdet(of_seen)[1].sum())
            mean = mean + np.einsum("nij,nj->ni", gain, surprise)
            spread = spread - gain @ (known[..., None] * spread[:, :size])
        return total

    return noise * float(np.exp(scale[0] * scipy.optimize.minimize(cost, np.zeros(4), method="BFGS", options={"gtol": 0.1}).x[0]))


# -- forces ------------------------------------------------------------------------------------------------------------------


def forces(folder: Path, options) -> dict[str, float]:
    """Three bodies, springs of rest length 2 between all, kicks; the noise is 1% of the mean distance."""
    rng, dt, inner, kick = np.random.default_rng(options.seed), 0.2, 20, 0.2
    x, v = rng.standard_normal((400, 3, 2)), 0.3 * rng.standard_normal((400, 3, 2))
    frames, velocities = [], []
    for t in range(50 + 21):
        if t >= 50:
            frames.append(x.copy())
            velocities.append(v.copy())
        for _ in range(inner):
            v = v + springs(x, v) * dt / inner + kick * np.sqrt(dt / inner) * rng.standard_normal(x.shape)
            x = x + v * dt / inner
    positions = np.stack(frames, 1)
    distance = float(np.mean([np.linalg.norm(positions[:, :, i] - positions[:, :, j], axis=-1) for i, j in ((0, 1), (0, 2), (1, 2))]))
    noise = 0.01 * distance
    y = recorded(positions, noise, rng)
    fields = [
        {"name": "position", "irreps": "1o", "noise": "learn", "translates": True},
        {"name": "velocity", "irreps": "1o", "rate_of": "position", "hidden": True},
    ]
    _, simulator = linear(y, fields, dt, folder, options)
    # The drift is the mean change of the velocity over a frame, at states of the true process.
    flow = partial(quiet, dt=dt, inner=inner)
    change = flow(x, v)[1] - v
    with torch.no_grad():
        step = simulator.transition.at(simulator.local(np.concatenate([x, v], -1)))
        mean = simulator.spec.get_dynamic(step.emission(step.prior.mean).mean, "velocity").numpy()
    learned = mean - v

    train = Split(**SETS).rows(len(y))["train"]
    at = np.concatenate([a[train].reshape(-1, 21, 6) for a in (positions, np.stack(velocities, 1))], -1)

    def ahead(state: np.ndarray) -> np.ndarray:
        x, v = flow(*np.split(state.reshape(*state.shape[:-1], 6, 2), 2, -2))
        return np.concatenate([x, v], -2).reshape(state.shape)

    jacobian = np.stack([(ahead(at + h) - ahead(at - h)) / 2e-5 for h in 1e-5 * np.eye(12)], -1)
    root = np.linalg.cholesky(kick**2 * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]))
    best = likeliest_noise(y[train].reshape(-1, 21, 6), at, ahead(at), jacobian, root, noise, float(at[..., 6:].std()))
    return {
        "normalised mean squared error of the drift": float(((learned - change) ** 2).sum() / (change**2).sum()),
        "learned noise over true noise": float(simulator.transition.recording.noise[0].detach()) / noise,
        "likeliest noise over true noise": best / noise,
    }


def quiet(x: np.ndarray, v: np.ndarray, dt: float, inner: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities (*batch, body, space) a frame later, without kicks."""
    for _ in range(inner):
        v = v + springs(x, v) * dt / inner
        x = x + v * dt / inner
    return x, v


def springs(x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Accelerations (*batch, body, space)."""
    between = x[..., None, :, :] - x[..., :, None, :]
    length = np.linalg.norm(between, axis=-1, keepdims=True)
    return (np.where(length > 0, (1 - 2 / np.maximum(length, 1e-9)), 0.0) * between).sum(-2) - 0.1 * v


# -- celestial dynamics ------------------------------------------------------------------------------------------------------


def nbody(folder: Path, options) -> dict[str, float]:
    sizes = {"train": 400, "val": 50, "test": 100}
    config = NBodyConfig.parse({"oracle_dt": 5e-3, "sets": {name: {"trajectories": n, "steps": 100} for name, n in sizes.items()}})
    system, path = config.build(), folder / "nbody.zarr"
    generate(config, path, options.seed)
    truth = open_store(path).read("test", slice(0, TRACKS), stop=WINDOW + 1)
    speed = float(np.sqrt((system.spec.get(truth, "velocity") ** 2).mean()))
    found = {"extended Kalman filter with the true law, nats": extended_kalman(system, truth, speed)}
    for road, velocity in (("hidden", {"hidden": True}), ("differences", {"differences": True})):
        fields = [
            {"name": "mass", "irreps": "0e", "dynamic": False},
            {"name": "position", "irreps": "1o", "translates": True},
            {"name": "velocity", "irreps": "1o", "rate_of": "position"} | velocity,
        ]
        spec = folder / f"{road}.yaml"
        spec.write_text(yaml.safe_dump({"fields": fields, "space": 3, "frame_dt": system.frame_dt}))
        store = open_store(path, spec=spec)
        settings = {"seed": options.seed, "training.steps": options.steps, "training.validation_transitions": 400}
        simulator = epns_pyro.train(epns_pyro.preset("particles", data=store).override(settings), store, folder / road)
        found |= judged(road, store, simulator)
    return found


TRACKS, WINDOW, GIVEN, AHEAD, MEMBERS = 40, 30, 10, 20, 39


def judged(road: str, store: Store, simulator: Simulator) -> dict[str, float]:
    """Nats per transition of positions, and how a forecast of 20 frames from 10 does."""
    spec, lead = store.spec, 1 if road == "differences" else 0
    x = store.read("test", slice(0, TRACKS), stop=WINDOW + 1 - lead)
    if road == "hidden":
        elbo, iwae = per_transition(simulator, x, 16)
        found = {"hidden: ELBO, nats": elbo, "hidden: IWAE bound (K = 16), nats": iwae}
    else:  # a density of velocities: x' = x + v' dt
        bounds = simulator.bounds(x[:, 0], x[:, 1:], num_samples=16)
        volume = 3 * x.shape[-2] * np.log(store.frame_dt)
        found = {"differences: ELBO, nats, given two frames": float(bounds.elbo.mean()) / (x.shape[1] - 1) - volume}
    at = GIVEN - 1 - lead
    given = x[:, : at + 1] if road == "hidden" else x[:, at]
    futures = simulator.rollout(given, steps=AHEAD, members=MEMBERS)["position"].values[:, :, 1:]
    true = spec.get(x, "position")[:, at + 1 : at + 1 + AHEAD]
    inside = (true >= np.sort(futures, 0)[1]) & (true <= np.sort(futures, 0)[-2])
    error = np.abs(futures - true).mean(0) - 0.5 * np.abs(futures[:, None] - futures[None]).mean((0, 1)) * MEMBERS / (MEMBERS - 1)
    found[f"{road}: 90% intervals cover, frame 1"] = float(inside[:, 0].mean())
    found[f"{road}: 90% intervals cover, frame {AHEAD}"] = float(inside[:, -1].mean())
    found[f"{road}: CRPS, frame {AHEAD}"] = float(error[:, -1].mean())
    return found


def extended_kalman(system: NBody, x: np.ndarray, speed: float, sweeps: int = 3) -> float:
    """Mean log p(r_{1:T} | r_0) per transition, for exact positions and velocities Normal(0, speed) at the start.

    The mean and covariance of a frame are those of the oracle, and its Jacobian that of the mean, by central differences, at the mean of
    the velocities given the frame that it leads to (`sweeps` times).
    """
    spec, bodies = system.spec, x.shape[-2]
    mass, positions = spec.get(x, "mass")[:, 0], spec.get(x, "position")
    batch, size = len(x), 3 * bodies
    velocity, spread = np.zeros((batch, size)), np.broadcast_to(speed**2 * np.eye(size), (batch, size, size)).copy()
    total = np.zeros(batch)
    for t in range(1, x.shape[1]):
        place = velocity
        for _ in range(sweeps):
            mean, noise, jacobian = _linearised(system, mass, positions[:, t - 1], place)
            ahead = mean + np.einsum("bij,bj->bi", jacobian, velocity - place)
            covariance = jacobian @ spread @ jacobian.transpose(0, 2, 1) + noise
            surprise = positions[:, t].reshape(batch, size) - ahead[:, :size]
            of_position = covariance[:, :size, :size]
            solved = np.linalg.solve(of_position, surprise[..., None])[..., 0]
            # of the velocity at the start of the frame, given the position at its end
            cross = spread @ jacobian[:, :size].transpose(0, 2, 1)
            place = velocity + np.einsum("bij,bj->bi", cross, solved)
        total -= 0.5 * ((surprise * solved).sum(-1) + np.linalg.slogdet(2 * np.pi * of_position)[1])
        gain = np.linalg.solve(of_position, covariance[:, :size, size:]).transpose(0, 2, 1)
        velocity = ahead[:, size:] + np.einsum("bij,bj->bi", gain, surprise)
        spread = covariance[:, size:, size:] - gain @ covariance[:, :size, size:]
    return float(total.mean()) / (x.shape[1] - 1)


def _linearised(system: NBody, mass: np.ndarray, position: np.ndarray, velocity: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean (positions, then velocities), covariance, and Jacobian to the velocities, of a frame; rows body by body within a field."""
    spec, (batch, size), step = system.spec, velocity.shape, 1e-4
    order = np.argsort(np.tile(np.repeat([0, 1], 3), size // 3), kind="stable")  # (body, field, axis) -> (field, body, axis)

    def state(v: np.ndarray) -> np.ndarray:
        return spec.pack(mass=mass, position=position, velocity=v.reshape(batch, -1, 3))

    def end(v: np.ndarray) -> np.ndarray:
        quiet = system.config.override({"sigma": 0.0}).build()
        frame = quiet.simulate(state(v), 1, np.zeros(batch, np.uint64))[:, 1]
        return spec.dynamic(frame).reshape(batch, -1)[:, order]

    mean, covariance = system.transition_law(state(velocity))
    columns = [(end(velocity + e) - end(velocity - e)) / (2 * step) for e in step * np.eye(size)]
    return mean.reshape(batch, -1)[:, order], covariance[:, order][:, :, order], np.stack(columns, -1)


CASES = {"bead": bead, "free": free, "nbody": nbody, "forces": forces}

if __name__ == "__main__":
    main()
