"""Base of all systems of cells in label images: their states and observables."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from epns_pyro.errors import ShapeError
from epns_pyro.later import later
from epns_pyro.lineage import has_lineage, lineage_spec, per_label
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Relabelling
from epns_pyro.systems.base import Observable, System
from epns_pyro.systems.lattice import square_lattice

if TYPE_CHECKING:
    from epns_pyro.systems import label_observables as labels
else:
    labels = later("epns_pyro.systems.label_observables")


class TissueSystem(System):
    """A system of cells in label images; states are integers (*batch, y, x, channel), with the cell's label and its type as channels.

    A cell may disappear or split into fragments.

    Parameters
    ----------
    lattice, cells, types, periodic, implausible_share
        As in `RecordedCellsConfig`; implausible is an area outside `plausible_area`.
    lineage : bool
        Whether states say where cells come from and how old they are, see `epns_pyro.lineage`: then cells are counted, and means are
        over the cells of each frame.
    """

    def __init__(
        self, lattice: tuple[int, int], *, cells: int, types: int, periodic: bool, implausible_share: float, lineage: bool = False
    ) -> None:
        without = StateSpec(
            fields=(
                Field("cell", kind="label", size=cells + 1),
                Field("type", kind="category", size=types + 1, of="cell", dynamic=False),
            ),
            sites=("y", "x"),
            space=2,
            periodic=periodic,
        )
        self.spec = lineage_spec(cells, types, periodic=periodic) if lineage else without
        self.symmetry = Relabelling(cells, shifts=periodic)
        self.edges = square_lattice(*lattice, neighbours=4, periodic=periodic)
        self._cells, self._types, self._implausible_share = cells, types, implausible_share

    @property
    @abstractmethod
    def plausible_area(self) -> tuple[float, float] | None:
        """Smallest and largest area that a cell can have, pixels; None: any."""

    def observables(self, x: np.ndarray) -> dict[str, Observable]:
        """Measure clusters, fragments, areas, contacts, shape and motion of trajectories x (*batch, time, y, x, channel).

        The cells of a trajectory are those in any of its frames; a cell that has disappeared has area 0 and stays where it was last seen.
        Displacement and path length start at the first given frame.
        """
        images, types = self.read(x)
        return self.measure(images, types) | (self._lives(np.asarray(x), images) if has_lineage(self.spec) else {})

    def _lives(self, x: np.ndarray, images: np.ndarray) -> dict[str, Observable]:
        """Count the cells of states x (*batch, time, y, x, channel) with lineage, and what has happened to them since the first frame."""
        n, present = self._cells + 1, labels.areas(images, self._cells) > 0
        mothers, ages = (per_label(images, self.spec.get(x, name), n)[..., 1:] for name in ("mother", "age"))
        seen = np.logical_or.accumulate(present, axis=-2)
        daughters = np.logical_or.accumulate((mothers > 0) & seen & ~seen[..., :1, :], axis=-2)
        ended = (seen & ~present).sum(-1)
        divisions = daughters.sum(-1) // 2
        return {
            "cells": Observable("number of cells", "", present.sum(-1), discrete=True),
            "divisions": Observable("divisions so far", "", divisions, discrete=True),
            "deaths": Observable("deaths so far", "", np.maximum(ended - divisions, 0), discrete=True),
            "age_mean": Observable("mean age of a cell", self.time_unit, self.frame_dt * mean_over_cells(ages, present)),
        }

    def _counted(self, types: np.ndarray, area: np.ndarray) -> np.ndarray:
        """Return the cells that means are over, (*batch, 1 or time, cell): with lineage those of each frame, else of the trajectory."""
        return area > 0 if has_lineage(self.spec) else types[..., None, 1:] > 0

    def measure(self, cells: np.ndarray, types: np.ndarray) -> dict[str, Observable]:
        """Measure images cells (*batch, time, y, x) of cells with types (*batch, label); see `observables`."""
        area = labels.areas(cells, self._cells)
        present = self._counted(types, area)
        mean_area = mean_over_cells(area, present)
        edges = labels.contacts(cells, types, self.edges, self._types + 1).sum(-3)
        same, medium = np.trace(edges, axis1=-2, axis2=-1), edges[..., 0, 1:].sum(-1)
        different = edges.sum((-2, -1)) - same - medium
        perimeter = (2 * (same + different) + medium) / np.maximum(present.sum(-1), 1)
        components = labels.components(cells, np.broadcast_to(np.arange(self._cells + 1), types.shape), self.edges)
        displacement, travelled = labels.paths(labels.centres(cells, self._cells, self.edges), self.edges)
        spread = np.sqrt(mean_over_cells((area - mean_area[..., None]) ** 2, present))
        return {
            "clusters": Observable("clusters of one type", "", labels.components(cells, types, self.edges), discrete=True),
            "fragments": Observable("extra fragments of cells", "", components - (area > 0).sum(-1), discrete=True),
            "area_mean": Observable("mean cell area", "pixels", mean_area),
            "area_sd": Observable("spread of cell areas", "pixels", spread),
            "perimeter": Observable("mean cell perimeter", "pixel edges", perimeter),
            "contact_same": Observable("contact of cells of one type", "pixel edges", same, discrete=True),
            "contact_different": Observable("contact of cells of different types", "pixel edges", different, discrete=True),
            "contact_medium": Observable("contact with the medium", "pixel edges", medium, discrete=True),
            "gyration_radius": Observable("radius of gyration of the tissue", "pixels", labels.gyration_radius(cells, self.edges)),
            "changed_pixels": Observable("pixels changed since the last frame", "pixels", labels.changed_pixels(cells), discrete=True),
            "displacement": Observable("mean displacement of a cell", "pixels", mean_over_cells(displacement, present)),
            "distance_travelled": Observable("mean distance travelled by a cell", "pixels", mean_over_cells(travelled, present)),
        }

    def alive(self, x: np.ndarray) -> np.ndarray:
        """Return (*batch, time) booleans: True until more than the allowed fraction of the cells has an area outside the range."""
        cells, types = self.read(x)
        if self.plausible_area is None:
            return np.ones(cells.shape[:-2], dtype=bool)
        low, high = self.plausible_area
        area = labels.areas(cells, self._cells)
        present = self._counted(types, area)
        outside = (present & ((area < low) | (area > high))).sum(-1)
        return np.logical_and.accumulate(outside <= self._implausible_share * present.sum(-1), axis=-1)

    def read(self, x: np.ndarray, *, typed: bool = False, what: str = "the trajectory") -> tuple[np.ndarray, np.ndarray]:
        """Split states x (*batch, time, y, x, channel) into images (*batch, time, y, x) and types (*batch, label), checked.

        `typed` refuses cells without a type; a forecast may contain some, if a cell that had disappeared comes back.
        """
        x = np.asarray(x)
        sizes = (self.edges.height, self.edges.width, self.spec.channels)
        if x.ndim < 4 or x.shape[-3:] != sizes:
            expected = f"(*batch, time, {', '.join(map(str, sizes))})"
            raise ShapeError(f"{what}: expected {expected} with channels {', '.join(self.spec.names)}; found {x.shape}")
        return labels.read_states(x[..., :2], self._cells, self._types, typed=typed, what=what)


def mean_over_cells(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Average values (*batch, time, cell) over the cells that are present: (*batch, time); 0 if there are none."""
    return (values * present).sum(-1) / np.maximum(present.sum(-1), 1)
