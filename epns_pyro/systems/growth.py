"""A growing tissue: cells that grow, divide and die in the Cellular Potts model.

Energies are dimensionless, lengths in pixels, times in Monte Carlo steps (MCS).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self, final

import numpy as np
import pydantic

from epns_pyro.later import later
from epns_pyro.lineage import AGES, per_label, per_pixel
from epns_pyro.systems.base import SYSTEMS, SetConfig
from epns_pyro.systems.lattice import MOST_LABELS, square_lattice
from epns_pyro.systems.potts import Pair, PottsConfig, begin, blocks_of_cells
from epns_pyro.systems.tissues import TissueSystem
from epns_pyro.threads import limited

if TYPE_CHECKING:
    from epns_pyro.systems import growth_dynamics as dynamics
    from epns_pyro.systems import potts_dynamics
else:
    dynamics = later("epns_pyro.systems.growth_dynamics")
    potts_dynamics = later("epns_pyro.systems.potts_dynamics")


def _sets() -> dict[str, SetConfig]:
    return {
        "train": SetConfig(trajectories=400, steps=40),
        "val": SetConfig(trajectories=50, steps=40),
        "test": SetConfig(trajectories=50, steps=40),
        "same_init": SetConfig(trajectories=800, steps=40, initial_states=2),
    }


@SYSTEMS.register("tissue")
class GrowingTissueConfig(PottsConfig):
    """Settings of the growing tissue; those not listed here are of `PottsConfig`.

    Parameters
    ----------
    most_cells : int
        Number of labels: cells that a trajectory can hold, from the first frame to the last. A division takes two. Where two are not
        left, cells divide no more.
    target_area : float
        A_0, pixels: of a cell that is born. A cell of at least twice this area divides.
    cycle : float
        Time in which the target area doubles, MCS; it grows linearly with age.
    division_rate : float, optional
        Rate at which a cell of at least twice the area divides, per MCS; None: at once.
    death_rate : float
        Rate at which any cell dies, per MCS: its pixels become medium.
    """

    name: Literal["tissue"] = "tissue"
    lattice: Pair = (40, 40)
    blocks: Pair = (2, 2)
    types: int = pydantic.Field(2, ge=1, le=254)
    most_cells: int = pydantic.Field(96, ge=1, lt=MOST_LABELS)
    cycle: pydantic.PositiveFloat = 240.0
    division_rate: pydantic.NonNegativeFloat | None = 0.02
    death_rate: pydantic.NonNegativeFloat = 1e-4
    frame_mcs: pydantic.PositiveInt = 20
    plausible_area: tuple[pydantic.NonNegativeFloat, pydantic.PositiveFloat] = (0.4, 2.6)
    burn_in: int = pydantic.Field(2, ge=0)
    sets: dict[str, SetConfig] = pydantic.Field(default_factory=_sets)

    @pydantic.model_validator(mode="after")
    def _room(self) -> Self:
        if self.most_cells < self.cells:
            raise ValueError(f"most_cells: {self.cells} cells at the start need as many labels or more, found {self.most_cells}")
        return self

    def build(self) -> GrowingTissue:
        return GrowingTissue(self)


@final
class GrowingTissue(TissueSystem):
    """The Cellular Potts model of Graner, Glazier and Hogeweg, with cells that grow, divide and die.

    States are integer arrays (*batch, y, x, channel) with the channels cell, type, mother and age (see `epns_pyro.lineage`). A daughter
    has the type of its mother.
    """

    name = "tissue"
    config: GrowingTissueConfig
    can_simulate = True
    time_unit = "MCS"
    report_frames = (12, 24, 36)
    key_observables = ("cells", "divisions", "area_mean", "age_mean")

    def __init__(self, config: GrowingTissueConfig) -> None:
        periodic = config.boundary == "periodic"
        super().__init__(
            config.lattice,
            cells=config.most_cells,
            types=config.types,
            periodic=periodic,
            implausible_share=config.implausible_share,
            lineage=True,
        )
        self.config, self.frame_dt = config, float(config.frame_mcs)
        self.potts = potts_dynamics.potts(config.contact_matrix, config.stiffness, config.target_area, config.temperature)
        self.lattice = square_lattice(*config.lattice, neighbours=config.neighbours, periodic=periodic)
        divides = 1.0 if config.division_rate is None else -np.expm1(-config.division_rate)
        self.growth = dynamics.Growth(config.cycle, float(divides), float(-np.expm1(-config.death_rate)))

    def initial(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Sample n tissues of square blocks: (n, y, x, channel), int16. One call for n equals several calls.

        Types are random; ages, in frames, are uniform over the time in which the target area doubles.
        """
        c, labels = self.config, self.config.most_cells + 1
        tables = np.zeros((3, n, labels), np.int16)  # type, mother, age
        oldest = min(int(np.ceil(c.cycle / c.frame_mcs)), AGES)
        for table in tables.swapaxes(0, 1):  # one tissue after the other
            table[0, 1 : c.cells + 1] = rng.integers(1, c.types + 1, size=c.cells)
            table[2, 1 : c.cells + 1] = rng.integers(0, oldest, size=c.cells)
        return self._states(np.broadcast_to(blocks_of_cells(c), (n, *c.lattice)), tables[0], tables[1], tables[2])

    def simulate(self, x0: np.ndarray, steps: int, seeds: np.ndarray, *, workers: int | None = None) -> np.ndarray:
        """Run from states x0 (n, y, x, channel) for `steps` frames: (n, steps + 1, y, x, channel), int16.

        `seeds` (n,) uint64, one per trajectory: the result does not depend on the number of threads (`workers`, default: all), nor on the
        other trajectories.
        """
        x0 = np.asarray(x0)
        frames, types, seeds = begin(self, x0, steps, seeds)
        labels = self.spec["cell"].size
        mothers, ages = (
            per_label(self.spec.get(x0, "cell"), self.spec.get(x0, name).astype(np.int64), labels) for name in ("mother", "age")
        )
        born, used, mothers = -ages, self.used(x0), mothers.astype(np.uint16)
        with limited(workers):
            dynamics.trajectories(frames, types, mothers, born, used, self.lattice, self.potts, self.growth, self.config.frame_mcs, seeds)
        images = frames.reshape(len(x0), steps + 1, *self.config.lattice)
        ages = (np.arange(steps + 1)[:, None] - born[:, None]).clip(0, AGES - 1)
        types, mothers = (np.broadcast_to(table[:, None], ages.shape) for table in (types, mothers))
        return self._states(images, types, mothers, ages)

    def used(self, x: np.ndarray) -> np.ndarray:
        """Return which labels are those of cells in states x (n, y, x, channel), or of their mothers: (n, label); the medium is one."""
        used = np.zeros((len(x), self.spec["cell"].size), bool)
        for name in ("cell", "mother"):
            np.put_along_axis(used, self.spec.get(x, name).reshape(len(x), -1).astype(np.int64), values=True, axis=-1)
        used[:, 0] = True
        return used

    @property
    def plausible_area(self) -> tuple[float, float]:
        low, high = (edge * self.config.target_area for edge in self.config.plausible_area)
        return low, high

    def _states(self, images: np.ndarray, types: np.ndarray, mothers: np.ndarray, ages: np.ndarray) -> np.ndarray:
        """States (*batch, y, x, channel) of label images (*batch, y, x) and of properties of cells, each (*batch, label)."""
        tables = {"type": types, "mother": mothers, "age": ages * (types > 0)}
        looked_up = {name: per_pixel(table, images).astype(np.int16) for name, table in tables.items()}
        return self.spec.pack(cell=images.astype(np.int16), **looked_up)
