"""The space of the bodies, as a value: displacements, wrapping, and the rotations that are symmetries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from epns_pyro.errors import ConfigError

Array = Any  # numpy.ndarray or torch.Tensor
SAME = 1e-5  # relative: sides that differ by less are the same, up to the rounding of a file
ROTATIONS = ("full", "proper", "axis", "axes", "none")


@dataclass(frozen=True)
class Space:
    """Flat space or a periodic box, with the rotations that are symmetries of the system.

    Parameters
    ----------
    dim : int
    box : tuple of float
        Sides of a periodic box, one per axis, in the unit of the positions; empty: not periodic.
    rotations : {"full", "proper", "axis", "axes", "none"}
        Rotations and reflections, O(d); rotations only, SO(d); those that keep an axis fixed; those that map the axes of space to each
        other, as where a simulator bounds every component of a force; none.
    axis : tuple of float
        Special direction if rotations are about an axis (gravity, flow); by default the last axis of space.
    own_box : bool
        Whether every state is in a periodic box of its own, whose sides it holds: then `of` gives the space of states.
    sides : array, (*batch, 1, space), optional
        These sides.
    """

    dim: int
    box: tuple[float, ...] = ()
    rotations: str = "full"
    axis: tuple[float, ...] = ()
    own_box: bool = False
    sides: Array | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("box", "axis"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if self.rotations not in ROTATIONS:
            raise ConfigError(f"rotations {self.rotations!r} is not one of {', '.join(ROTATIONS)}")
        for name, what in (("box", "side"), ("axis", "component")):
            values = getattr(self, name)
            if values and len(values) != self.dim:
                raise ConfigError(f"{name}: expected {self.dim} numbers, one {what} per axis of space, found {len(values)}")
            if not all(np.isfinite(values)):
                raise ConfigError(f"{name}: expected finite numbers, found {list(values)}")
        if self.box and self.own_box:
            raise ConfigError("box: one for all states, or a field of kind 'box' for each: found both")
        if any(side <= 0 for side in self.box):
            raise ConfigError(f"box: sides have to be positive, found {list(self.box)}")
        if self.axis and self.rotations != "axis":
            raise ConfigError("an axis goes with rotations about it: set rotations to 'axis', or leave the axis out")
        if self.axis and not any(self.axis):
            raise ConfigError("axis: expected a direction, found zero")

    @property
    def periodic(self) -> bool:
        return bool(self.box) or self.own_box

    def of(self, sides: Array) -> Space:
        """Return the space of states whose boxes have these sides, (*batch, 1, space), or one like this that goes with any array."""
        return replace(self, sides=sides)

    def along(self, gather: Callable[[Array], Array]) -> Space:
        """Return the space of what `gather` makes of arrays (*batch, body, space), such as the edges of a graph."""
        return self if self.sides is None else self.of(gather(self.sides))

    @property
    def special_directions(self) -> tuple[tuple[float, ...], ...]:
        """Unit vectors fixed by all rotations; networks receive them as constant vectors."""
        if self.rotations == "axis":
            axis = self.axis or (*(0.0,) * (self.dim - 1), 1.0)
            return (tuple(np.asarray(axis) / np.linalg.norm(axis)),)
        return tuple(map(tuple, np.eye(self.dim))) if self.rotations == "none" else ()

    def displacement(self, start: Array, end: Array) -> Array:
        """Return the displacement from one place (..., space) to another: in a box, to its nearest image."""
        way = end - start
        if not self.periodic:
            return way
        sides = self._sides(way)
        return way - sides * (torch.round(way / sides) if isinstance(way, torch.Tensor) else np.round(way / sides))

    def nearest(self, place: Array, to: Array) -> Array:
        """Return the image of a place (..., space) that is nearest to another place."""
        return to + self.displacement(to, place) if self.periodic else place

    def wrap(self, place: Array) -> Array:
        """Return the image of a place (..., space) inside the box."""
        if not self.periodic:
            return place
        sides = self._sides(place)
        return place - sides * (torch.floor(place / sides) if isinstance(place, torch.Tensor) else np.floor(place / sides))

    def _sides(self, like: Array) -> Array:
        if self.own_box:
            if self.sides is None:
                raise TypeError("every state has a box of its own: its sides are needed")
            return self.sides
        return like.new_tensor(self.box) if isinstance(like, torch.Tensor) else np.asarray(self.box)
