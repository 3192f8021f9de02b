"""The contract of every registered network on label images, from raw images: a new one is tested by being registered."""

from __future__ import annotations

import pytest
import torch
from label_tissues import SMALL, label_spec, tissues, transition
from torch import Tensor
from torch.nn import functional as F

from epns_pyro.backbones.tissues.base import GRIDS
from epns_pyro.backbones.tissues.cell_windows import CellWindows, pixel_features
from epns_pyro.backbones.tissues.convolutions import LocalBasis
from epns_pyro.backbones.tissues.tissue import Crops, Size, Tissue, middle
from epns_pyro.backbones.tissues.unet import UNet
from epns_pyro.symmetry import RelabellingElement

CELLS = 7
NAMES = GRIDS.names
EQUIVARIANT = ["spatial-conv", "windows"]
LATTICES = [(16, 16), (15, 18)]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


class Case:
    """A network and two successive images."""

    def __init__(
        self, name: str, lattice: tuple[int, int], *, periodic: bool = False, seed: int = 0, cells: int = CELLS, batch: int = 2
    ) -> None:
        self.spec = label_spec(cells, periodic=periodic)
        self.transition = transition(self.spec, lattice, name)
        x = tissues(self.spec, lattice, batch, 2, seed=seed)
        self.x, self.following = x[:, 0], x[:, 1]
        self.z = torch.randn(batch, cells, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def outputs(self, x: Tensor, following: Tensor, z: Tensor) -> dict[str, Tensor]:
        """What the network says about cells, cell by cell: about the medium and every pixel's candidates as images over the lattice."""
        t = self.transition
        tissue = t.tissue(x)
        h = t.network.hidden(tissue)
        draft = t.network.draft(tissue, h, z)
        return {
            "summary": t.network.summary(tissue, h),
            "innovation": t.network.innovation(tissue, h, t.tissue(following)),
            "cells": on_lattice(draft.cells, t.network.crops(tissue), tissue),
            "medium": draft.medium.unflatten(-2, tuple(tissue.lattice)),
        }


def on_lattice(rows: Tensor, crops: Crops, tissue: Tissue) -> Tensor:
    """Put what windows say (*batch, cell, place, channel) where it belongs: (*batch, cell, y, x, channel), NaN elsewhere."""
    image = torch.full((*rows.shape[:-2], tissue.lattice.pixels, rows.shape[-1]), torch.nan, dtype=rows.dtype)
    for where in torch.cartesian_prod(*map(torch.arange, rows.shape[:-2])):
        where = tuple(where.tolist())
        image[where][crops.index[where][crops.counted[where]]] = rows[where][crops.counted[where]]
    return image.unflatten(-2, tuple(tissue.lattice))


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], equal_nan=True, msg=lambda text, key=key: f"{key}: {text}", **CLOSE)


def moved(outputs: dict[str, Tensor], g: RelabellingElement) -> dict[str, Tensor]:
    """Act on what a network says."""
    names = torch.as_tensor(g.permutation)
    shifted = {key: value.roll(g.shift, (-3, -2)) if key in ("cells", "medium") else value for key, value in outputs.items()}
    return {key: value if key == "medium" else value.index_select(1, names) for key, value in shifted.items()}


# -- symmetry --------------------------------------------------------------------------------------------------------------


def acts_alike(case: Case, g: RelabellingElement) -> None:
    expected = moved(case.outputs(case.x, case.following, case.z), g)
    compare(case.outputs(case.spec.act(g, case.x), case.spec.act(g, case.following), g.act_latent(case.z)), expected)


@pytest.mark.parametrize("name", EQUIVARIANT)
@pytest.mark.parametrize("lattice", LATTICES)
@pytest.mark.parametrize("periodic", [False, True])
def test_renaming_cells_permutes_what_is_said_about_them(name, lattice, periodic):
    case = Case(name, lattice, periodic=periodic)
    acts_alike(case, RelabellingElement(torch.randperm(CELLS, generator=torch.Generator().manual_seed(3)).numpy()))


@pytest.mark.parametrize("name", EQUIVARIANT)
@pytest.mark.parametrize("lattice", LATTICES)
@pytest.mark.parametrize("shift", [(1, 0), (0, 3), (9, 7)])
def test_on_a_periodic_lattice_all_shifts_commute(name, lattice, shift):
    acts_alike(Case(name, lattice, periodic=True), RelabellingElement(torch.arange(CELLS).numpy(), shift=shift))


