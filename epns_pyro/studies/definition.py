"""What a study is made of, read from a YAML file: presets, models, claims. Two such files are beside this module."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import pydantic

from epns_pyro.config import Config
from epns_pyro.errors import ConfigError, nearest
from epns_pyro.plain import read_yaml

HOME = Path(__file__).parent
NAMES = ("celestial", "cellular")

Group = Literal["published", "ablation", "project", "reference"]
Settings = dict[str, Any]


class StudyPreset(Config):
    """Settings that all models of a study start from.

    Parameters
    ----------
    about : str
    multi_step : int
        Last length of the windows of multi-step training.
    sizes : tuple of int
        Numbers of training trajectories of the data-efficiency curve, beside all of them.
    settings : dict
        Dotted keys of `RunConfig`, on top of the preset of the family with the same name.
    """

    about: str
    multi_step: int = pydantic.Field(ge=1)
    sizes: tuple[pydantic.PositiveInt, ...] = ()
    settings: Settings = pydantic.Field(default_factory=dict)


class StudyModel(Config):
    """One row of the tables.

    Parameters
    ----------
    title, about : str
    group : {"published", "ablation", "project", "reference"}
        The table it stands in: a model as published, one with a part of it changed, what this project adds, or what needs no training.
    like : str, optional
        Model whose other entries and settings it takes.
    settings : dict
        Dotted keys of `RunConfig`.
    multi_step, curve : bool
        Whether it is trained on windows that grow, and on few data too.
    rollout : {"sample", "mode"}
        Whether a sample of the emission is fed back, or its mean or mode.
    program : str
        A baseline that is no step-by-step model: "gp-ode" or "ode2vae".
    reference : {"", "persistence", "truth"}
        A forecaster without training.
    """

    title: str
    about: str
    group: Group
    like: str = ""
    settings: Settings = pydantic.Field(default_factory=dict)
    multi_step: bool = False
    curve: bool = False
    rollout: Literal["sample", "mode"] = "sample"
    program: str = ""
    reference: Literal["", "persistence", "truth"] = ""


class Claim(Config):
    """A claim of the paper as a comparison of two models, or as a bound of one number.

    Parameters
    ----------
    says : str
    model : str
        The model that the claim is about.
    measure : str
        A name of `epns_pyro.studies.measures.MEASURES`.
    than : str, optional
        The model that it is better than.
    at_most : float, optional
        The bound of the measure, without another model.
    fewest : bool
        Whether both are those trained on the fewest data.
    """

    says: str
    model: str
    measure: str
    than: str = ""
    at_most: float | None = None
    fewest: bool = False

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.than) == (self.at_most is not None):
            raise ValueError(f"claim {self.says!r}: expected either `than` or `at_most`")
        return self


class Study(Config):
    """A study: `Study.named("celestial")`, or one of your own from a file."""

    name: str
    file: str = ""
    title: str
    about: str
    family: str
    presets: dict[str, StudyPreset]
    models: dict[str, StudyModel]
    claims: tuple[Claim, ...] = ()
    left_out: dict[str, str] = pydantic.Field(default_factory=dict)

    @classmethod
    def named(cls, name: str) -> Self:
        """Read a study that comes with the package, or that of a file NAME.yaml.

        Raises
        ------
        ConfigError
            If there is none of that name, or if the file holds no study.
        """
        path = HOME / f"{name}.yaml" if name in NAMES else Path(name)
        if path.suffix != ".yaml" or not path.is_file():
            raise ConfigError(f"unknown study {name!r}: {nearest(name, NAMES)}; or name a file that ends in .yaml")
        raw = read_yaml(path)
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: expected the keys of a study, found {type(raw).__name__}")
        return cls.parse(raw | {"name": path.stem, "file": "" if name in NAMES else str(path)}, where=str(path))

    @pydantic.model_validator(mode="before")
    @classmethod
    def _inherited(cls, raw: Any) -> Any:
        """Give every model the entries of the one that it is like, which stands above it."""
        given, models = raw.get("models"), dict[str, Any]()
        if not isinstance(given, dict) or not all(isinstance(own, dict) for own in given.values()):
            return raw
        for name, own in given.items():
            like = models.get(own.get("like"), {})
            models[name] = like | own | {"settings": (like.get("settings") or {}) | (own.get("settings") or {})}
        return raw | {"models": models}

    @pydantic.model_validator(mode="after")
    def _known(self) -> Self:
        wanted = [model.like for model in self.models.values() if model.like]
        wanted += [name for claim in self.claims for name in (claim.model, claim.than) if name]
        if unknown := sorted(set(wanted) - self.models.keys()):
            raise ValueError(f"no model is called {', '.join(unknown)}")
        return self

    def preset(self, name: str) -> StudyPreset:
        """Return a preset of the study, or raise ConfigError if it has none of that name."""
        if name not in self.presets:
            raise ConfigError(f"unknown preset {name!r} of study {self.name!r}: {nearest(name, self.presets)}")
        return self.presets[name]

    @cached_property
    def references(self) -> tuple[str, ...]:
        """Names of the forecasters that need no training; they are in every study."""
        return tuple(name for name, model in self.models.items() if model.reference)

    def chosen(self, names: tuple[str, ...]) -> dict[str, StudyModel]:
        """Return models by name, in the order of the study, with the references; all if no names are given.

        Raises
        ------
        ConfigError
            If a name is unknown, or if its model cannot follow such data.
        """
        for name in names:
            if name in self.left_out:
                raise ConfigError(f"--models {name}: not in the study {self.name!r}: {self.left_out[name]}")
            if name not in self.models:
                raise ConfigError(f"--models {name}: the study {self.name!r} has no such model: {nearest(name, self.models)}")
        wanted = {*names, *self.references} if names else set(self.models)
        return {name: model for name, model in self.models.items() if name in wanted}
