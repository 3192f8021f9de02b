"""A small celestial set-up that the tests of inference share."""

from __future__ import annotations

from pathlib import Path

from epns_pyro.data import Store, generate
from epns_pyro.models.bodies.particles import ParticlesConfig
from epns_pyro.systems import NBodyConfig
from epns_pyro.training.run import RunConfig, RunFolder, TrainingConfig
from epns_pyro.training.trainer import Hardware, Trainer

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


ONE_PROCESS = Hardware("cpu")
# Settings of the runs that 1 and 2 processes do alike; the free bits lie among the KLs, so that means over processes matter.
DISTRIBUTED = {"free_bits": 0.7, "steps": 5, "clip_norm": 1e6, "horizon": {"end": 2, "begin": 0.5}, "kl": {"start": 1.0}}


def make_store(folder: Path, seed: int = 0) -> Store:
    return generate(SYSTEM, folder / "small.zarr", seed)


def config(**training: object) -> RunConfig:
    defaults = {"steps": 8, "batch": 8, "log_every": 1, "validate_every": 4, "checkpoint_every": 3, "validation_transitions": 20}
    return RunConfig(system=SYSTEM, model=MODEL, training=TrainingConfig.parse(defaults | training))


def trainer(store: Store, folder: Path, run: RunConfig, hardware: Hardware = ONE_PROCESS) -> Trainer:
    """A trainer on a folder, which is made where it is new."""
    out = RunFolder(folder)
    if hardware.is_main and not out.path.exists():
        out.create(run)
    return Trainer(run, store, out, hardware)