def test_every_network_declares_what_it_is_and_the_unet_is_seen_to_break_the_symmetry():
    declared = {name: Case(name, (8, 8)).transition.network.equivariant for name in NAMES}
    assert declared == {name: name in EQUIVARIANT for name in NAMES}
    with pytest.raises(AssertionError):
        acts_alike(Case("unet", (16, 16)), RelabellingElement(torch.arange(CELLS).flip(0).numpy()))
    with pytest.raises(AssertionError):
        acts_alike(Case("unet", (16, 16), periodic=True), RelabellingElement(torch.arange(CELLS).numpy(), shift=(3, 2)))


def test_between_walls_shifts_of_the_interior_commute():
    """Out of reach of the walls nothing says where on the lattice a cell is."""
    case = Case("windows", (34, 36))
    small = tissues(case.spec, (12, 12), 2, 2)
    x = case.x.new_zeros(2, 2, 34, 36, 2)
    x[:, :, 10:22, 10:22] = small
    shift = (3, 2)
    near = {key: value for key, value in case.outputs(x[:, 0], x[:, 1], case.z).items() if key != "medium"}
    far = case.outputs(x[:, 0].roll(shift, (1, 2)), x[:, 1].roll(shift, (1, 2)), case.z)
    near["cells"] = near["cells"].roll(shift, (-3, -2))
    assert near["cells"].isfinite().any()
    compare(far, near)


