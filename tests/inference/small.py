"""A small celestial set-up that the tests of inference share."""

from __future__ import annotations

from pathlib import Path

from epns_pyro.data import Store, generate
from epns_pyro.inference import RunConfig, RunFolder, TrainingConfig
from epns_pyro.inference.trainer import Hardware, Trainer
from epns_pyro.models.particles import ParticlesConfig
from epns_pyro.systems import NBodyConfig

SYSTEM = NBodyConfig.parse(
    {
        "bodies": 3,
        "dt": 0.01,
        "sets": {name: {"trajectories": n, "steps": 10} for name, n in (("train", 16), ("val", 6), ("test", 6))},
    }
)
MODEL = ParticlesConfig.parse(
    {"backbone": {"name": "vector", "width": 8, "vectors": 4, "layers": 1}, "width": 8, "hidden_vectors": 3, "latent": 3}
)


def make_store(folder: Path) -> Store:
    return generate(SYSTEM, folder / "small.zarr")


def config(**training: object) -> RunConfig:
    defaults = {"steps": 8, "batch": 8, "log_every": 1, "validate_every": 4, "checkpoint_every": 3, "validation_transitions": 20}
    return RunConfig(system=SYSTEM, model=MODEL, training=TrainingConfig.parse(defaults | training))


def trainer(store: Store, folder: Path, run: RunConfig) -> Trainer:
    out = RunFolder(folder)
    if not out.last.exists():
        out.create(run)
    return Trainer(run, store, out, Hardware("cpu"))
