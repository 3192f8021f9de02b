"""Systems: the content of a state, its symmetry, and the true process. No networks here."""

from epns_pyro.systems.active import Active, ActiveConfig
from epns_pyro.systems.base import SYSTEMS, Observable, SetConfig, System, SystemConfig, trajectory_seeds
from epns_pyro.systems.growth import GrowingTissue, GrowingTissueConfig
from epns_pyro.systems.nbody import NBody, NBodyConfig
from epns_pyro.systems.pair_systems import Charged, ChargedConfig, Gravity, GravityConfig, Springs, SpringsConfig
from epns_pyro.systems.potts import Cells, CellsConfig, ContactEnergies
from epns_pyro.systems.recorded import Recorded, RecordedConfig
from epns_pyro.systems.recorded_cells import RecordedCells, RecordedCellsConfig
from epns_pyro.systems.silicon import Silicon, SiliconConfig

__all__ = [
    "SYSTEMS",
    "Active",
    "ActiveConfig",
    "Cells",
    "CellsConfig",
    "Charged",
    "ChargedConfig",
    "ContactEnergies",
    "Gravity",
    "GravityConfig",
    "GrowingTissue",
    "GrowingTissueConfig",
    "NBody",
    "NBodyConfig",
    "Observable",
    "Recorded",
    "RecordedCells",
    "RecordedCellsConfig",
    "RecordedConfig",
    "SetConfig",
    "Silicon",
    "SiliconConfig",
    "Springs",
    "SpringsConfig",
    "System",
    "SystemConfig",
    "trajectory_seeds",
]