# -- independence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_result_does_not_depend_on_its_batch_mates(name):
    case = Case(name, (15, 18), batch=3)
    together = case.outputs(case.x, case.following, case.z)
    alone = case.outputs(case.x[1:2], case.following[1:2], case.z[1:2])
    compare(alone, {key: value[1:2] for key, value in together.items()})


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_names_without_a_cell_change_nothing(name):
    case = Case(name, (15, 18))
    wide = Case(name, (15, 18), cells=CELLS + 3)
    wide.transition.load_state_dict(case.transition.state_dict())
    z = torch.cat([case.z, torch.randn(2, 3, 3, dtype=torch.float64)], 1)
    found = wide.outputs(case.x, case.following, z)
    compare(
        {key: value if key == "medium" else value[:, :CELLS] for key, value in found.items()}, case.outputs(case.x, case.following, case.z)
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(), (2,), (3, 2)])
def test_any_number_of_batch_and_sample_dimensions(name, shape):
    spec = label_spec(CELLS)
    t = transition(spec, (12, 11), name)
    x = tissues(spec, (12, 11), 6, 1)[: torch.Size(shape).numel(), 0].reshape(*shape, 12, 11, 2)
    z = torch.randn(4, *shape, CELLS, 3, dtype=torch.float64)
    h = t.at(x).h
    assert h.shape[: len(shape)] == shape
    assert t.at(x).prior.batch_shape == shape
    assert t.at(x).posterior(x).batch_shape == shape
    many = t.at(x).emission(z)
    assert many.batch_shape == (4, *shape)
    torch.testing.assert_close(many.log_prob(x[..., :1])[2], t.at(x).emission(z[2]).log_prob(x[..., :1]), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_finite_gradient(name):
    case = Case(name, (15, 18))
    sum(value.nan_to_num().sin().sum() for value in case.outputs(case.x, case.following, case.z).values()).backward()
    gradients = {key: p.grad for key, p in case.transition.network.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert all(g.any() for g in gradients.values())


# -- windows against the whole lattice -------------------------------------------------------------------------------------


@pytest.mark.parametrize("periodic", [False, True])
def test_windows_that_cover_the_lattice_say_the_same_where_both_speak(periodic):
    lattice = (14, 12)
    small, large = (Case("windows", lattice, periodic=periodic) for _ in range(2))
    large.transition.network.side = 27
    found, expected = (c.outputs(c.x, c.following, c.z) for c in (small, large))
    assert expected["cells"].isfinite().all()
    assert 0 < found["cells"].isnan().float().mean() < 0.8
    expected["cells"] = torch.where(found["cells"].isnan(), torch.nan, expected["cells"])
    compare(found, expected)


@pytest.mark.parametrize("periodic", [False, True])
def test_windows_equal_a_plain_computation_on_the_whole_lattice(periodic):
    case = Case("windows", (14, 12), periodic=periodic)
    network = case.transition.network
    tissue = case.transition.tissue(case.x)
    found = case.outputs(case.x, case.following, case.z)["cells"]
    expected = plainly(network, tissue, case.z)
    torch.testing.assert_close(found, torch.where(found.isnan(), torch.nan, expected), equal_nan=True, **CLOSE)


def plainly(network: CellWindows, tissue: Tissue, z: Tensor) -> Tensor:
    """The draft of every cell on the whole lattice, cell by cell: (batch, cell, y, x, channel)."""
    height, width = tissue.lattice
    pad = {"pad": (network.config.kernel // 2,) * 4, "mode": "circular" if tissue.periodic else "constant"}
    context = network.context(pixel_features(tissue, network.types, torch.float64), periodic=tissue.periodic)
    out = []
    for b, labels in enumerate(tissue.labels):
        for cell in range(tissue.cells):
            own = labels == cell + 1
            kind = int(tissue.types[b, cell])
            kin = torch.isin(labels, 1 + (tissue.types[b] == kind).nonzero()[:, 0]) & ~own if kind else torch.zeros_like(own)
            masks = F.conv2d(F.pad(torch.stack([own, kin])[None].double(), **pad), network.own.weight, network.own.bias)
            one = Tissue(tissue.labels[b], tissue.types[b], tissue.periodic, tissue.reach)
            rows = (context[b] + masks[0]).movedim(0, -1) + network._cells(one)[cell]
            y, x = (
                (torch.arange(n) - int(tissue.centres[b, cell, axis]) + (n // 2 if tissue.periodic else 0)) % n - n // 2
                if tissue.periodic
                else torch.arange(n) - int(tissue.centres[b, cell, axis])
                for axis, n in enumerate((height, width))
            )
            places = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)
            written = network.basis.write(network.write(z[b, cell]), places).unflatten(0, (height, width))
            out.append(network.local(rows) + written)
    return torch.stack(out).unflatten(0, (len(tissue.labels), tissue.cells))


# -- positions -------------------------------------------------------------------------------------------------------------


def test_the_middle_is_the_rounded_mean_and_fragments_far_away_do_not_count():
    counts = torch.zeros(5, 30, dtype=torch.int64)
    counts[0, 4:9] = 1  # mean 6
    counts[1, 4:8] = 1  # mean 5.5: a tie between 5 and 6
    counts[2, 4:9], counts[2, 25] = 1, 4  # a fragment
    counts[3, 29], counts[3, 0] = 1, 2  # across the edge of a periodic lattice
    assert middle(counts, 6, periodic=True).tolist()[:1] == [6]
    assert middle(counts, 6, periodic=False).tolist()[:3] == [6, middle(counts[1], 6, periodic=True).item(), 6]
    assert middle(counts, 6, periodic=True).tolist()[3] in (29, 0)


@pytest.mark.parametrize("size", [8, 9, 30])
def test_the_middle_moves_with_the_pixels_on_a_periodic_lattice(size):
    counts = torch.randint(0, 3, (200, size), generator=torch.Generator().manual_seed(0))
    counts[:, size // 2 :] = 0
    counts = counts[counts.sum(-1) > 0]
    for shift in range(size):
        assert torch.equal(middle(counts.roll(shift, -1), 5, periodic=True), (middle(counts, 5, periodic=True) + shift) % size)


def test_windows_read_each_pixel_once_and_know_the_wall():
    labels = torch.zeros(1, 6, 5, dtype=torch.int64)
    labels[0, 0, 0] = 1
    walled = Tissue(labels, torch.ones(1, 1, dtype=torch.int64), periodic=False, reach=4).crops(Size(3, 3))
    assert walled.labels(labels.flatten(-2)).tolist() == [[[-1, -1, -1, -1, 1, 0, -1, 0, 0]]]
    around = Tissue(labels, torch.ones(1, 1, dtype=torch.int64), periodic=True, reach=4).crops(Size(9, 7))
    assert around.counted.sum() == 30
    assert around.index[around.counted].sort().values.tolist() == list(range(30))


def test_the_local_basis_sums_to_one_between_its_nodes_and_ends():
    basis = LocalBasis(nodes=5, spacing=3.0).double()
    inner = torch.cartesian_prod(torch.arange(-6, 7), torch.arange(-6, 7))
    torch.testing.assert_close(basis.at(inner).sum(-1), torch.ones(169, dtype=torch.float64))
    assert not basis.at(torch.tensor([[9, 0], [0, -12]])).any()


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 9)])
@pytest.mark.parametrize("periodic", [False, True])
def test_a_unet_takes_images_of_any_size(size, periodic):
    network = UNet(2, 3, width=4, levels=3)
    assert network(torch.randn(2, 2, *size), periodic=periodic).shape == (2, 3, *size)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="window and kernel: a side must be odd"):
        GRIDS.parse({"name": "windows", "window": 8, "kernel": 4})
    assert set(SMALL) == set(NAMES)
