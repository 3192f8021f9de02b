"""The contract of every registered backbone. A new one is tested by being registered.

All equivariance is checked from raw states, in float64, through `equivariance_error`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from epns_pyro.backbones import BACKBONES, Backbone, Features, Signature
from epns_pyro.backbones.bodies.base import safe_norm
from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean, EuclideanElement, equivariance_error

BODIES = 5
SMALL = {"width": 16, "layers": 2}
GRAPHS = {
    "dense": {"kind": "complete", "dense": True},
    "sparse": {"kind": "complete", "dense": False},
    "radius": {"kind": "radius", "radius": 1.8},
    "nearest": {"kind": "nearest", "neighbours": 2},
}
WITH_GRAPH = [name for name in BACKBONES.names if "graph" in BACKBONES[name].model_fields]
VARIANTS = [(name, None) for name in BACKBONES.names] + [(name, graph) for name in WITH_GRAPH for graph in GRAPHS if graph != "dense"]
TOLERANCE = 1e-10  # float32 anywhere on the way gives 1e-8 and more


def spec(space: int) -> StateSpec:
    """Raw states: two scalars, a position, and two more vectors."""
    fields = [Field("mass"), Field("charge"), Field("position", "1o", translates=True), Field("velocity", "1o"), Field("spin", "1o")]
    return StateSpec(tuple(fields), space=space)


def signature(space: int = 3, **changes: int) -> Signature:
    return replace(Signature(in_scalars=2, in_vectors=2, out_scalars=3, out_vectors=2, space=space, bodies=BODIES), **changes)


RESULTS = {"scalars": [Field(f"scalar{i}") for i in range(3)], "vectors": [Field(f"vector{i}", "1o") for i in range(2)]}


def build(name: str, graph: str | None = None, at: Signature | None = None, seed: int = 0) -> Backbone:
    """A small network in float64."""
    settings = {key: value for key, value in SMALL.items() if key in BACKBONES[name].model_fields}
    if graph:
        settings["graph"] = GRAPHS[graph]
    at = at or signature()
    torch.manual_seed(seed)
    return BACKBONES[name].parse(settings).build(at).double()


def spaces(name: str) -> list[int]:
    """Dimensions of space that a backbone works in."""
    return [space for space in (1, 2, 3) if not refusal(name, space)]


def refusal(name: str, space: int) -> str:
    try:
        BACKBONES[name]().build(signature(space))
    except ConfigError as error:
        return str(error)
    return ""


def states(space: int = 3, batch: tuple[int, ...] = (4,), bodies: int = BODIES, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((*batch, bodies, spec(space).channels)))


def split(x: Tensor, space: int = 3) -> tuple[Tensor, Features]:
    """Positions and features of raw states."""
    s = spec(space)
    scalars = torch.stack([s.get(x, "mass"), s.get(x, "charge")], -1)
    return s.get(x, "position"), Features(scalars, torch.stack([s.get(x, "velocity"), s.get(x, "spin")], -2))


def results(network: Backbone, x: Tensor) -> dict[str, Tensor]:
    """Both results of a network on raw states, as channels: (*batch, body, channel)."""
    out = network(*split(x, network.signature.space))
    return {"scalars": out.scalars, "vectors": out.vectors.flatten(-2)}


def joint(network: Backbone, x: Tensor) -> Tensor:
    return torch.cat(list(results(network, x).values()), -1)


@dataclass(frozen=True)
class Only(Euclidean):
    """Random elements of one kind."""

    kind: str = "all"

    def random(self, x: Tensor, rng: np.random.Generator) -> EuclideanElement:
        g = super().random(x, rng)
        one = EuclideanElement(np.eye(self.space), np.zeros(self.space), np.arange(x.shape[-2]))
        if self.kind in ("rotation", "reflection"):
            flip = np.diag([-1.0] + [1.0] * (self.space - 1))
            proper = np.linalg.det(g.rotation) > 0
            return replace(one, rotation=g.rotation if proper == (self.kind == "rotation") else g.rotation @ flip)
        if self.kind == "translation":
            return replace(one, translation=1e3 * g.translation / np.linalg.norm(g.translation))
        if self.kind == "permutation":
            return replace(one, permutation=g.permutation)
        return g


KINDS = ("rotation", "reflection", "translation", "permutation", "all")


def errors(network: Backbone, x: Tensor, kind: str, samples: int = 4) -> dict[str, float]:
    """Largest violation of equivariance by result, over elements of one kind."""
    space = network.signature.space
    group = Only(space, translation_scale=1e3, kind=kind)
    found = {}
    for result, fields in RESULTS.items():
        out = StateSpec(tuple(fields), space=space)
        found[result] = equivariance_error(
            lambda x, result=result: results(network, x)[result], x, group, act_in=spec(space).act, act_out=out.act, samples=samples
        ).maximum
    return found


# -- symmetry --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BACKBONES.names)
def test_equivariance_from_raw_states(name, kind):
    """Those that declare it have it, result by result; those that do not, do not: the check can fail."""
    network = build(name)
    found = errors(network, states(), kind)
    if network.equivariant:
        assert max(found.values()) < TOLERANCE, found
    elif kind != "permutation":  # message passing has this much
        assert min(found.values()) > 1e-3, found


@pytest.mark.parametrize(("name", "graph"), [v for v in VARIANTS if v[1]])
def test_equivariance_on_every_graph(name, graph):
    network = build(name, graph)
    if network.equivariant:
        assert max(errors(network, states(), "all").values()) < TOLERANCE


@pytest.mark.parametrize("name", BACKBONES.names)
def test_a_dimension_that_a_backbone_cannot_handle_is_refused_in_a_line(name):
    assert 3 in spaces(name)
    for space in {1, 2, 3} - set(spaces(name)):
        assert f"backbone {name!r}" in refusal(name, space)
        assert f"found {space}: use" in refusal(name, space)


@pytest.mark.parametrize(("name", "space"), [(name, space) for name in BACKBONES.names for space in spaces(name) if space < 3])
def test_equivariance_in_one_and_two_dimensions(name, space):
    network = build(name, at=signature(space))
    out = network(*split(states(space), space))
    assert (out.scalars.shape, out.vectors.shape) == ((4, BODIES, 3), (4, BODIES, 2, space))
    if network.equivariant:
        found = {kind: max(errors(network, states(space), kind).values()) for kind in KINDS}
        assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("name", BACKBONES.names)
def test_equivariance_survives_training_steps_and_changes_of_precision(name):
    network, x = build(name), states()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(5):
        optimiser.zero_grad()
        (joint(network, x) - 1).square().mean().backward()
        optimiser.step()
    if network.equivariant:
        found = errors(network.float().double(), x, "all")
        assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("name", BACKBONES.names)
def test_equivariance_in_the_plane(name):
    """Bodies in a plane, with vectors in it: the third axis of a frame is free in sign only."""
    x = states()
    network = build(name)
    if network.equivariant:
        q = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0])
        flat = q @ torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=x.dtype)) @ q.T
        s = spec(3)
        x = s.pack(**{f.name: s.get(x, f.name) @ flat if f.is_vector else s.get(x, f.name) for f in s.fields})
        assert max(errors(network, x, "all").values()) < TOLERANCE


# -- the testers are tested ------------------------------------------------------------------------------------------------


class Defective(Backbone):
    """An equivariant network with one more term, which claims to be equivariant."""

    equivariant = True

    def __init__(self, network: Backbone, defect: str) -> None:
        super().__init__(network.signature)
        self.network, self.defect = network, defect

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        out = self.network(positions, features)
        if self.defect == "velocity slice":  # EPNS.md, section 5: the relative speed from two of three components
            velocity = features.vectors[..., 0, :2]
            speed = safe_norm(velocity[..., :, None, :] - velocity[..., None, :, :]).sum(-1)
            return Features(out.scalars + 0.01 * speed[..., None], out.vectors)
        if self.defect == "parity":  # a cross product of vectors does not turn round in a mirror
            cross = torch.linalg.cross(features.vectors[..., :1, :], features.vectors[..., 1:, :])
            return Features(out.scalars, out.vectors + 0.01 * cross)
        if self.defect == "absolute position":
            return Features(out.scalars + 1e-6 * safe_norm(positions)[..., None], out.vectors)
        if self.defect == "order of bodies":
            return Features(out.scalars + 1e-3 * features.scalars[..., :1, :1], out.vectors)
        raise AssertionError(self.defect)


@pytest.mark.parametrize(
    ("defect", "result", "seen"),
    [
        ("velocity slice", "scalars", {"rotation", "reflection", "all"}),
        ("parity", "vectors", {"reflection", "all"}),
        ("absolute position", "scalars", {"translation", "all"}),
        ("order of bodies", "scalars", {"permutation", "all"}),
    ],
)
def test_a_planted_defect_is_seen_where_it_is(defect, result, seen):
    network = Defective(build("vector"), defect)
    for kind in KINDS:
        found = errors(network, states(), kind)
        assert (found.pop(result) > 100 * TOLERANCE) == (kind in seen), kind
        assert max(found.values()) < TOLERANCE


# -- batches ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "graph"), VARIANTS)
def test_elements_of_a_batch_do_not_see_each_other(name, graph):
    network, x = build(name, graph), states(batch=(3,))
    together, alone = joint(network, x), torch.cat([joint(network, x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-12)
    x[1] = torch.nan
    torch.testing.assert_close(joint(network, x)[[0, 2]], together[[0, 2]], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("name", "graph"), VARIANTS)
def test_any_number_of_batch_dimensions(name, graph):
    network, x = build(name, graph), states(batch=(2, 3, 2))
    flat = joint(network, x.flatten(0, 2))
    torch.testing.assert_close(joint(network, x), flat.unflatten(0, (2, 3, 2)), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(joint(network, x[0, 0, 0]), flat[0], rtol=1e-11, atol=1e-12)
    assert joint(network, x[:0]).shape == (0, 3, 2, BODIES, flat.shape[-1])


# -- derivatives, and states that are hard to take -------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES.names)
def test_derivatives_are_those_of_finite_differences(name):
    network, x = build(name, at=signature(bodies=3)), states(batch=(), bodies=3, seed=3)
    assert torch.autograd.gradcheck(lambda x: joint(network, x), x.requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("out_vectors", [2, 0])
@pytest.mark.parametrize("name", BACKBONES.names)
def test_every_input_and_every_parameter_counts(name, out_vectors):
    network = build(name, at=signature(out_vectors=out_vectors))
    x = states().requires_grad_()
    out = results(network, x)
    assert all(value.std() > 1e-3 for value in out.values() if value.numel())
    torch.stack([value.square().sum() for value in out.values()]).sum().backward()
    read = ["mass", "charge", "position", *(("velocity", "spin") if network.reads_vectors else ())]
    felt = x.grad.abs().sum((0, 1)) > 0
    for field in spec(3).fields:
        assert felt[spec(3).slice(field.name)].all() == (field.name in read), field.name
    idle = [key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert set(idle) <= ({"screening", "inertia"} if name == "central" else set())  # zero, and so they stay outside a fit


def degenerate(dtype: torch.dtype) -> dict[str, Tensor]:
    """Positions (batch, body, space) where directions, distances or frames are not defined, all with five bodies."""
    r = states()[..., :3].to(dtype)
    axis = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    cross = torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 0]], dtype=dtype)
    pyramid = cross.clone()
    pyramid[4, 2] = 1.0
    pair = r.clone()
    pair[:, 1] = pair[:, 0]
    return {
        "all at one place": torch.ones_like(r),
        "all at the origin": torch.zeros_like(r),
        "two at one place": pair,
        "collinear": r[..., :1] * axis,
        "on an axis": r * torch.tensor([1.0, 0, 0], dtype=dtype),
        "planar": r * torch.tensor([1.0, 1, 0], dtype=dtype),
        "two equal eigenvalues": cross.expand_as(r),
        "a pyramid": pyramid.expand_as(r),
        "far apart": 1e4 * r,
        "close together": 1e-8 * r,
        "far away": r + 1e6,
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "graph"), VARIANTS)
def test_degenerate_states_give_finite_values_and_gradients(name, graph, dtype):
    network = build(name, graph).to(dtype)
    features = split(states().to(dtype))[1]
    for moving in (1.0, 0.0):
        for what, positions in degenerate(dtype).items():
            inputs = [t.clone().requires_grad_() for t in (positions, features.scalars, moving * features.vectors)]
            out = network(inputs[0], Features(*inputs[1:]))
            felt = [*(inputs if network.reads_vectors else inputs[:2]), *network.parameters()]
            gradients = torch.autograd.grad(out.scalars.square().sum() + out.vectors.square().sum(), felt)
            assert all(t.isfinite().all() for t in (out.scalars, out.vectors, *gradients)), what


@pytest.mark.parametrize(("name", "graph"), VARIANTS)
def test_one_body_is_enough(name, graph):
    network = build(name, graph, at=signature(bodies=1))
    x = states(bodies=1).requires_grad_()
    out = joint(network, x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert out.isfinite().all()
    assert gradient.isfinite().all()


# -- composition -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES.names)
def test_neighbours_are_checked(name):
    network = build(name)
    positions, features = split(states())
    declared = rf"{type(network).__name__} declares \(scalars, vectors, space\) = \(2, 2, 3\), found "
    for wrong, found in (
        ((positions, Features(features.scalars[..., :1], features.vectors)), r"\(1, 2, 3\)"),
        ((positions, Features(features.scalars, features.vectors[..., :1, :])), r"\(2, 1, 3\)"),
        ((positions[..., :2], features), r"\(2, 2, 2\)"),
    ):
        with pytest.raises(ShapeError, match=declared + found):
            network(*wrong)


EMPTY = [{"in_scalars": 0}, {"in_vectors": 0}, {"in_scalars": 0, "in_vectors": 0}, {"out_scalars": 0}, {"out_vectors": 0}]


@pytest.mark.parametrize("empty", EMPTY, ids=str)
@pytest.mark.parametrize(("name", "graph"), VARIANTS)
def test_any_representation_may_be_missing(name, graph, empty):
    at = signature(**empty)
    positions, features = split(states())
    few = Features(features.scalars[..., : at.in_scalars], features.vectors[..., : at.in_vectors, :])
    out = build(name, graph, at=at)(positions, few)
    assert out.scalars.shape == (4, BODIES, at.out_scalars)
    assert out.vectors.shape == (4, BODIES, at.out_vectors, 3)


@pytest.mark.parametrize(("name", "graph"), VARIANTS)
def test_weights_travel(name, graph):
    """Only parameters are saved; another network with them is the same network, and so is a copy."""
    network, other, x = build(name, graph), build(name, graph, seed=1), states()
    assert network.state_dict().keys() == dict(network.named_parameters()).keys()
    assert not torch.equal(joint(network, x), joint(other, x))
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(joint(other, x), joint(network, x), rtol=0, atol=0)
    torch.testing.assert_close(joint(copy.deepcopy(network), x), joint(network, x), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "graph"), VARIANTS)
def test_single_precision_is_single_and_close(name, graph):
    network, x = build(name, graph), states()
    exact = results(network, x)
    for result, value in results(network.float(), x.float()).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact[result], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", WITH_GRAPH)
@pytest.mark.parametrize(
    "graph", [{"kind": "complete", "dense": False}, {"kind": "radius", "radius": 1e3}, {"kind": "nearest", "neighbours": 9}], ids=str
)
def test_dense_and_sparse_graphs_agree(name, graph):
    settings = {key: value for key, value in SMALL.items() if key in BACKBONES[name].model_fields}
    dense, sparse = build(name, "dense"), BACKBONES[name].parse(settings | {"graph": graph}).build(signature()).double()
    sparse.load_state_dict(dense.state_dict())
    x = states().requires_grad_()
    values = [joint(network, x) for network in (dense, sparse)]
    gradients = [torch.autograd.grad(value.square().sum(), x)[0] for value in values]
    torch.testing.assert_close(values[1], values[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-11)
