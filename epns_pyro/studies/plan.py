"""The runs of a study: which folder each has, and with which settings it is trained and judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epns_pyro.errors import ConfigError
from epns_pyro.studies.definition import Study, StudyModel, StudyPreset
from epns_pyro.studies.programs import ProgramRunConfig
from epns_pyro.systems import SystemConfig
from epns_pyro.training.presets import preset
from epns_pyro.training.run import RunConfig, RunFolder, differing_settings

INTERVALS = ("validate_every", "checkpoint_every", "log_every")  # at most the number of steps


@dataclass(frozen=True)
class Job:
    """One model, trained on some data from one seed, and judged.

    Parameters
    ----------
    name : str
        Of the model in the study.
    model : StudyModel
    seed : int
    trajectories : int
        Training trajectories.
    whole : bool
        Whether these are all of them; else only the likelihood is measured.
    config : RunConfig
    folder : RunFolder
    data, held_out : Path
        Stores to train on and to judge with.
    """

    name: str
    model: StudyModel
    seed: int
    trajectories: int
    whole: bool
    config: RunConfig
    folder: RunFolder
    data: Path
    held_out: Path

    @property
    def label(self) -> str:
        """Return its name for people: model, data if few, seed."""
        few = "" if self.whole else f", {self.trajectories} trajectories"
        return self.name if self.model.reference else f"{self.name}{few}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """All runs of a study, and the data that they need.

    Parameters
    ----------
    study : Study
    preset : str
    out : Path
    seeds : int
    jobs : tuple of Job
        First the references, then all models of the first seed, then of the second, ...
    sizes : tuple of int
        Numbers of training trajectories of the data-efficiency curve, beside all of them.
    changes : dict
        What the user changed in every run, by dotted keys.
    """

    study: Study
    preset: str
    out: Path
    seeds: int
    jobs: tuple[Job, ...]
    sizes: tuple[int, ...]
    changes: dict[str, Any]

    @property
    def page(self) -> Path:
        return self.out / f"{self.study.name}.html"

    @property
    def table(self) -> Path:
        return self.out / f"{self.study.name}.csv"

    @property
    def stores(self) -> dict[Path, SystemConfig]:
        """Stores by path, with the systems that are simulated into them; the one that all models are judged with comes first."""
        found: dict[Path, SystemConfig] = {}
        for job in sorted(self.jobs, key=lambda job: not job.whole):
            system = job.config.system
            sets = {"train": system.sets["train"].override({"trajectories": job.trajectories}), "val": system.sets["val"]}
            found[job.data] = system if job.whole else system.override({"sets": {k: v.model_dump() for k, v in sets.items()}})
        return found

    def models(self) -> dict[str, StudyModel]:
        """Models by name, in the order of the study."""
        there = {job.name: job.model for job in self.jobs}
        return {name: there[name] for name in self.study.models if name in there}

    def check(self) -> None:
        """Raise ConfigError if a folder of the study holds a run with other settings: results are never mixed."""
        for job in self.jobs:
            if not job.folder.config.is_file():
                continue
            found = type(job.config).from_yaml(job.folder.config)
            if found != job.config:
                raise ConfigError(
                    f"{job.folder.path}: was made with other settings ({_differing(found, job.config)}): give the same settings, name "
                    f"another folder with --out, or remove {self.out} to start again"
                )


def make_plan(
    study: Study,
    preset_name: str = "quick",
    *,
    out: Path,
    seeds: int = 3,
    models: tuple[str, ...] = (),
    sizes: tuple[int, ...] | None = None,
    changes: dict[str, Any] | None = None,
) -> Plan:
    """Plan the runs of a study.

    Parameters
    ----------
    study : Study
    preset_name : str
    out : Path
        Folder of the study.
    seeds : int
    models : tuple of str
        Names of models; all by default. The references are always there.
    sizes : tuple of int, optional
        Numbers of training trajectories of the data-efficiency curve, beside all of them; by default those of the preset.
    changes : dict, optional
        Dotted keys of `RunConfig`, changed in every run.

    Raises
    ------
    ConfigError
        If a name is unknown, or a setting is invalid.
    """
    chosen, settings, changes = study.chosen(models), study.preset(preset_name), changes or {}
    if "seed" in changes:
        raise ConfigError(f"--set seed: the runs of a study have the seeds 0 to {seeds - 1}: choose how many with --seeds")
    settings = settings if sizes is None else settings.override({"sizes": tuple(sorted(set(sizes)))})
    base = preset(study.family, preset_name)
    jobs: list[Job] = []
    for name in study.references:  # first: they take no training, and others are measured against them
        jobs += _jobs(name, chosen[name], 0, base, settings, changes, out)
    for seed in range(seeds):
        for name, model in chosen.items():
            if not model.reference:
                jobs += _jobs(name, model, seed, base, settings, changes, out)
    return Plan(study, preset_name, out, seeds, tuple(jobs), settings.sizes, changes)


def _jobs(
    name: str, model: StudyModel, seed: int, base: RunConfig, settings: StudyPreset, changes: dict[str, Any], out: Path
) -> Iterator[Job]:
    config = configured(base, model, settings, changes, seed)
    everything, held_out = config.system.sets["train"].trajectories, out / "data" / "all.zarr"
    folder = RunFolder(out / "runs" / name if model.reference else out / "runs" / name / f"seed-{seed}")
    yield Job(name, model, seed, everything, True, config, folder, held_out, held_out)
    for size in settings.sizes:
        if model.curve and size < everything:
            few = RunFolder(out / "runs" / name / f"{size}-trajectories" / f"seed-{seed}")
            yield Job(name, model, seed, size, False, config, few, out / "data" / f"train-{size}.zarr", held_out)


def configured(base: RunConfig, model: StudyModel, settings: StudyPreset, changes: dict[str, Any], seed: int) -> RunConfig:
    """Return the settings of a run: those of the preset, of the model, and what the user changed, later ones first."""
    wanted = settings.settings | model.settings | changes | {"seed": seed}
    if model.multi_step:
        wanted = {"training.horizon": {"start": 1, "end": settings.multi_step, "begin": 0.5, "finish": 1.0}} | wanted
    if model.program:
        base = ProgramRunConfig.of(base, model.program)
        wanted = {key: value for key, value in wanted.items() if not key.startswith("model.")}
    config = base.override(wanted)
    training, longest = config.training, config.system.sets["train"].steps
    fitting = {f"training.{key}": training.steps for key in INTERVALS if getattr(training, key) > training.steps}
    fitting |= {f"training.horizon.{end}": longest for end in ("start", "end") if getattr(training.horizon, end) > longest}
    return config.override(fitting)


def _differing(found: RunConfig, wanted: RunConfig) -> str:
    """Say in which settings two configs differ, at most three of them."""
    differences = [f"{key} is {a} there, {b} here" for key, a, b in differing_settings(found, wanted)]
    more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
    return "; ".join(differences[:3]) + more
