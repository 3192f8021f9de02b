"""Recorded cells: label images, segmented and tracked by a user, whose law nobody can simulate."""

from __future__ import annotations

from typing import Literal, final

import numpy as np
import pydantic

from epns_pyro.errors import ShapeError
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Relabelling
from epns_pyro.systems import label_observables as labels
from epns_pyro.systems.base import SYSTEMS, Observable, System, SystemConfig
from epns_pyro.systems.lattice import square_lattice


@SYSTEMS.register("recorded_cells")
class RecordedCellsConfig(SystemConfig):
    """What there is to know about recorded cells.

    Parameters
    ----------
    lattice : (int, int)
        Height and width of an image, pixels.
    cells, types : int
        Labels are 0 (the medium) to `cells`, types 0 (the medium's) to `types`.
    periodic : bool
        Whether the image wraps around at its edges.
    frame_dt : float
        Time between two frames, in `time_unit`.
    time_unit : str
        For reports.
    area : (int, int), optional
        Smallest and largest area of a cell in the data, pixels; 0 where cells come and go. None: any area is plausible.
    area_multiple : float
        A cell is implausible when it is smaller or larger than those by more than this factor.
    implausible_share : float
        A trajectory is no longer alive once more than this share of its cells is implausible.
    """

    name: Literal["recorded_cells"] = "recorded_cells"
    lattice: tuple[pydantic.PositiveInt, pydantic.PositiveInt]
    cells: int = pydantic.Field(ge=1, lt=labels.MOST_LABELS)
    types: int = pydantic.Field(1, ge=1, le=254)
    periodic: bool = False
    frame_dt: pydantic.PositiveFloat = 1.0
    time_unit: str = ""
    area: tuple[pydantic.NonNegativeInt, pydantic.PositiveInt] | None = None
    area_multiple: float = pydantic.Field(2.0, ge=1)
    implausible_share: float = pydantic.Field(12 / 64, ge=0, le=1)

    def build(self) -> RecordedCells:
        return RecordedCells(self)


@final
class RecordedCells(System):
    """Cells in label images, known from data only: no simulator, no oracle.

    States are integer arrays (*batch, y, x, channel), channels the cell's label and its type.
    """

    name = "recorded_cells"
    config: RecordedCellsConfig

    def __init__(self, config: RecordedCellsConfig) -> None:
        self.config = config
        self.spec = StateSpec(
            fields=(
                Field("cell", kind="label", size=config.cells + 1),
                Field("type", kind="category", size=config.types + 1, of="cell", dynamic=False),
            ),
            sites=("y", "x"),
            space=2,
            periodic=config.periodic,
        )
        self.symmetry = Relabelling(config.cells, shifts=config.periodic)
        self.frame_dt, self.time_unit = config.frame_dt, config.time_unit
        self.lattice = square_lattice(*config.lattice, neighbours=4, periodic=config.periodic)

    def observables(self, x: np.ndarray) -> dict[str, Observable]:
        """Clusters, areas, contacts and motion of trajectories x (*batch, time, y, x, channel), as those of the cellular system."""
        images, types = self._read(x)
        present = types[..., None, 1:] > 0
        area = labels.areas(images, self.config.cells)
        mean_area = _mean(area, present)
        edges = labels.contacts(images, types, self.lattice, self.config.types + 1).sum(-3)
        same, medium = np.trace(edges, axis1=-2, axis2=-1), edges[..., 0, 1:].sum(-1)
        displacement, travelled = labels.paths(labels.centres(images, self.config.cells, self.lattice), self.lattice)
        return {
            "clusters": Observable("clusters of one type", "", labels.components(images, types, self.lattice), discrete=True),
            "area_mean": Observable("mean cell area", "pixels", mean_area),
            "area_sd": Observable("spread of cell areas", "pixels", np.sqrt(_mean((area - mean_area[..., None]) ** 2, present))),
            "contact_same": Observable("contact of cells of one type", "pixel edges", same, discrete=True),
            "contact_different": Observable(
                "contact of cells of different types", "pixel edges", edges.sum((-2, -1)) - same - medium, discrete=True
            ),
            "contact_medium": Observable("contact with the medium", "pixel edges", medium, discrete=True),
            "gyration_radius": Observable("radius of gyration of the tissue", "pixels", labels.gyration_radius(images, self.lattice)),
            "changed_pixels": Observable("pixels changed since the last frame", "pixels", labels.changed_pixels(images), discrete=True),
            "displacement": Observable("mean displacement of a cell", "pixels", _mean(displacement, present)),
            "distance_travelled": Observable("mean distance travelled by a cell", "pixels", _mean(travelled, present)),
        }

    def alive(self, x: np.ndarray) -> np.ndarray:
        """Return (*batch, time) booleans: True until more than the implausible share of the cells first has an area out of range."""
        images, types = self._read(x)
        if self.config.area is None:
            return np.ones(images.shape[:-2], dtype=bool)
        present = types[..., None, 1:] > 0
        low, high = self.config.area[0] / self.config.area_multiple, self.config.area[1] * self.config.area_multiple
        area = labels.areas(images, self.config.cells)
        outside = (present & ((area < low) | (area > high))).sum(-1)
        return np.logical_and.accumulate(outside <= self.config.implausible_share * present.sum(-1), axis=-1)

    def _read(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (*batch, time, y, x) and types (*batch, label) of states x (*batch, time, y, x, channel), checked."""
        x = np.asarray(x)
        if x.ndim < 4 or x.shape[-3:] != (*self.config.lattice, self.spec.channels):
            expected = f"(*batch, time, {', '.join(map(str, (*self.config.lattice, self.spec.channels)))})"
            raise ShapeError(f"the trajectory: expected {expected} with channels cell, type; found {x.shape}")
        return labels.read_states(x, self.config.cells, self.config.types, what="the trajectory")


def _mean(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean over the cells that are present: (*batch, time); 0 where there are none."""
    return (values * present).sum(-1) / np.maximum(present.sum(-1), 1)
