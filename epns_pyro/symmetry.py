"""Symmetry groups, their action on states and latents, and measures of how well a function or density respects them.

A group samples random elements; an element acts on states through `StateSpec.act` and on latents by permuting entities (and rotating
latents that are vectors). All groups here preserve volume, so the simulator's density must satisfy
log p(g x, g z | g x_0) = log p(x, z | x_0) exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from epns_pyro.errors import ConfigError
from epns_pyro.geometry import Space
from epns_pyro.state import Field, GroupElement, StateSpec

Array = Any


class Group(ABC):
    """A symmetry group that can sample random elements."""

    @abstractmethod
    def random(self, x: Array, rng: np.random.Generator) -> GroupElement:
        """Sample an element that can act on states with the shape of x (*batch, *site, channel)."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The group in words, for reports."""

    def moving_farther(self, factor: float) -> Group | None:
        """Return the group with its random translations multiplied by a factor; None if nothing translates freely."""
        return None


@dataclass(frozen=True)
class EuclideanElement(GroupElement):
    """x -> R x + t on vectors of space, sites permuted: body i of the result is body permutation[i] of the argument.

    Parameters
    ----------
    rotation : numpy.ndarray, (space, space)
        Orthogonal matrix; determinant -1 for a reflection.
    translation : numpy.ndarray, (space,)
        In the unit of the translating fields.
    permutation : numpy.ndarray, (body,)
        Of integers.
    """

    rotation: np.ndarray
    translation: np.ndarray
    permutation: np.ndarray

    def act(self, spec: StateSpec, fields: tuple[Field, ...], x: Array) -> Array:
        return self._move(fields, self._permute(x, axis=-2))

    def act_latent(self, z: Array, fields: tuple[Field, ...] = ()) -> Array:
        shared = z.shape[-2] == 1  # latents of the whole system: nothing to permute
        z = z if shared else self._permute(z, axis=-2)
        return self._move(fields, z) if fields else z

    def _move(self, fields: tuple[Field, ...], x: Array) -> Array:
        """Rotate, reflect and translate the channels of fields."""
        sign = float(np.sign(np.linalg.det(self.rotation)))
        start, parts = 0, []
        like = _caster(x)
        for field in fields:
            width = field.size if field.is_pair else len(self.rotation) if field.is_vector else 1
            part = x[..., start : start + width]
            start += width
            if field.is_pair:  # row i of a state holds e_i*: its columns are bodies too
                part = self._permute_columns(part)
            if field.is_vector:  # sides of a box have no sign
                part = part @ like(np.abs(self.rotation.T) if field.kind == "box" else self.rotation.T)
            if field.parity < 0:
                part = sign * part
            if field.translates:
                part = part + like(self.translation)
            parts.append(part)
        return torch.cat(parts, -1) if isinstance(x, torch.Tensor) else np.concatenate(parts, -1)

    def _permute(self, x: Array, axis: int) -> Array:
        return _reordered(x, self.permutation, axis)

    def _permute_columns(self, pairs: Array) -> Array:
        """Permute the columns of pairs (*batch, body, column); columns after the last body stay."""
        bodies, columns = len(self.permutation), pairs.shape[-1]
        return _reordered(pairs, np.concatenate([self.permutation, np.arange(bodies, columns)]), axis=-1)


@dataclass(frozen=True)
class Euclidean(Group):
    """E(d) x S_n: rotations, reflections and translations of space, and permutations of the bodies, or a subgroup of it.

    Parameters
    ----------
    space : int
        Dimension d.
    translation_scale : float
        Standard deviation of the random translations, in the unit of the positions; 0 if nothing translates.
    geometry : Space, optional
        Rotations that are symmetries; all by default. In a box only those that map the box to itself.
    """

    space: int = 3
    translation_scale: float = 10.0
    geometry: Space | None = None

    @classmethod
    def of(cls, spec: StateSpec) -> Euclidean:
        """Return the group that a spec declares."""
        translates = any(f.translates for f in spec.fields)
        geometry = None if spec.geometry == Space(spec.space) else spec.geometry
        return cls(spec.space, 10.0 if translates else 0.0, geometry)

    def random(self, x: Array, rng: np.random.Generator) -> EuclideanElement:
        return EuclideanElement(
            rotation=self._turn(rng),
            translation=self.translation_scale * rng.standard_normal(self.space),
            permutation=rng.permutation(x.shape[-2]),
        )

    def moving_farther(self, factor: float) -> Group | None:
        return replace(self, translation_scale=factor * self.translation_scale) if self.translation_scale else None

    def _turn(self, rng: np.random.Generator) -> np.ndarray:
        """Sample an orthogonal matrix (space, space) that is a symmetry."""
        space = self.geometry or Space(self.space)
        if space.rotations == "none":
            return np.eye(self.space)
        if space.periodic or space.rotations == "axes":
            turn = _exchange(space, rng)
            while space.rotations == "axis" and not np.allclose(turn @ space.special_directions[0], space.special_directions[0]):
                turn = _exchange(space, rng)
        elif space.rotations == "axis":
            (axis,) = np.asarray(space.special_directions)
            basis = np.linalg.qr(np.concatenate([axis[:, None], np.eye(self.space)], 1))[0]
            basis[:, 0] = axis
            turn = basis @ np.block(
                [[np.ones((1, 1)), np.zeros((1, self.space - 1))], [np.zeros((self.space - 1, 1)), _haar(self.space - 1, rng)]]
            )
            return turn @ basis.T
        else:
            turn = _haar(self.space, rng)
        if space.rotations == "proper" and np.linalg.det(turn) < 0:
            turn[:, 0] = -turn[:, 0]
        return turn

    @property
    def description(self) -> str:
        space = self.geometry or Space(self.space)
        moved = ["translations"] if self.translation_scale else []
        letter = "E" if self.translation_scale else "O"
        if space.periodic:
            kept = " that keep the axis" if space.rotations == "axis" else ""
            name, turns = f"T({self.space})", [f"exchanges and reflections of the sides of the box{kept}"]
        elif space.rotations == "full":
            name, turns = f"{letter}({self.space})", ["rotations", "reflections"]
        elif space.rotations == "axes":
            name, turns = f"{letter}({self.space}) on axes", ["exchanges and reflections of the axes"]
        elif space.rotations == "proper":
            name, turns = f"S{letter}({self.space})", ["rotations"]
        elif space.rotations == "axis":
            name, turns = f"{letter}({self.space}) about an axis", ["rotations and reflections about an axis"]
        else:
            name, turns = f"T({self.space})" if moved else "1", []
        return f"{name} × S_N: {', '.join([*turns, *moved, 'permutations of bodies'])}"


