"""Named sets of choices: what `epns-pyro train SYSTEM --preset NAME` starts from. Every value can be changed with --set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from epns_pyro.errors import ConfigError, nearest
from epns_pyro.models.bodies.particles import ParticlesConfig
from epns_pyro.models.tissues.cells import CellsModelConfig
from epns_pyro.systems import CellsConfig, NBodyConfig, SystemConfig
from epns_pyro.training.run import EvaluationConfig, RunConfig, TrainingConfig
from epns_pyro.training.schedules import KLSchedule, RateSchedule


def nbody_quick(system: SystemConfig) -> RunConfig:
    """Minutes on two CPU cores.

    One-step windows: the state is fully observed, so they are the whole likelihood. Feeding means back (`training.horizon.end` above 1)
    asks the emission to explain noise that an earlier step left out, and costs nats.
    """
    return RunConfig(
        system=system,
        model=ParticlesConfig(),
        training=TrainingConfig(steps=2000, batch=64, learning_rate=3e-3),
    )


def nbody_paper(system: SystemConfig) -> RunConfig:
    """The published architecture and budget: frame averaging, width 128, 5 layers, 16 latents per body, 250,000 steps of batch 64."""
    return RunConfig(
        system=system,
        model=ParticlesConfig.parse(
            {"backbone": {"name": "frames", "width": 128, "layers": 5}, "integrator": None, "emission": "diagonal", "width": 128}
        ),
        training=TrainingConfig(
            steps=250_000,
            batch=64,
            learning_rate=1e-4,
            betas=(0.9, 0.999),
            rate=RateSchedule(kind="constant", warmup=0.0),
            kl=KLSchedule(warmup=0.1),
            validate_every=2500,
            checkpoint_every=2500,
            log_every=100,
        ),
    )


def cells_quick(system: SystemConfig) -> RunConfig:
    """Minutes on two CPU cores, for the small system."""
    return RunConfig(
        system=system,
        model=CellsModelConfig.parse({"network": {"name": "windows", "window": 13, "spacing": 2.25}}),
        evaluation=EvaluationConfig(
            members=9,
            trajectories=20,
            piece=7,
            initial_members=40,
            importance_samples=4,
            likelihood_transitions=400,
            guide_transitions=50,
            guide_draws=19,
            long_trajectories=5,
            recalibrate=False,
        ),
        training=TrainingConfig(
            steps=2000,
            batch=16,
            learning_rate=3e-3,
            clip_norm=50.0,
            validate_every=500,
            checkpoint_every=50,
            log_every=5,
            validation_transitions=100,
        ),
    )


def cells_default(system: SystemConfig) -> RunConfig:
    """The default system of 64 cells, at the published batch size and with its free bits; meant for a GPU."""
    quick = cells_quick(system)
    changes = {"training.steps": 60_000, "training.batch": 8, "training.free_bits": 0.1175, "training.betas": (0.9, 0.9)}
    changes |= {"model.network": {"name": "windows"}, "model.latent": 64}
    return quick.override(changes | {"training.validate_every": 1000, "training.checkpoint_every": 1000})


PRESETS: dict[str, dict[str, Callable[[SystemConfig], RunConfig]]] = {
    "cells": {"quick": cells_quick, "paper": cells_default},
    "nbody": {"quick": nbody_quick, "paper": nbody_paper},
}
SYSTEM_OF_PRESET: dict[tuple[str, str], Callable[[], SystemConfig]] = {
    ("cells", "quick"): CellsConfig.small,
    ("cells", "paper"): CellsConfig,
    ("nbody", "quick"): NBodyConfig,
    ("nbody", "paper"): NBodyConfig,
}
DATA_OF_PRESET: dict[tuple[str, str], str] = {
    ("cells", "quick"): "cells16",
    ("cells", "paper"): "cells64",
    ("nbody", "quick"): "nbody",
    ("nbody", "paper"): "nbody",
}


def default_data(system: str, name: str) -> Path:
    """Return where `epns-pyro train SYSTEM --preset NAME` keeps the data that it simulates."""
    return Path("data") / f"{DATA_OF_PRESET[system, name]}.zarr"


def preset(system: str, name: str, data: SystemConfig | None = None) -> RunConfig:
    """Return the run config of a preset.

    Parameters
    ----------
    system : str
        "nbody", "cells": which family of models.
    name : str
        "quick", "paper".
    data : SystemConfig, optional
        System of the data at hand; by default the one that the preset generates.

    Raises
    ------
    ConfigError
        If there is no such preset.
    """
    if system not in PRESETS:
        raise ConfigError(f"unknown system {system!r}: {nearest(system, PRESETS)}")
    if name not in PRESETS[system]:
        raise ConfigError(f"unknown preset {name!r} of system {system!r}: {nearest(name, PRESETS[system])}")
    return PRESETS[system][name](data or SYSTEM_OF_PRESET[system, name]())
