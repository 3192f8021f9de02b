"""Laws of pairs that no system of this package has, recorded as positions alone: what `--preset pairs` makes of them.

    python benchmarks/pair_laws.py [--laws screened springs morse gravity] [--seeds 1] [--test 200] [--folder FOLDER]

Five bodies, 1,050 training trajectories of 30 frames, 0.1 apart, of 100 leapfrog steps each, without noise. 10 frames are given and 20
predicted, judged as in `nbody_protocol.py`. A store is written with xarray and described in YAML, as a user would; the program is told of
attributes, not of the law.

| law | acceleration of body i |
|---|---|
| screened | sum_j q_i q_j e^{-s} (1 / s^2 + 1 / s) r / s / m_i, s^2 = r^2 + 0.01, charges +-1, masses 0.5 to 2 |
| springs | sum_j -0.3 e_ij (r - 1) / m_i, half of the pairs joined, masses 0.5 to 2 |
| morse | sum_j 3 (e^{-3 (r - 1)} - e^{-1.5 (r - 1)}) |
| gravity | sum_j m_j r / (r^2 + 0.01)^{3/2}, attractive, masses 0.5 to 2 |
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import xarray as xr
import yaml
from nbody_protocol import judge, straight, train, write

import epns_pyro
from epns_pyro.data import Store, open_store
from epns_pyro.training.presets import preset

BODIES, FRAMES, STEPS, FRAME_DT, TRAJECTORIES = 5, 30, 100, 0.1, 1400
LAWS = ("screened", "springs", "morse", "gravity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=LAWS)
    parser.add_argument("--seeds", type=int, default=1, help="runs per law")
    parser.add_argument("--test", type=int, default=200, help="test trajectories, at most 210")
    parser.add_argument("--folder", type=Path, default=Path("runs/pair_laws"), help="where data and runs are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pair_laws.csv"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for law in options.laws:
        store = recorded(law, options.folder / f"{law}.zarr")
        rows.append({"method": "mean velocity of the given frames", "law": law} | straight(store, options.test))
        for seed in range(options.seeds):
            folder = options.folder / f"{law}_{seed}"
            train(preset("particles", "pairs", store).override({"seed": seed}), store, folder)
            simulator = epns_pyro.load(folder, which="last").to(torch.float64)
            rows.append({"method": "epns-pyro", "law": law, "seed": seed} | judge(simulator, store, options.test))
        write(rows, options.out)


def recorded(law: str, path: Path) -> Store:
    """The store of a law; it is simulated if it is not there yet."""
    if not path.exists():
        rng = np.random.default_rng(7)
        shape = (TRAJECTORIES, BODIES)
        charge, mass = rng.choice([-1.0, 1.0], shape), rng.uniform(0.5, 2.0, shape)
        spring = np.triu(rng.integers(0, 2, (*shape, BODIES)), 1).astype(float)
        spring += spring.transpose(0, 2, 1)
        attributes: dict[str, dict[str, np.ndarray]] = {
            "screened": {"charge": charge, "mass": mass},
            "springs": {"mass": mass, "spring": spring},
            "morse": {},
            "gravity": {"mass": mass},
        }
        chosen = attributes[law]
        position = simulate(law, rng, **chosen)
        data = {"position": (("trajectory", "time", "body", "space"), position)}
        fields = [
            {"name": "position", "irreps": "1o", "translates": True},
            {"name": "velocity", "irreps": "1o", "rate_of": "position", "differences": True},
        ]
        for name, values in chosen.items():
            data[name] = (("trajectory", "body", "body_")[: values.ndim], values)
            fields.append({"name": name, "irreps": "0e", "dynamic": False} | ({"kind": "pair"} if values.ndim == 3 else {}))
        xr.Dataset(data).to_zarr(path, consolidated=False)
        description = {"frame_dt": FRAME_DT, "space": 3, "sites": ["body"], "fields": fields}
        description["split"] = {"train": 0.75, "val": 0.1, "test": 0.15, "seed": 0}
        path.with_name(path.name + ".yaml").write_text(yaml.safe_dump(description))
    return open_store(path)


def simulate(
    law: str,
    rng: np.random.Generator,
    *,
    charge: np.ndarray | None = None,
    mass: np.ndarray | None = None,
    spring: np.ndarray | None = None,
) -> np.ndarray:
    """Positions (trajectory, time, body, space) by leapfrog; the first frame is one frame after the start."""

    def acceleration(position: np.ndarray) -> np.ndarray:
        way = position[:, :, None] - position[:, None]
        softening = 0.1 if law == "screened" else 0.0
        distance = np.sqrt((way**2).sum(-1) + softening**2) + np.eye(BODIES)  # nothing pulls on itself: the way is zero
        if law == "screened":
            push = charge[:, :, None] * charge[:, None] * np.exp(-distance) * (1 / distance**2 + 1 / distance) / distance
        elif law == "springs":
            push = -0.3 * spring * (distance - 1) / distance
        elif law == "morse":
            push = 3 * (np.exp(-3 * (distance - 1)) - np.exp(-1.5 * (distance - 1))) / distance
        else:
            push = -mass[:, None] / (distance**2 + 0.01) ** 1.5
        found = (push[..., None] * way).sum(2)
        return found / mass[..., None] if law in ("screened", "springs") else found

    position, velocity = rng.normal(size=(2, TRAJECTORIES, BODIES, 3))
    velocity *= 0.5 / np.linalg.norm(velocity, axis=-1, keepdims=True)
    dt, frames, pull = FRAME_DT / STEPS, [], acceleration(position)
    for _ in range(FRAMES):
        for _ in range(STEPS):
            velocity = velocity + dt / 2 * pull
            position = position + dt * velocity
            pull = acceleration(position)
            velocity = velocity + dt / 2 * pull
        frames.append(position)
    return np.stack(frames, 1)


if __name__ == "__main__":
    main()