def _reordered(x: Array, order: np.ndarray, axis: int) -> Array:
    """Return x with its entries along an axis in another order."""
    if isinstance(x, torch.Tensor):
        return x.index_select(axis % x.ndim, torch.as_tensor(order, device=x.device))
    return np.take(x, order, axis=axis)


def _exchange(space: Space, rng: np.random.Generator) -> np.ndarray:
    """Sample a signed permutation of axes of the same length, or of all axes where the box of a state turns with it."""
    order, sides = np.arange(space.dim), space.box or (1.0,) * space.dim
    for side in set(sides):
        same = [i for i, other in enumerate(sides) if other == side]
        order[same] = rng.permutation(same)
    return np.eye(space.dim)[order] * rng.choice([-1.0, 1.0], space.dim)


def _haar(size: int, rng: np.random.Generator) -> np.ndarray:
    """Sample an orthogonal matrix (size, size) from the Haar measure (Mezzadri 2007); half of the samples are reflections."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))


@dataclass(frozen=True)
class RelabellingElement(GroupElement):
    """Cells renumbered, the lattice shifted, then rotated: cell i of the result is cell permutation[i] of the argument (from 0).

    In images cell i has the label i + 1, and label 0, the medium, is unchanged; properties of cells are permuted with them.

    Parameters
    ----------
    permutation : numpy.ndarray, (cell,)
        Of integers.
    shift : (int, int)
        Pixels by which the image moves in y and x, with periodic boundaries.
    flips : (bool, bool)
        Whether y and x are mirrored.
    transposed : bool
        Whether y and x are exchanged, after the flips. With the flips these are the eight symmetries of the square.
    """

    permutation: np.ndarray
    shift: tuple[int, int] = (0, 0)
    flips: tuple[bool, bool] = (False, False)
    transposed: bool = False

    def act(self, spec: StateSpec, fields: tuple[Field, ...], x: Array) -> Array:
        if vectors := [f.name for f in fields if f.is_vector]:
            raise ConfigError(f"symmetries of a lattice act on labels, categories and scalars; {', '.join(vectors)} is a vector field")
        channels = [self._rename(x[..., i]) if field.kind == "label" else x[..., i] for i, field in enumerate(fields)]
        x = torch.stack(channels, -1) if isinstance(x, torch.Tensor) else np.stack(channels, -1)
        return self._move(x)

    def act_latent(self, z: Array, fields: tuple[Field, ...] = ()) -> Array:
        if fields:
            raise ConfigError("latents of cells are invariant: there are no vectors among them")
        if isinstance(z, torch.Tensor):
            return z.index_select(z.ndim - 2, torch.as_tensor(self.permutation, device=z.device))
        return np.take(z, self.permutation, axis=-2)

    def _rename(self, labels: Array) -> Array:
        names = np.zeros(len(self.permutation) + 1, np.int64)
        names[1 + self.permutation] = 1 + np.arange(len(self.permutation))
        if isinstance(labels, torch.Tensor):
            return torch.as_tensor(names, device=labels.device)[labels.long()].to(labels.dtype)
        return names[labels.astype(np.int64)].astype(labels.dtype)

    def _move(self, x: Array) -> Array:
        """Shift and rotate images (*batch, y, x, channel)."""
        mirrored = [axis for axis, flip in zip((-3, -2), self.flips, strict=True) if flip]
        if isinstance(x, torch.Tensor):
            x = x.roll(self.shift, (-3, -2)).flip(mirrored)
            return x.transpose(-3, -2) if self.transposed else x
        x = np.flip(np.roll(x, self.shift, (-3, -2)), tuple(mirrored))
        return np.swapaxes(x, -3, -2) if self.transposed else x


@dataclass(frozen=True)
class Relabelling(Group):
    """S_n on the labels of n cells and, optionally, the shifts of a periodic lattice and the symmetries of the square.

    Parameters
    ----------
    cells : int
        Number of labels n; the labels are 1 .. n, and 0, the medium, is not permuted.
    shifts : bool
        Whether the lattice is periodic, so that it can be shifted.
    turns : bool
        Whether mirror images are included, and on a square lattice rotations by 90 degrees.
    """

    cells: int
    shifts: bool = False
    turns: bool = False

    def random(self, x: Array, rng: np.random.Generator) -> RelabellingElement:
        height, width = x.shape[-3:-1]
        return RelabellingElement(
            permutation=rng.permutation(self.cells),
            shift=(int(rng.integers(height)), int(rng.integers(width))) if self.shifts else (0, 0),
            flips=(bool(rng.integers(2)), bool(rng.integers(2))) if self.turns else (False, False),
            transposed=bool(rng.integers(2)) if self.turns and height == width else False,
        )

    @property
    def description(self) -> str:
        parts = [f"S_{self.cells}: relabelling of cells"]
        parts += ["shifts of the lattice"] * self.shifts + ["mirror images and quarter turns"] * self.turns
        return ", ".join(parts)


def _caster(x: Array) -> Callable[[np.ndarray], Array]:
    if isinstance(x, torch.Tensor):
        return lambda a: torch.as_tensor(a, dtype=x.dtype, device=x.device)
    return lambda a: a.astype(x.dtype)


@dataclass(frozen=True)
class InvarianceError:
    """Largest and median violation over random group elements; `samples` is the number of elements tried."""

    maximum: float
    median: float
    samples: int


def equivariance_error(
    function: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    group: Group,
    *,
    act_in: Callable[[GroupElement, torch.Tensor], torch.Tensor],
    act_out: Callable[[GroupElement, torch.Tensor], torch.Tensor],
    samples: int = 10,
    seed: int = 0,
) -> InvarianceError:
    """Measure max |f(g x) - g f(x)| / max |f(x)| over random g.

    Parameters
    ----------
    function : callable
        Deterministic, from raw states x (*batch, *site, channel) to a tensor. Everything derived from the state (frames, edges) must be
        computed inside, or the check proves nothing.
    x : torch.Tensor
        Raw states; use float64 to distinguish a defect from rounding errors.
    group : Group
    act_in, act_out : callable
        (g, tensor) -> tensor: the action of g on arguments and results, e.g. ``spec.act`` and ``spec.act_dynamic``; for an invariant output
        ``lambda g, y: y`` or ``lambda g, z: g.act_latent(z)``.
    """
    with torch.no_grad():
        expected = function(x)
        if not expected.numel():  # a law of nothing, as that of the latents of a model without latents
            return InvarianceError(0.0, 0.0, samples)
        size = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
        errors = [
            float((function(act_in(g, x)) - act_out(g, expected)).abs().max() / size) for g in random_elements(group, x, samples, seed)
        ]
    return InvarianceError(max(errors), float(np.median(errors)), samples)


def density_invariance_error(
    log_density: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    spec: StateSpec,
    x0: torch.Tensor,
    path: torch.Tensor,
    z: torch.Tensor,
    group: Group,
    *,
    latent_fields: tuple[Field, ...] = (),
    samples: int = 10,
    seed: int = 0,
) -> InvarianceError:
    """Measure |log p(g x, g z | g x_0) - log p(x, z | x_0)| / max(1, |log p(x, z | x_0)|) over random g and the batch.

    Parameters
    ----------
    log_density : callable
        (x0, path, z) -> nats, (batch,); ``sim.log_density`` of a trained simulator is one.
    x0 : torch.Tensor, (batch, *site, channel)
    path : torch.Tensor, (batch, time, *site, channel)
    z : torch.Tensor, (batch, time, entity, latent)
    latent_fields : tuple of Field
        Fields of the latents of an entity, if they are not invariant: `transition.latent_fields`.
    """
    with torch.no_grad():
        reference = log_density(x0, path, z)
        errors = []
        for g in random_elements(group, x0, samples, seed):
            moved = log_density(spec.act(g, x0), spec.act(g, path), g.act_latent(z, latent_fields))
            errors.append(float(((moved - reference).abs() / reference.abs().clamp_min(1.0)).max()))
    return InvarianceError(max(errors), float(np.median(errors)), samples)


def random_elements(group: Group, x: Array, samples: int, seed: int) -> Iterator[GroupElement]:
    """Draw elements of a group for states like x, always the same ones with a seed."""
    rng = np.random.default_rng(seed)
    return (group.random(x, rng) for _ in range(samples))
