"""Families of models and their presets: the settings that `epns-pyro train FAMILY --preset NAME` starts from. --set changes any of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epns_pyro.config import Registry
from epns_pyro.data import Store
from epns_pyro.derived import has_hidden_states, has_positions_alone
from epns_pyro.errors import ConfigError, nearest
from epns_pyro.models.bodies.mixture import turns_suit
from epns_pyro.models.bodies.particles import ParticlesConfig
from epns_pyro.models.tissues.cells import CellsModelConfig
from epns_pyro.state import StateSpec
from epns_pyro.systems import (
    ActiveConfig,
    CellsConfig,
    ChargedConfig,
    GravityConfig,
    GrowingTissueConfig,
    NBodyConfig,
    RecordedCellsConfig,
    RecordedConfig,
    SpringsConfig,
    SystemConfig,
)
from epns_pyro.training.run import EvaluationConfig, RunConfig, TrainingConfig
from epns_pyro.training.schedules import HorizonSchedule, KLSchedule, RateSchedule

TURNS = 4  # laws of steps in a random direction, for recorded positions
WINDOW = 10  # steps of the windows in which hidden states are inferred
NEIGHBOURS = 8  # of a body in recordings with more than twice as many bodies
SWEEPS = {"sweeps": 5, "apart": 8, "pseudo_likelihood": True, "distances": True}  # of images of simulated cells
IMAGE_WORK = 2e11  # numbers that networks write for the forecasts of recorded images: four minutes of a core
SHORT_FRAME = 50  # MCS, up to which simulated cells stay in the windows of their benchmarks
CROP = 128  # pixels; training sees squares of at least this side of larger images
PATIENCE = 3  # validations; the networks know a film of a minute by heart after a part of the steps
BODIES_PER_BATCH = 320  # 64 states of 5 bodies


def _emission(system: SystemConfig) -> str:
    """Return the most general emission for the fields of a system; the noise of recordings may not be Normal.

    Hidden states are inferred with Normal laws.
    """
    spec = system.build().spec
    if isinstance(system, RecordedConfig) and not has_hidden_states(spec):
        return "mixture"
    return "coupled" if all(field.is_vector for field in spec.dynamic_fields) else "diagonal"


def _graph(bodies: int) -> dict[str, Any]:
    """Return the graph of networks on so many bodies: of many, each sees the nearest."""
    return {"kind": "nearest", "neighbours": NEIGHBOURS} if bodies > 2 * NEIGHBOURS else {}


def nbody_quick(system: SystemConfig) -> RunConfig:
    """Minutes on two CPU cores.

    One-step windows: the state is fully observed, so they give the whole likelihood. Feeding means back (`training.horizon.end` above 1)
    makes the emission explain noise that an earlier step left out, and costs nats.

    Celestial bodies have central forces, by a law of few numbers: it is fitted before training, and trained on. Small networks are enough
    for the rest, which is the noise. Of recorded bodies nothing of the kind is known, and a network is free to find any force.
    """
    model: dict[str, Any] = {"emission": _emission(system)}
    if model["emission"] == "mixture" and turns_suit(system.build().spec):
        model["emission"] = {"name": "mixture", "turns": TURNS}
    batch = 64
    if isinstance(system, RecordedConfig):
        batch = max(4, min(64, BODIES_PER_BATCH // max(system.bodies, 1)))
        graph = _graph(system.bodies)
        integrator: dict[str, Any] = {"network": {"name": "pairwise", "graph": graph}}
        if any(field["differences"] for field in system.spec["fields"]):  # a difference of positions holds no more than one frame
            integrator["steps"] = 2
        if has_positions_alone(system.build().spec):
            model["autoregression"] = True
        model |= {"backbone": {"name": "vector", "graph": graph}, "integrator": integrator}
    windows: dict[str, Any] = {}
    steps, patience = 2000, PATIENCE if isinstance(system, RecordedConfig) else None
    if isinstance(system, NBodyConfig):
        steps = 1000  # 2,000 gain no more than the error bars: docs/results.md
        model |= {"integrator": {"network": "central"}, "backbone": {"name": "vector", "width": 32, "vectors": 8, "layers": 2}}
    if has_hidden_states(system.build().spec):  # states are inferred in a window: as many transitions in fewer, longer ones
        batch, windows = max(4, batch // 8), {"horizon": HorizonSchedule(start=WINDOW, end=WINDOW)}
    return RunConfig(
        system=system,
        model=ParticlesConfig.parse(model),
        training=TrainingConfig(steps=steps, batch=batch, learning_rate=3e-3, patience=patience, **windows),
    )


def pairs_quick(system: SystemConfig) -> RunConfig:
    """Minutes on two CPU cores, for bodies that follow a law of pairs nearly without noise: the law is what there is to learn.

    Velocities are inferred from positions where these alone are recorded, forces are central and fitted before training, and what the
    networks say is measured in noise. What a law errs by stays for some frames. The noise is a mixture: nearly none, and sometimes, where
    bodies meet, as much as in the data. Forces without softening throw bodies that meet anywhere, and then the next frame is doubtful, too.
    What remains to learn after the fit is the noise, which takes few steps.
    """
    spec, bodies = system.build().spec, getattr(system, "bodies", 1)
    if has_hidden_states(spec):
        raise ConfigError("the preset 'pairs' is for positions that are recorded without errors, found hidden states: use 'quick'")
    integrator: dict[str, Any] = {"network": {"name": "central"}}
    if any(field.differences for field in spec.fields):
        integrator |= {"velocity": "inferred", "iterations": 12, "refinements": 2}
    else:
        integrator["refinements"] = 3
    return RunConfig(
        system=system,
        model=ParticlesConfig.parse(
            {
                "backbone": {"name": "vector", "width": 32, "layers": 2, "graph": _graph(bodies)},
                "integrator": integrator,
                "emission": {"name": "mixture", "widths": 10, "narrowest": 1e-5, "widest": 3.0, "minimum": 1e-3},
                "linear_path": False,
                "guess_unit": "noise",
                "echo": True,
                "width": 32,
                "latent": 4,
            }
        ),
        training=TrainingConfig(
            steps=100,
            batch=max(2, min(32, BODIES_PER_BATCH // max(bodies, 1))),
            horizon=HorizonSchedule(start=4, end=4),
            feedback="teacher",
            learning_rate=2e-3,
            validation_transitions=500,
            validate_every=50,
            checkpoint_every=50,
        ),
    )


def active_quick(system: SystemConfig) -> RunConfig:
    """Minutes on two CPU cores, for many bodies that see those within a radius: what is learned holds for any number of them.

    Trained on a hundred bodies, it forecasts ten thousand at the same density.
    """
    radius, side = (system.radius, system.side) if isinstance(system, ActiveConfig) else (1.0, 12**0.5)
    graph = {"kind": "radius", "radius": radius * 12**0.5 / side}  # in standard deviations of positions that fill a box evenly
    model = {
        "backbone": {"name": "vector", "width": 32, "layers": 1, "graph": graph},
        "integrator": None,
        "emission": "diagonal",
        "width": 32,
        "latent": 2,
    }
    training = TrainingConfig(steps=1500, batch=8, learning_rate=3e-3, validation_transitions=60)
    return RunConfig(system=system, model=ParticlesConfig.parse(model), training=training)


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


def _as_many_cells(system: SystemConfig) -> tuple[int, int]:
    """Return batch size and validation transitions with about as many cells as 16 and 100 images of 16 cells, at most these numbers."""
    cells = next(field.size - 1 for field in system.build().spec.dynamic_fields if field.kind == "label")
    return min(16, max(1, 16 * 16 // cells)), min(100, max(10, 100 * 16 // cells))


def _crop(system: SystemConfig) -> int | None:
    """Return the side of the squares that training sees of large images: four cells across, and at least `CROP`; None for smaller ones."""
    if not isinstance(system, RecordedCellsConfig) or system.periodic or system.area is None:
        return None
    side = max(CROP, math.ceil(4 * 2 * (system.area[1] / math.pi) ** 0.5))
    return side if math.prod(system.lattice) > 2 * side**2 else None


def _size(system: SystemConfig, benchmarked: dict[str, Any]) -> dict[str, Any]:
    """Return the benchmarked windows for simulated cells; none for recorded ones, or for frames in which cells go further than that."""
    return benchmarked if isinstance(system, CellsConfig) and system.frame_mcs <= SHORT_FRAME else {}


def cells_quick(system: SystemConfig) -> RunConfig:
    """Minutes on two CPU cores, for the small system."""
    # The windows of simulated systems are the benchmarked ones; those of recorded cells are as large as the cells need.
    # Sweeps are for them too: a film of hundreds of cells takes long to draw even once.
    simulated = isinstance(system, CellsConfig)
    size, sweeps = _size(system, {"window": 13, "spacing": 2.25}), SWEEPS if simulated else {}
    batch, validated = (16, 100) if simulated else _as_many_cells(system)
    if crop := _crop(system):
        batch, validated = 1, 50
    return RunConfig(
        system=system,
        model=CellsModelConfig.parse({"network": {"name": "windows"} | size} | sweeps),
        evaluation=EvaluationConfig(
            members=9,
            trajectories=20,
            block=7,
            initial_members=40,
            importance_samples=4,
            likelihood_transitions=400,
            guide_transitions=50,
            guide_draws=19,
            long_trajectories=5,
            recalibrate=False,
            work=IMAGE_WORK,
        ),
        training=TrainingConfig(
            steps=800 if simulated else 2000,
            batch=batch,
            learning_rate=3e-3,
            clip_norm=50.0,
            kl=KLSchedule(start=1.0 if simulated else 0.0),  # latents only for what pixels do not know from each other
            validate_every=400 if simulated else 500,
            checkpoint_every=50,
            log_every=5,
            validation_transitions=validated,
            crop=crop,
        ),
    )


def tissue_quick(system: SystemConfig) -> RunConfig:
    """Minutes on two CPU cores, for cells that grow, divide and die."""
    changes: dict[str, Any] = {f"model.{key}": value for key, value in (SWEEPS | {"sweeps": 2, "latent": 4}).items()}
    changes |= {"model.network": {"name": "windows", "window": 15, "spacing": 2.5}, "training.kl": {"start": 1.0}}
    changes |= {"training.steps": 800, "training.batch": 8, "training.validate_every": 200, "training.validation_transitions": 100}
    return cells_quick(system).override(changes)


def cells_default(system: SystemConfig) -> RunConfig:
    """The default system of 64 cells, at the published batch size and with its free bits; meant for a GPU."""
    quick = cells_quick(system)
    changes = {"training.steps": 60_000, "training.batch": 8, "training.free_bits": 0.1175, "training.betas": (0.9, 0.9)}
    size = _size(system, {"window": 15, "spacing": 2.5})
    changes["training.kl"] = {}
    changes |= {"model.network": {"name": "windows"} | size, "model.latent": 64}
    return quick.override(changes | {"training.validate_every": 1000, "training.checkpoint_every": 1000})


@dataclass(frozen=True)
class Preset:
    """A named set of settings.

    Parameters
    ----------
    config : callable
        Maps the system of the data to the config of the run.
    system : callable
        Returns the system that is simulated if no data are given.
    store : str
        Name of the store in data/ for these simulations.
    """

    config: Callable[[SystemConfig], RunConfig]
    system: Callable[[], SystemConfig]
    store: str


@dataclass(frozen=True)
class Family:
    """Models for one kind of data, with the name that `epns-pyro train` takes.

    Parameters
    ----------
    data : str
        The kind of data, in words.
    suits : callable
        Whether states of a spec are of this kind: spec -> bool.
    presets : dict of str to Preset
    """

    data: str
    suits: Callable[[StateSpec], bool]
    presets: dict[str, Preset]


FAMILIES = Registry("family of models")


def has_bodies(spec: StateSpec) -> bool:
    """Return whether a state is a set of bodies: one axis of sites, without label fields."""
    return len(spec.sites) == 1 and all(field.kind != "label" for field in spec.fields)


def has_labels(spec: StateSpec) -> bool:
    """Return whether a state is a label image: two axes of sites, and a label field that assigns each site to an entity."""
    return len(spec.sites) == 2 and any(field.kind == "label" for field in spec.fields)


_BODIES = Family(
    "bodies",
    has_bodies,
    {
        "quick": Preset(nbody_quick, NBodyConfig, "nbody"),
        "pairs": Preset(pairs_quick, GravityConfig, "gravity"),
        "paper": Preset(nbody_paper, NBodyConfig, "nbody"),
    },
)
FAMILIES.register("nbody")(_BODIES)
FAMILIES.register("particles")(_BODIES)  # the word that a person with tracks would look for
for _name, _system in (("charged", ChargedConfig), ("springs", SpringsConfig), ("gravity", GravityConfig)):
    FAMILIES.register(_name)(Family("bodies", has_bodies, {"quick": Preset(pairs_quick, _system, _name)}))
FAMILIES.register("active")(Family("bodies", has_bodies, {"quick": Preset(active_quick, ActiveConfig, "active")}))
FAMILIES.register("cells")(
    Family(
        "label images",
        has_labels,
        {"quick": Preset(cells_quick, CellsConfig.small, "cells16"), "paper": Preset(cells_default, CellsConfig, "cells64")},
    )
)
FAMILIES.register("tissue")(Family("label images", has_labels, {"quick": Preset(tissue_quick, GrowingTissueConfig, "tissue")}))


def get_preset(family: str, name: str) -> Preset:
    """Return a preset of a family.

    Raises
    ------
    ConfigError
        If there is no such family, or no such preset of it.
    """
    presets = FAMILIES[family].presets
    if name not in presets:
        raise ConfigError(f"unknown preset {name!r} of family {family!r}: {nearest(name, presets)}")
    return presets[name]


def check_family(family: str, spec: StateSpec, *, where: str) -> None:
    """Raise ConfigError unless states of a spec are of the kind that a family models; `where` names the data."""
    if FAMILIES[family].suits(spec):
        return
    others = [name for name in FAMILIES.names if FAMILIES[name].suits(spec)]
    way_out = " or ".join(f"epns-pyro train {name}" for name in others) or "no family of models is for them"
    raise ConfigError(
        f"{where}: `train {family}` is for {FAMILIES[family].data}, found the fields {', '.join(spec.names)} on the axes "
        f"({', '.join(spec.sites)}): {way_out}"
    )


def family_for(config: RunConfig) -> str:
    """Return the name of a family with which `epns-pyro train` takes a config: its settings are all in it."""
    names = (config.model.name, "particles", *FAMILIES.names)
    spec = config.system.build().spec
    return next((name for name in names if name in FAMILIES.names and FAMILIES[name].suits(spec)), config.model.name)


def default_data(family: str, name: str) -> Path:
    """Return the path of the data that `epns-pyro train FAMILY --preset NAME` simulates."""
    return Path("data") / f"{get_preset(family, name).store}.zarr"


def preset(family: str, name: str = "quick", data: SystemConfig | Store | None = None) -> RunConfig:
    """Return the run config of a preset.

    Parameters
    ----------
    family : str
        "nbody" or "particles" for sets of bodies, "cells" for label images.
    name : str
        "quick" (minutes on two CPU cores), "pairs" (likewise, for bodies under a law of pairs nearly without noise) or "paper" (the
        published sizes).
    data : Store or SystemConfig, optional
        The data, or their system, `store.system.config`; by default the system that the preset simulates. Of a store, windows for training
        are no longer than its trajectories.

    Raises
    ------
    ConfigError
        If there is no such family or preset, or if the family does not model such data.
    """
    chosen = get_preset(family, name)
    system = data.system.config if isinstance(data, Store) else data
    if system is not None:
        check_family(family, system.build().spec, where=f"data of the system {system.name!r}")
    config = chosen.config(system or chosen.system())
    if not isinstance(data, Store) or "train" not in data.splits:
        return config
    longest, horizon = max(1, data.steps("train") - data.system.first_frame), config.training.horizon
    shorter = {"start": min(horizon.start, longest), "end": min(horizon.end, longest)}
    return config.override({"training.horizon": horizon.model_dump() | shorter}) if horizon.end > longest else config
