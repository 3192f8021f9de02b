"""Cellular dynamics: cell sorting in the Cellular Potts model.

Energies are dimensionless, lengths in pixels, times in Monte Carlo steps (MCS).
"""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, final

import numpy as np
import pydantic

from epns_pyro.config import Config
from epns_pyro.errors import ShapeError
from epns_pyro.later import later
from epns_pyro.systems.base import SYSTEMS, Observable, SetConfig, SystemConfig
from epns_pyro.systems.lattice import MOST_LABELS, square_lattice
from epns_pyro.systems.tissues import TissueSystem
from epns_pyro.threads import limited

if TYPE_CHECKING:
    from epns_pyro.systems import label_observables as labels
    from epns_pyro.systems import potts_dynamics as dynamics
else:
    labels = later("epns_pyro.systems.label_observables")
    dynamics = later("epns_pyro.systems.potts_dynamics")

Pair = tuple[pydantic.PositiveInt, pydantic.PositiveInt]
Matrix = tuple[tuple[float, ...], ...]


class ContactEnergies(Config):
    """Energy of a pair of neighbouring pixels of different cells.

    Parameters
    ----------
    same : float
        Of two cells of the same type. With 2, as in CompuCell3D's cellsort demo, cells break into fragments.
    different : float
        Of two cells of different types.
    medium : float
        Of a cell and the medium.
    """

    same: float = 6.0
    different: float = 11.0
    medium: float = 16.0

    def matrix(self, types: int) -> np.ndarray:
        J = np.full((types + 1, types + 1), self.different)
        np.fill_diagonal(J, self.same)
        J[0, :] = J[:, 0] = self.medium
        J[0, 0] = 0.0
        return J


def _read_energies(raw: Any) -> ContactEnergies | Matrix:
    if isinstance(raw, ContactEnergies):
        return raw
    if isinstance(raw, dict):
        return ContactEnergies.parse(raw, where="{same, different, medium}")
    try:
        J = np.array(raw, dtype=np.float64)
    except (TypeError, ValueError):
        J = np.array(np.nan)
    if J.ndim != 2 or J.shape[0] != J.shape[1] or not np.isfinite(J).all():
        raise ValueError(f"expected {{same, different, medium}} or a square matrix of finite numbers, the medium first, found {raw!r}")
    for a, b in np.argwhere(J != J.T)[:1]:
        raise ValueError(f"expected a symmetric matrix, found [{a}][{b}] = {J[a, b]:g} but [{b}][{a}] = {J[b, a]:g}")
    return tuple(map(tuple, J.tolist()))


def _sets(train: int, held_out: int, initial_states: int) -> dict[str, SetConfig]:
    return {
        "train": SetConfig(trajectories=train, steps=60),
        "val": SetConfig(trajectories=held_out, steps=60),
        "test": SetConfig(trajectories=held_out, steps=60),
        "same_init": SetConfig(trajectories=400 * initial_states, steps=60, initial_states=initial_states),
    }


