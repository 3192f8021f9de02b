"""A run: its settings, and the folder with its results.

RUN/config.yaml        every setting, defaults included: `epns-pyro train --config RUN/config.yaml` repeats the run
RUN/last.ckpt          the newest state of training: `--resume` continues from it
RUN/best.ckpt          the newest state that validation cannot tell from the best: what `epns_pyro.load` returns
RUN/metrics.csv        training and validation, a row per record
RUN/evaluation/        written by `epns-pyro evaluate`
RUN/report.html        written by `epns-pyro report`
RUN/data.nc            only if a run is distributed without its store: a few trajectories as initial states
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import yaml

from epns_pyro.config import Config, one_of
from epns_pyro.errors import CheckpointError, ConfigError
from epns_pyro.models import TRANSITIONS, Feedback, TransitionConfig
from epns_pyro.plain import read_yaml
from epns_pyro.systems import SYSTEMS, SystemConfig
from epns_pyro.training.schedules import HorizonSchedule, KLSchedule, RateSchedule

Positive = Annotated[int, pydantic.Field(gt=0, le=10**15)]
Count = Annotated[int, pydantic.Field(gt=0, le=10**7)]
Beta = Annotated[float, pydantic.Field(ge=0, lt=1)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**63)]


class TrainingConfig(Config):
    """How a transition is trained.

    Parameters
    ----------
    steps : int
        Optimiser steps.
    batch : int
        Windows per step, over all processes.
    learning_rate : float
        Peak learning rate of AdamW; `rate` scales it.
    weight_decay, betas : float
        Parameters of AdamW.
    rate : schedule
        Learning rate as a factor of its peak.
    kl : schedule
        Weight of the KL term.
    horizon : schedule
        Length of the training windows, in steps.
    free_bits : float
        Nats per latent dimension and entity below which a KL has no gradient.
    feedback : {"pushforward", "teacher"}
        What is fed back in windows longer than one step: the mean of the emission, or the observed state.
    average : float
        What is validated and kept is an average of the weights over the last steps. This is the standard deviation of the numbers of those
        steps, as a share of all steps so far; 0: the weights of the last step. See `epns_pyro.training.averaging`.
    clip_norm : float
        Gradients with a larger norm are scaled down to this norm.
    log_every, validate_every, checkpoint_every : int
        In steps.
    validation_transitions : int
        Number of transitions of the validation set on which the ELBO is computed, always the same ones.
    patience : int, optional
        Training ends early after so many validations in a row of states that are not kept, because they are worse by more than a standard
        error; null: never.
    max_bad_steps : int
        Steps with a non-finite loss or gradient are skipped and counted; this many in a row stop training.
    motion_windows : int, optional
        Windows of one step that the equation of motion is fitted to before training; 0: it is only trained. A law of inferred velocities
        stays as it was fitted, others are trained on. By default 400 for a pair potential of `symplectic` and for forces of pairs
        (`model.integrator.network=central`) between bodies whose states are recorded, else 0.
    memory : int
        Bytes of training data held in memory; larger sets stream through a pool of this size.
    compile : bool
        Whether the bound of a step and its gradient become one graph of torch.compile. It takes minutes at the start, so it is for long
        training; without a C++ compiler training goes on as before, with a warning.
    strides : tuple of int
        A window takes every k-th frame, with k drawn from these: one model for steps of several durations. For recorded particles.
    crop : int, optional
        Of label images training and validation see squares of this side, pixels, around random cells; null: whole images. A step of
        training then takes as long for a large image as for a small one. The model is for images of any size. Not for periodic ones.
    jitter : float
        Largest standard deviation of errors of localisation that are added to recorded positions in training, per axis, in their unit, for
        forecasts of recordings that are less exact than those for training; see `epns_pyro.data.jitter`. For recorded positions alone.
    """

    steps: Positive = 2000
    batch: Count = 64
    learning_rate: pydantic.PositiveFloat = 3e-3
    weight_decay: pydantic.NonNegativeFloat = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    rate: RateSchedule = RateSchedule()
    kl: KLSchedule = KLSchedule()
    horizon: HorizonSchedule = HorizonSchedule()
    free_bits: pydantic.NonNegativeFloat = 0.0
    feedback: Literal["pushforward", "teacher"] = "pushforward"
    average: Annotated[float, pydantic.Field(ge=0, le=0.25)] = 0.05
    clip_norm: pydantic.PositiveFloat = 1.0
    log_every: Positive = 20
    validate_every: Positive = 250
    checkpoint_every: Positive = 250
    validation_transitions: Positive = 2000
    patience: Count | None = None
    max_bad_steps: Positive = 20
    motion_windows: Annotated[int, pydantic.Field(ge=0, le=10**6)] | None = None
    memory: Positive = 2 * 2**30
    compile: bool = False
    strides: Annotated[tuple[Count, ...], pydantic.Field(min_length=1)] = (1,)
    crop: Annotated[int, pydantic.Field(ge=8)] | None = None
    jitter: pydantic.NonNegativeFloat = 0.0

    @property
    def feedback_mode(self) -> Feedback:
        return Feedback(self.feedback)


class EvaluationConfig(Config):
    """Sizes of an evaluation; the defaults take a few minutes on two CPU cores for a quick celestial run.

    Parameters
    ----------
    members : int
        Members of the ensemble of every held-out trajectory; with 39, 99, ... intervals of 50, 80, 90 and 95% are exact.
    trajectories : int
        Held-out trajectories, of the test set and, for recalibration, of the validation set; or stretches of them.
    stretch : int, optional
        Steps of a held-out forecast: longer trajectories are cut into stretches of this length, each forecast from its first frame. By
        default recordings with fewer than 20 test trajectories are cut into about 50 stretches of at least 8 steps; others are not cut.
    frames : int
        Recorded frames that one step is sampled after.
    initial_members : int
        Runs of model and truth from each initial state of the set `same_init`.
    initial_steps : int, optional
        Steps of these runs that are compared; by default all.
    importance_samples : int
        Number of samples of the IWAE bound.
    likelihood_transitions : int
        Test transitions that are scored.
    innovations : int, optional
        Test transitions whose innovations are compared with those before; by default as many as are scored.
    guide_transitions, guide_draws : int
        Numbers of transitions, and of samples of the guide, in the simulation-based calibration of the guide.
    long_trajectories : int
        Trajectories of the set `long`, each forecast by one member.
    long_steps : int, optional
        Steps of these forecasts; by default ten lengths of training trajectories where truth can be simulated, else as many as recorded.
    work : float, optional
        How much may be computed for the forecasts of states of many bodies, in numbers that networks write; other parts of an evaluation
        get shares of it. Sizes are made smaller until they fit, see `epns_pyro.evaluation.work`; null: they are as set.
    bodies : int
        Bodies that are looked at where steps are scored: of states with many bodies fewer transitions are scored, and with fewer samples,
        since every body tells something. See `for_bodies`.
    block : int
        Trajectories evaluated at a time: bounds the memory.
    entries : {"kept", "recorded"}
        Whether forecasts keep the bodies of their initial state, or bodies enter and leave as they were recorded: those that enter are put
        where they were seen.
    recalibrate : bool
        Whether to forecast the validation set too, and learn recalibrated intervals from it.
    seed : int
        Seed of all random numbers.
    """

    members: Annotated[Count, pydantic.Field(ge=2)] = 39
    trajectories: Count = 100
    stretch: Count | None = None
    frames: Count = 150
    initial_members: Count = 200
    initial_steps: Count | None = None
    importance_samples: Count = 64
    likelihood_transitions: Count = 2000
    innovations: Count | None = None
    guide_transitions: Count = 200
    guide_draws: Count = 99
    long_trajectories: Count = 20
    long_steps: Count | None = None
    work: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] | None = 4e10
    bodies: Count = 50_000
    block: Count = 20
    entries: Literal["kept", "recorded"] = "kept"
    recalibrate: bool = True
    seed: Seed = 0

    def for_bodies(self, number: int) -> Self:
        """Return the sizes for states of so many bodies: transitions and their samples are at most as many as hold `bodies` bodies."""
        fit = max(1, self.bodies // number)
        sizes = ("importance_samples", "likelihood_transitions", "guide_transitions")
        return self.override({name: min(getattr(self, name), fit) for name in sizes})


class RunConfig(Config):
    """All settings of a run.

    Parameters
    ----------
    seed : int
        Seed of all random numbers.
    imports : tuple of str
        Values of `--import` when the run was made: information for the user, never imported automatically.
    """

    system: Annotated[SystemConfig, one_of(SYSTEMS)]
    model: Annotated[TransitionConfig, one_of(TRANSITIONS)]
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: Seed = 0
    imports: tuple[str, ...] = ()

    @classmethod
    def parse(cls, raw: dict[str, Any], *, where: str = "config") -> Self:
        """Validate plain data; if a name in it is unknown, the error says what the run was made with."""
        try:
            return super().parse(migrate_config(raw), where=where)
        except ConfigError as error:
            hint = raw.get("imports") if isinstance(raw, dict) else None
            if "--import" not in str(error) or not hint or not isinstance(hint, (list, tuple)):
                raise
            raise ConfigError(f"{error} (this run was made with {' '.join(f'--import {name}' for name in hint)})") from None

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def from_yaml(cls, path: Path) -> RunConfig:
        return cls.parse(read_yaml(path), where=str(path))


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def last(self) -> Path:
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.path / "best.ckpt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def data(self) -> Path:
        return self.path / "data.nc"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def check_free(self) -> None:
        """Raise CheckpointError if the folder holds a run: a run is never overwritten."""
        if self.last.exists():
            raise CheckpointError(f"{self.path}: holds a run already: continue it with --resume, or choose another folder with --out")

    def create(self, config: RunConfig) -> None:
        """Make the folder for a new run, or raise CheckpointError if it holds a run."""
        self.check_free()
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK):
            raise PermissionError(13, "not writable", str(self.path))
        self.config.write_text(config.to_yaml())


def migrate_config(raw: Any) -> Any:
    """Return the plain data of an older config with the current names of its keys, and without keys that are gone; other data unchanged."""
    if not isinstance(raw, dict):
        return raw
    sections = {name: section for name in ("model", "evaluation") if isinstance(section := raw.get(name), dict)}
    if sections.get("model", {}).get("name") == "cells":
        raw = raw | {"model": _renamed(sections["model"], "sight", "neighbourhood")}
    if isinstance(integrator := sections.get("model", {}).get("integrator"), dict):
        kept = {key: value for key, value in integrator.items() if key != "carry_doubt"}
        raw = raw | {"model": raw["model"] | {"integrator": kept}}
    if "evaluation" in sections:
        raw = raw | {"evaluation": _renamed(sections["evaluation"], "piece", "block")}
    return raw


def _renamed(section: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if key == old and new not in section else key: value for key, value in section.items()}


def plain(config: Config) -> dict[str, Any]:
    """Return a config as plain data that a checkpoint can hold."""
    return config.model_dump(mode="json")


def differing_settings(one: Config, other: Config) -> Iterator[tuple[str, Any, Any]]:
    """Iterate over the settings in which two configs differ: the dotted key, and both values as plain data."""

    def walk(a: Any, b: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted({*a, *b}):
                yield from walk(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
        elif a != b:
            yield prefix, a, b

    return walk(plain(one), plain(other), "")
