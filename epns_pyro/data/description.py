"""Description of a user's store: the fields, the time step, and the split into sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from epns_pyro.config import Config
from epns_pyro.derived import with_history
from epns_pyro.errors import ConfigError, nearest
from epns_pyro.plain import read_yaml
from epns_pyro.state import StateSpec


class Split(Config):
    """Fractions of the trajectories in each set; which trajectories is determined by `seed` alone."""

    train: float = pydantic.Field(0.8, gt=0)
    val: float = pydantic.Field(0.1, ge=0)
    test: float = pydantic.Field(0.1, ge=0)
    seed: int = 0

    def rows(self, trajectories: int) -> dict[str, np.ndarray]:
        """Return the sorted trajectory numbers of every set that is not empty; the training set never is."""
        shares = {"val": self.val, "test": self.test}
        total = self.train + self.val + self.test
        counts = {name: max(1, round(trajectories * share / total)) if share else 0 for name, share in shares.items()}
        for name in ("test", "val"):
            counts[name] = min(counts[name], trajectories - 1 - sum(n for other, n in counts.items() if other != name))
            counts[name] = max(counts[name], 0)
        order = np.random.default_rng(self.seed).permutation(trajectories)
        cuts = np.cumsum([trajectories - sum(counts.values()), counts["val"]])
        parts = dict(zip(("train", "val", "test"), np.split(order, cuts), strict=True))
        return {name: np.sort(part) for name, part in parts.items() if len(part)}


_ROTATIONS = {"E": "full", "SE": "proper", "axis": "axis", "axes": "axes", "point": "full", "translations": "none", "none": "none"}


class Description(Config):
    """A StateSpec in YAML, with the time step and the split: the content of `<store>.yaml` or of the file given by `--spec`.

    >>> fields:
    >>>   - {name: position, irreps: 1o, translates: true, unit: um}
    >>>   - {name: velocity, irreps: 1o, rate_of: position, unit: um/s}
    >>> space: 2
    >>> frame_dt: 0.5
    >>> time_unit: s
    """

    fields: list[dict[str, Any]]
    sites: tuple[str, ...] = ("body",)
    space: int = 3
    periodic: bool = False
    box: tuple[float, ...] = pydantic.Field((), description="sides of the periodic box of the bodies, in the unit of the positions")
    symmetry: Literal["E", "SE", "axis", "axes", "point", "translations", "none"] = pydantic.Field(
        "E",
        description="E: rotations, reflections, translations; SE: no reflections; axis: rotations about an axis; axes: exchanges and "
        "reflections of the axes of space; point: about a fixed centre, no translations; translations: no rotations; none",
    )
    rotations: str | None = pydantic.Field(None, description="the rotations of `symmetry`, in the words of a StateSpec")
    axis: tuple[float, ...] = pydantic.Field((), description="with symmetry axis: its direction, by default the last axis of space")
    history: int | None = pydantic.Field(
        None, ge=1, le=64, description="velocities of the last N steps in the state; the newest is derived if it is not recorded"
    )
    frame_dt: float | None = pydantic.Field(None, gt=0)
    time_unit: str = ""
    split: Split = Split()

    @property
    def spec(self) -> StateSpec:
        raw = self.model_dump(include={"fields", "sites", "space", "periodic", "box"})
        spec = with_symmetry(StateSpec.from_dict(raw), self.symmetry, self.axis, rotations=self.rotations)
        return with_history(spec, self.history, self.time_unit) if self.history else spec


def with_symmetry(spec: StateSpec, symmetry: str, axis: tuple[float, ...] = (), *, rotations: str | None = None) -> StateSpec:
    """Return the spec of states whose law has a symmetry, in the words of a `Description`.

    Raises
    ------
    ConfigError
        If there is no such symmetry, or an axis without symmetry "axis".
    """
    if symmetry not in _ROTATIONS:
        raise ConfigError(f"symmetry {symmetry!r}: {nearest(symmetry, _ROTATIONS)}")
    spec = replace(spec, rotations=rotations or _ROTATIONS[symmetry], axis=axis)
    if symmetry in ("point", "none"):
        spec = replace(spec, fields=tuple(replace(f, translates=False) for f in spec.fields))
    return spec


def read_description(path: str | Path) -> Description:
    """Read a description from a YAML file.

    Raises
    ------
    DataError
        If the file cannot be read.
    ConfigError
        If an entry is unknown or does not fit; the message names the file.
    """
    description = Description.parse(read_yaml(path), where=str(path))
    try:
        description.spec  # noqa: B018 - check the fields now, so that the error names the file
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return description