class PottsConfig(SystemConfig, ABC):
    """Settings that all systems of the Cellular Potts model share.

    Parameters
    ----------
    lattice : (int, int)
        Height and width, pixels.
    blocks, block_size : (int, int), int
        Cells start as rows and columns of square blocks in the middle of the lattice, numbered row by row; side in pixels.
    types : int
        Each cell's type is sampled uniformly from 1 .. types; the medium has type 0.
    contact_energies : ContactEnergies or matrix
        J: either three numbers {same, different, medium}, or a symmetric matrix (type + 1, type + 1) with the medium first.
    target_area, stiffness : float
        Pixels; lambda of the area term lambda (area - target)^2.
    temperature : float
        T. At 0, copy attempts that raise the energy always fail.
    neighbours : {4, 8}
        The nearest pixels that are used for contacts and copies.
    boundary : {"no flux", "periodic"}
        No flux: copy attempts towards pixels outside the lattice are skipped, and such neighbours contribute nothing.
    frame_mcs : int
        Monte Carlo steps between two frames; one step is as many copy attempts as pixels.
    plausible_area, implausible_share : (float, float), float
        A trajectory is no longer alive when more than this fraction of its cells has an area outside this range (in target areas).
    burn_in : int
        1: frame 0 is not used for training, because it consists of perfect squares.
    """

    lattice: Pair = (72, 72)
    blocks: Pair = (8, 8)
    block_size: pydantic.PositiveInt = 5
    types: int = pydantic.Field(4, ge=1, le=254)
    contact_energies: Annotated[ContactEnergies | Matrix, pydantic.BeforeValidator(_read_energies)] = ContactEnergies()
    target_area: pydantic.PositiveFloat = 25.0
    stiffness: pydantic.NonNegativeFloat = 2.0
    temperature: pydantic.NonNegativeFloat = 10.0
    neighbours: Literal[4, 8] = 8
    boundary: Literal["no flux", "periodic"] = "no flux"
    frame_mcs: pydantic.PositiveInt = 50
    plausible_area: tuple[pydantic.NonNegativeFloat, pydantic.PositiveFloat] = (0.64, 1.2)
    implausible_share: float = pydantic.Field(12 / 64, ge=0, le=1)
    burn_in: int = pydantic.Field(1, ge=0)

    @property
    def cells(self) -> int:
        return self.blocks[0] * self.blocks[1]

    @property
    def contact_matrix(self) -> np.ndarray:
        """J: (type + 1, type + 1), the medium first."""
        J = self.contact_energies
        return J.matrix(self.types) if isinstance(J, ContactEnergies) else np.array(J)

    @pydantic.field_validator("plausible_area")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"expected (low, high) with low < high, found {value}")
        return value

    @pydantic.model_validator(mode="after")
    def _coherent(self) -> Self:
        for side, size, count in zip(("height", "width"), self.lattice, self.blocks, strict=True):
            if count * self.block_size > size:
                raise ValueError(
                    f"{count} blocks of {self.block_size} pixels need a lattice {side} of {count * self.block_size}, found {size}: "
                    "enlarge lattice, or lower blocks or block_size"
                )
            if self.boundary == "periodic" and size < 3:
                raise ValueError(f"a periodic lattice needs a {side} of 3 or more, so that the neighbours of a pixel differ; found {size}")
        if self.cells >= MOST_LABELS:
            raise ValueError(f"expected fewer than {MOST_LABELS} cells, found blocks {self.blocks} = {self.cells}")
        if self.contact_matrix.shape[0] != self.types + 1:
            size = self.contact_matrix.shape[0]
            raise ValueError(f"contact_energies: {self.types} types and the medium need a matrix of {self.types + 1} rows, found {size}")
        return self


