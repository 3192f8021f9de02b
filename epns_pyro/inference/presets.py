"""Named sets of choices: what `epns-pyro train SYSTEM --preset NAME` starts from. Every value can be changed with --set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from epns_pyro.errors import ConfigError, nearest
from epns_pyro.inference.run import RunConfig, TrainingConfig
from epns_pyro.inference.schedules import KLSchedule, RateSchedule
from epns_pyro.models.particles import ParticlesConfig
from epns_pyro.systems import NBodyConfig, SystemConfig


def nbody_quick(system: SystemConfig) -> RunConfig:
    """Minutes on two CPU cores.

    One-step windows: the state is fully observed, so they are the whole likelihood. Feeding means back (`training.horizon.end` above 1)
    asks the emission to explain noise that an earlier step left out, and costs nats.
    """
    return RunConfig(
        system=system,
        model=ParticlesConfig(),
        training=TrainingConfig(steps=3000, batch=64, learning_rate=3e-3),
    )


def nbody_paper(system: SystemConfig) -> RunConfig:
    """The published architecture and budget: frame averaging, width 128, 5 layers, 16 latents per body, 250,000 steps of batch 64."""
    return RunConfig(
        system=system,
        model=ParticlesConfig.parse({"backbone": {"name": "frames", "width": 128, "layers": 5}, "emission": "diagonal", "width": 128}),
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


PRESETS: dict[str, dict[str, Callable[[SystemConfig], RunConfig]]] = {
    "nbody": {"quick": nbody_quick, "paper": nbody_paper},
}
SYSTEM_OF_PRESET: dict[tuple[str, str], Callable[[], SystemConfig]] = {
    ("nbody", "quick"): NBodyConfig,
    ("nbody", "paper"): NBodyConfig,
}
DATA_OF_PRESET: dict[tuple[str, str], str] = {("nbody", "quick"): "nbody", ("nbody", "paper"): "nbody"}


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
