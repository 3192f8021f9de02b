"""Recorded cells: label images, segmented and tracked by a user, without a simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, final

import pydantic

from epns_pyro.later import later
from epns_pyro.systems.base import SYSTEMS, SystemConfig
from epns_pyro.systems.lattice import MOST_LABELS
from epns_pyro.systems.tissues import TissueSystem

if TYPE_CHECKING:
    from epns_pyro.systems import label_observables as labels
else:
    labels = later("epns_pyro.systems.label_observables")


@SYSTEMS.register("recorded_cells")
class RecordedCellsConfig(SystemConfig):
    """Properties of recorded cells.

    Parameters
    ----------
    lattice : (int, int)
        Height and width of an image, pixels.
    cells, types : int
        Labels are 0 (medium) to `cells`, types 0 (medium) to `types`.
    periodic : bool
        Whether the image is periodic: opposite edges meet.
    frame_dt : float
        Time between two frames, in `time_unit`.
    time_unit : str
        Unit of time, for reports.
    area : (int, int), optional
        Smallest and largest area of a cell in the data, pixels; 0 if cells appear or disappear. None: any area is plausible.
    area_multiple : float
        A cell is implausible if its area is outside this range by more than this factor.
    implausible_share : float
        A trajectory is no longer alive when more than this fraction of its cells is implausible.
    lineage : bool
        Whether states say where cells come from and how old they are, see `epns_pyro.lineage`.
    """

    name: Literal["recorded_cells"] = "recorded_cells"
    lattice: tuple[pydantic.PositiveInt, pydantic.PositiveInt]
    cells: int = pydantic.Field(ge=1, lt=MOST_LABELS)
    types: int = pydantic.Field(1, ge=1, le=254)
    periodic: bool = False
    frame_dt: pydantic.PositiveFloat = 1.0
    time_unit: str = ""
    area: tuple[pydantic.NonNegativeInt, pydantic.PositiveInt] | None = None
    area_multiple: float = pydantic.Field(2.0, ge=1)
    implausible_share: float = pydantic.Field(12 / 64, ge=0, le=1)
    lineage: bool = False

    def build(self) -> RecordedCells:
        return RecordedCells(self)


@final
class RecordedCells(TissueSystem):
    """Cells in label images, known only from data: no simulator, no oracle."""

    name = "recorded_cells"
    config: RecordedCellsConfig

    def __init__(self, config: RecordedCellsConfig) -> None:
        super().__init__(
            config.lattice,
            cells=config.cells,
            types=config.types,
            periodic=config.periodic,
            implausible_share=config.implausible_share,
            lineage=config.lineage,
        )
        self.config, self.frame_dt, self.time_unit = config, config.frame_dt, config.time_unit

    @property
    def plausible_area(self) -> tuple[float, float] | None:
        area, factor = self.config.area, self.config.area_multiple
        return None if area is None else (area[0] / factor, area[1] * factor)