def blocks_of_cells(config: PottsConfig) -> np.ndarray:
    """Return a label image of square blocks in the middle of the lattice, numbered row by row: (y, x), int16."""
    block = np.arange(1, config.cells + 1, dtype=np.int16).reshape(config.blocks)
    block = block.repeat(config.block_size, 0).repeat(config.block_size, 1)
    top, left = ((size - side) // 2 for size, side in zip(config.lattice, block.shape, strict=True))
    image = np.zeros(config.lattice, np.int16)
    image[top : top + block.shape[0], left : left + block.shape[1]] = block
    return image


def begin(system: TissueSystem, x0: np.ndarray, steps: int, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check what a simulation is given, and return what it needs.

    Returns
    -------
    frames : numpy.ndarray, (n, steps + 1, pixel), uint16
        Labels; only frame 0 is set.
    types : numpy.ndarray, (n, label)
    seeds : numpy.ndarray, (n,), uint64

    Raises
    ------
    ShapeError
        If there is not one seed per state of x0, (n, y, x, channel), or a negative number of steps.
    """
    seeds = np.asarray(seeds)
    if seeds.shape != x0.shape[:1]:
        raise ShapeError(f"seeds: expected one per trajectory, {x0.shape[:1]}, found {seeds.shape}")
    if steps < 0:
        raise ShapeError(f"steps: expected 0 or more frames, found {steps}")
    images, types = system.read(x0[:, None], typed=True, what="the initial state")
    frames = np.empty((len(x0), steps + 1, int(np.prod(images.shape[-2:]))), np.uint16)
    frames[:, 0] = images.reshape(len(x0), -1)
    return frames, types, seeds.astype(np.uint64)


@SYSTEMS.register("cells")
class CellsConfig(PottsConfig):
    """Settings of the cellular system, see `PottsConfig`; the defaults are 64 cells, `small` are 16."""

    name: Literal["cells"] = "cells"
    sets: dict[str, SetConfig] = pydantic.Field(default_factory=lambda: _sets(800, 100, 5))

    @classmethod
    def small(cls) -> Self:
        """Return the small preset: 16 cells on 40 x 40 pixels, 20 MCS per frame."""
        return cls(lattice=(40, 40), blocks=(4, 4), frame_mcs=20, sets=_sets(400, 50, 2))

    def build(self) -> Cells:
        return Cells(self)


@final
class Cells(TissueSystem):
    """The Cellular Potts model of Graner, Glazier and Hogeweg, started from any label image.

    States are integer arrays (*batch, y, x, channel), with the cell's label and its type as channels. A cell may disappear or split.
    """

    name = "cells"
    config: CellsConfig
    can_simulate = True
    time_unit = "MCS"
    report_frames = (15, 30, 45)
    key_observables = ("clusters", "area_mean", "fragments", "distance_travelled")

    def __init__(self, config: CellsConfig) -> None:
        periodic = config.boundary == "periodic"
        super().__init__(
            config.lattice,
            cells=config.cells,
            types=config.types,
            periodic=periodic,
            implausible_share=config.implausible_share,
        )
        self.config, self.frame_dt = config, float(config.frame_mcs)
        self.potts = dynamics.potts(config.contact_matrix, config.stiffness, config.target_area, config.temperature)
        self.lattice = square_lattice(*config.lattice, neighbours=config.neighbours, periodic=periodic)

    # -- the process -------------------------------------------------------------------------------------------------------

    def initial(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Sample n tissues of square blocks with random types: (n, y, x, channel), int16. One call for n equals several calls."""
        c = self.config
        types = np.zeros((n, c.cells + 1), np.int16)
        types[:, 1:] = rng.integers(1, c.types + 1, size=(n, c.cells))
        return self._states(np.broadcast_to(blocks_of_cells(c), (n, *c.lattice)), types)

    def simulate(self, x0: np.ndarray, steps: int, seeds: np.ndarray, *, workers: int | None = None) -> np.ndarray:
        """Run from label images x0 (n, y, x, channel) for `steps` frames: (n, steps + 1, y, x, channel), int16.

        `seeds` (n,) uint64, one per trajectory: the result does not depend on the number of threads (`workers`, default: all), nor on the
        other trajectories.
        """
        x0 = np.asarray(x0)
        frames, types, seeds = begin(self, x0, steps, seeds)
        attempts = self.config.frame_mcs * self.lattice.pixels
        with limited(workers):
            dynamics.trajectories(frames, types, self.lattice, self.potts, attempts, seeds)
        return self._states(frames.reshape(len(x0), steps + 1, *self.config.lattice), types)

    # -- what is measured --------------------------------------------------------------------------------------------------

    def measure(self, cells: np.ndarray, types: np.ndarray) -> dict[str, Observable]:
        """Measure images cells (*batch, time, y, x) of cells with types (*batch, label), including their energy."""
        measured = super().measure(cells, types)
        contacts = labels.contacts(cells, types, self.lattice, self.config.types + 1)
        energy = self._hamiltonian(contacts, labels.areas(cells, self.config.cells), types[..., None, 1:] > 0)
        return measured | {"hamiltonian": Observable("Hamiltonian", "", energy)}

    @property
    def plausible_area(self) -> tuple[float, float]:
        low, high = (edge * self.config.target_area for edge in self.config.plausible_area)
        return low, high

    def _hamiltonian(self, contacts: np.ndarray, area: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Return H = sum over neighbouring pairs with different labels of J + lambda sum over cells (area - target)^2: (*batch, time)."""
        strain = (present * (area - self.config.target_area) ** 2).sum(-1)
        return (self.config.contact_matrix * contacts).sum((-3, -2, -1)) + self.config.stiffness * strain

    # -- states ------------------------------------------------------------------------------------------------------------

    def _states(self, images: np.ndarray, types: np.ndarray) -> np.ndarray:
        """States (n, *time, y, x, channel) of label images (n, *time, y, x) with the type of every pixel looked up in types (n, label)."""
        kind = np.take_along_axis(types, images.reshape(len(images), -1).astype(np.intp), axis=-1).reshape(images.shape)
        return self.spec.pack(cell=images.astype(np.int16), type=kind.astype(np.int16))
