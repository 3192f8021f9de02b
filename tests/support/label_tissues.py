"""Label images for tests: random ones that real tissues look tame beside."""

from __future__ import annotations

import torch
from torch import Tensor

from epns_pyro.context import DataContext
from epns_pyro.models.tissues.cells import CellsModelConfig, CellsTransition
from epns_pyro.models.tissues.label_images import LabelImage
from epns_pyro.state import Field, StateSpec

# Networks small enough for tests, by their registered name.
SMALL = {
    "windows": {"width": 6, "window": 9, "dilations": (1, 2), "depth": 1, "nodes": 3},
    "spatial-conv": {"embedding": 4, "levels": 2},
    "unet": {"width": 4, "levels": 2},
}


def label_spec(cells: int, types: int = 3, *, periodic: bool = False) -> StateSpec:
    fields = (
        Field("cell", kind="label", size=cells + 1),
        Field("type", kind="category", size=types + 1, of="cell", dynamic=False),
    )
    return StateSpec(fields, sites=("y", "x"), space=2, periodic=periodic)


def tissues(spec: StateSpec, lattice: tuple[int, int], *shape: int, seed: int = 0, spread: float = 2.2) -> Tensor:
    """Blobs of ragged cells, some of them in pieces, in the middle of a lattice: (*shape, y, x, channel), int64."""
    generator = torch.Generator().manual_seed(seed)
    cells, types = spec["cell"].size - 1, spec["type"].size - 1
    height, width = lattice
    where = torch.rand(*shape, cells, 2, generator=generator) * 0.6 * torch.tensor([height, width]) + 0.2 * torch.tensor([height, width])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = ((y - where[..., 0, None, None]) ** 2 + (x - where[..., 1, None, None]) ** 2).sqrt()
    distance = distance + 1.5 * torch.rand(distance.shape, generator=generator)
    nearest = distance.min(-3)
    cell = torch.where(nearest.values < spread + 0.8, 1 + nearest.indices, 0)
    kinds = torch.randint(1, types + 1, (*shape[:1], cells), generator=generator)
    table = torch.nn.functional.pad(kinds, (1, 0)).view(*shape[:1], *(1,) * (len(shape) - 1), cells + 1).expand(*shape, -1)
    return spec.pack(cell=cell, type=table.gather(-1, cell.flatten(-2)).view(cell.shape))


def transition(spec: StateSpec, lattice: tuple[int, int], network: str = "windows", **settings: object) -> CellsTransition:
    """A small transition in float64 whose every weight matters, as if trained."""
    inner = {"name": network, **SMALL[network], **settings.pop("inner", {})}
    config = CellsModelConfig.parse(
        {"network": inner, "latent": 3, "prior_width": 8, "interlacing": 2, "revisions": (1, 2), "neighbourhood": 5} | settings
    )
    torch.manual_seed(1)
    built = config.build(DataContext(spec, 1.0, {}, lattice)).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built


def law(t: CellsTransition, x: Tensor, z: Tensor | None = None) -> LabelImage:
    """p(x' | x, z), by default of latents zero."""
    step = t.at(x)
    return step.emission(torch.zeros(*x.shape[:-3], t.spec["cell"].size - 1, t.config.latent, dtype=torch.float64) if z is None else z)
