"""Attention over windows of frames: its symmetries, its order in time, and bodies that were not there from the start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from epns_pyro.backbones import Features, Signature
from epns_pyro.backbones.bodies.estag import Estag, EstagConfig, TemporalAttention
from epns_pyro.backbones.bodies.window import HISTORIES, Window

FRAMES, BODIES, SPACE = 5, 4, 3
GRAPHS = [{}, {"dense": False}, {"kind": "nearest", "neighbours": 2}]


def build(graph: dict | None = None, pairs: int = 0, **box: tuple[float, ...]) -> Estag:
    """A small network with weights of order one."""
    torch.manual_seed(0)
    signature = Signature(2, 2, 3, 2, space=SPACE, bodies=BODIES, pairs=pairs, **box)
    network = EstagConfig.parse({"width": 8, "vectors": 4, "layers": 2, "graph": graph or {}}).build(signature, FRAMES).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return network


def window(seed: int = 0, known: Tensor | None = None, pairs: int = 0) -> Window:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, FRAMES, BODIES, *shape, dtype=torch.float64, generator=g)

    positions = normal(SPACE)
    of_pairs = normal(BODIES, pairs) if pairs else None
    return Window(positions, 3 * (positions - positions[:, -1:]), Features(normal(2), normal(2, SPACE), known, of_pairs))


SHORT = torch.ones(2, FRAMES, BODIES, dtype=torch.bool)
SHORT[0, :2, 0], SHORT[0, :4, 1], SHORT[1, :, 2] = False, False, False


def test_it_is_registered() -> None:
    assert HISTORIES.names == ("estag",)
    assert isinstance(HISTORIES.parse("estag"), EstagConfig)


@pytest.mark.parametrize("known", [None, SHORT], ids=["whole", "short"])
@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_rotations_reflections_shifts_and_permutations(graph: dict, known: Tensor | None) -> None:
    network, seen = build(graph), window(known=known)
    plain = network(seen)
    generator = torch.Generator().manual_seed(1)
    for determinant in (1, -1):
        turn, _ = torch.linalg.qr(torch.randn(SPACE, SPACE, dtype=torch.float64, generator=generator))
        turn = turn * torch.sign(torch.linalg.det(turn) * determinant)
        order = torch.randperm(BODIES, generator=generator)
        shift = 10 * torch.randn(SPACE, dtype=torch.float64, generator=generator)
        mask = None if known is None else known[..., order]
        moved = Window(
            (seen.positions @ turn.T + shift)[:, :, order],
            (seen.paths @ turn.T)[:, :, order],
            Features(seen.features.scalars[:, :, order], (seen.features.vectors @ turn.T)[:, :, order], mask),
        )
        found = network(moved)
        there = torch.ones(2, BODIES, dtype=torch.bool) if known is None else known[:, -1, order]
        torch.testing.assert_close(found.scalars[there], plain.scalars[:, order][there], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(found.vectors[there], (plain.vectors @ turn.T)[:, order][there], rtol=1e-11, atol=1e-11)


def test_what_is_not_known_does_not_matter() -> None:
    """Whatever stands in the frames where a body is not known: every known body is as it was."""
    network, seen, other = build(pairs=2), window(known=SHORT, pairs=2), window(seed=7, pairs=2)
    gone = ~SHORT[..., None]
    mixed = Window(
        torch.where(gone, other.positions, seen.positions),
        torch.where(gone, other.paths, seen.paths),
        Features(
            torch.where(gone, other.features.scalars, seen.features.scalars),
            torch.where(gone[..., None], other.features.vectors, seen.features.vectors),
            SHORT,
            torch.where(gone[..., None] | gone[..., 0][:, :, None, :, None], other.features.pairs, seen.features.pairs),
        ),
    )
    a, b = network(seen), network(mixed)
    there = SHORT[:, -1]
    torch.testing.assert_close(a.scalars[there], b.scalars[there], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.vectors[there], b.vectors[there], rtol=1e-12, atol=1e-12)


def test_everything_that_is_known_matters() -> None:
    network, seen, other = build(), window(), window(seed=7)
    for frame in range(FRAMES):
        for name in ("positions", "paths"):
            changed = getattr(seen, name).clone()
            changed[:, frame] = getattr(other, name)[:, frame]
            found = network(replace(seen, **{name: changed})).scalars
            assert (found - network(seen).scalars).abs().max() > 1e-8 or (name == "paths" and frame == FRAMES - 1)


def test_attention_never_looks_ahead() -> None:
    torch.manual_seed(0)
    attention = TemporalAttention(8, 4).double()
    scalars, vectors = torch.randn(2, FRAMES, BODIES, 8).double(), torch.randn(2, FRAMES, BODIES, SPACE, 4).double()
    known = torch.ones(2, FRAMES, BODIES, dtype=torch.bool)
    plain = attention(scalars, vectors, known)
    for s in range(FRAMES):
        later, vectors_later = scalars.clone(), vectors.clone()
        later[:, s] += torch.randn(2, BODIES, 8)
        vectors_later[:, s] += torch.randn(2, BODIES, SPACE, 4)
        found = attention(later, vectors_later, known)
        for a, b in zip(found, plain, strict=True):
            assert torch.equal(a[:, :s], b[:, :s])
            assert ((a[:, s:] - b[:, s:]).abs().amax((0, 2)) > 0).all()


def test_attention_adds_to_one_and_skips_what_is_not_known() -> None:
    torch.manual_seed(0)
    weights = TemporalAttention(8, 4).double().weights(torch.randn(2, FRAMES, BODIES, 8).double(), SHORT)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, BODIES, FRAMES, dtype=torch.float64))
    assert weights[0, 0, 3, 2] > 0
    assert not weights[0, 0, 2:, :2].any()
    assert not weights[0, 1, 4, :4].any()


def test_scores_do_not_grow_with_the_width() -> None:
    """The attention of fresh wide networks is not saturated."""
    spread = []
    for width in (16, 1024):
        torch.manual_seed(0)
        seen = torch.randn(2, FRAMES, BODIES, width)
        weights = TemporalAttention(width, 4).weights(seen, torch.ones(2, FRAMES, BODIES, dtype=torch.bool))
        spread.append(weights[:, :, -1].std().item())
    assert spread[1] < 2 * spread[0]


def test_gradients_are_finite_where_bodies_rest_in_one_place() -> None:
    network = build()
    seen = window()
    rest = Window(0 * seen.positions, 0 * seen.paths, Features(seen.features.scalars, 0 * seen.features.vectors))
    out = network(rest)
    (out.scalars.square().sum() + out.vectors.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_box_has_no_origin() -> None:
    """In a box positions may be given in any image; the symmetry of the rest is that of the paths, which go on across the sides."""
    network, seen = build(box=(2.0, 3.0, 2.5)), window()
    sides = torch.tensor([2.0, 3.0, 2.5], dtype=torch.float64) * torch.randint(-2, 3, seen.positions.shape)
    a, b = network(seen), network(replace(seen, positions=seen.positions + sides))
    torch.testing.assert_close(a.scalars, b.scalars, rtol=1e-11, atol=1e-11)
