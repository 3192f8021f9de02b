"""States and symmetries: what is packed comes back, NumPy and torch agree, groups are groups, and checks see what is broken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.fields import IRREPS, Field
from epns_pyro.geometry import Space
from epns_pyro.state import StateSpec
from epns_pyro.symmetry import (
    Euclidean,
    EuclideanElement,
    density_invariance_error,
    equivariance_error,
)

BODIES = StateSpec(
    (
        Field("mass", dynamic=False),
        Field("position", "1o", translates=True),
        Field("velocity", "1o", rate_of="position"),
        Field("spin", "1e"),
        Field("handedness", "0o"),
    )
)
CELLS = StateSpec(
    (Field("cell", kind="label", size=5), Field("type", kind="category", size=3, of="cell", dynamic=False)), sites=("y", "x"), space=2
)

TINY = dict(rtol=1e-10, atol=1e-10)


@st.composite
def specs(draw: st.DrawFn) -> StateSpec:
    """Any particle spec: one to four real fields, the first of them dynamic."""
    fields = []
    for i in range(draw(st.integers(1, 4))):
        irreps = draw(st.sampled_from(sorted(IRREPS)))
        fields.append(
            Field(
                f"f{i}",
                irreps,
                dynamic=i == 0 or draw(st.booleans()),
                translates=irreps == "1o" and draw(st.booleans()),
                scale=draw(st.floats(0.1, 10)),
            )
        )
    return StateSpec(tuple(draw(st.permutations(fields))), space=draw(st.integers(2, 3)))


def values(spec: StateSpec, batch: tuple[int, ...] = (2,), sites: tuple[int, ...] = (4,), seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f.name: rng.standard_normal((*batch, *sites, spec.space) if f.is_vector else (*batch, *sites)) for f in spec.fields}


def state(spec: StateSpec, **shape) -> np.ndarray:
    return spec.pack(**values(spec, **shape))


def element(spec: StateSpec, seed: int, bodies: int = 4) -> EuclideanElement:
    return Euclidean(spec.space).random(np.empty((bodies, spec.channels)), np.random.default_rng(seed))


def compose(g: EuclideanElement, h: EuclideanElement) -> EuclideanElement:
    """First h, then g."""
    return EuclideanElement(g.rotation @ h.rotation, g.rotation @ h.translation + g.translation, h.permutation[g.permutation])


def inverse(g: EuclideanElement) -> EuclideanElement:
    return EuclideanElement(g.rotation.T, -g.rotation.T @ g.translation, np.argsort(g.permutation))


# -- states --------------------------------------------------------------------------------------------------------------


@given(spec=specs(), batch=st.lists(st.integers(1, 3), max_size=2).map(tuple))
@settings(max_examples=40, deadline=None)
def test_what_is_packed_comes_back_by_name(spec, batch):
    given_ = values(spec, batch)
    x = spec.pack(**given_)
    assert x.shape == (*batch, 4, spec.channels)
    for name, value in given_.items():
        np.testing.assert_array_equal(spec.get(x, name), value)
        np.testing.assert_array_equal(spec.get(torch.from_numpy(x), name).numpy(), value)
    y = spec.dynamic(x)
    assert y.shape == (*batch, 4, spec.dynamic_channels)
    np.testing.assert_array_equal(y, spec.pack_dynamic(**{f.name: given_[f.name] for f in spec.dynamic_fields}))
    for field in spec.dynamic_fields:
        np.testing.assert_array_equal(spec.get_dynamic(y, field.name), given_[field.name])


@given(spec=specs())
@settings(max_examples=40, deadline=None)
def test_advancing_replaces_the_dynamic_part_and_keeps_the_rest(spec):
    x, other = state(spec), state(spec, seed=1)
    np.testing.assert_array_equal(spec.advance(x, spec.dynamic(x)), x)
    moved = spec.advance(x, spec.dynamic(other))
    np.testing.assert_array_equal(spec.dynamic(moved), spec.dynamic(other))
    for field in spec.static_fields:
        np.testing.assert_array_equal(spec.get(moved, field.name), spec.get(x, field.name))
    samples = np.stack([spec.dynamic(state(spec, seed=s)) for s in range(3)])
    assert spec.advance(x, samples).shape == (3, *x.shape)


@given(spec=specs(), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_numpy_and_torch_agree(spec, seed):
    x, g = state(spec, seed=seed), element(spec, seed)
    t, y = torch.from_numpy(x), spec.dynamic(state(spec, seed=seed + 1))
    pairs = [
        (x, spec.pack(**{name: torch.from_numpy(value) for name, value in values(spec, seed=seed).items()})),
        (spec.dynamic(x), spec.dynamic(t)),
        (spec.advance(x, y), spec.advance(t, torch.from_numpy(y))),
        (spec.act(g, x), spec.act(g, t)),
        (spec.act_dynamic(g, y), spec.act_dynamic(g, torch.from_numpy(y))),
        (g.act_latent(x), g.act_latent(t)),
    ]
    for here, there in pairs:
        assert isinstance(there, torch.Tensor)
        np.testing.assert_allclose(there.numpy(), here, rtol=1e-13, atol=1e-13)


def test_numpy_and_torch_agree_on_the_precision():
    half = {name: value.astype(np.float32) for name, value in values(BODIES).items()}
    g = element(BODIES, 0)
    x = BODIES.pack(**half)
    t = BODIES.pack(**{name: torch.from_numpy(value) for name, value in half.items()})
    assert (x.dtype, t.dtype) == (np.float32, torch.float32)
    assert (BODIES.act(g, x).dtype, BODIES.act(g, t).dtype) == (np.float32, torch.float32)


def test_batch_dimensions_broadcast_when_packing():
    v = values(BODIES) | {"mass": np.ones(4)}
    x = BODIES.pack(**v)
    assert x.shape == (2, 4, BODIES.channels)
    assert (BODIES.get(x, "mass") == 1).all()
    assert BODIES.pack(**v | {"mass": np.ones(4, int)}).dtype == np.float64


def test_types_travel_with_their_cells():
    """A pixel that a cell has taken gets the type of that cell, whatever was there before."""
    rng = np.random.default_rng(0)
    kind = np.array([[0, 2, 1, 2, 1], [0, 1, 1, 2, 2]])  # of the cells of two lattices
    before = rng.permuted(np.tile(np.arange(5), (2, 8)), axis=1).reshape(2, 5, 8)
    after = rng.integers(0, 5, (3, 2, 5, 8))  # three samples
    x = CELLS.pack(cell=before, type=np.take_along_axis(kind, before.reshape(2, -1), 1).reshape(before.shape))
    for moved in (
        CELLS.advance(x, CELLS.pack_dynamic(cell=after)),
        CELLS.advance(torch.from_numpy(x), torch.from_numpy(CELLS.pack_dynamic(cell=after))).numpy(),
    ):
        np.testing.assert_array_equal(CELLS.get(moved, "cell"), after)
        expected = np.stack([[kind[b][after[s, b]] for b in range(2)] for s in range(3)])
        np.testing.assert_array_equal(CELLS.get(moved, "type"), expected)
    for table in (CELLS.entity_property(x, "type"), CELLS.entity_property(torch.from_numpy(x), "type").numpy()):
        np.testing.assert_array_equal(table, kind)


def test_absent_cells_have_property_zero():
    x = CELLS.pack(cell=np.full((2, 2), 3), type=np.full((2, 2), 2))
    assert CELLS.entity_property(x, "type").tolist() == [0, 0, 0, 2, 0]


@given(spec=specs())
@settings(max_examples=40, deadline=None)
def test_specs_survive_json(spec):
    assert StateSpec.from_json(spec.to_json()) == spec


def test_every_entry_of_a_spec_survives_json():
    periodic = replace(CELLS, periodic=True)
    for spec in (BODIES, CELLS, periodic):
        assert StateSpec.from_json(spec.to_json()) == spec


def test_scales_are_replaced_by_name():
    scaled = BODIES.with_scales({"position": 3, "spin": 0.5})
    assert [f.scale for f in scaled.fields] == [1, 3, 1, 0.5, 1]
    with pytest.raises(ConfigError, match="did you mean 'velocity'"):
        BODIES.with_scales({"velocities": 1.0})


# -- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Field("v x"), "field name 'v x' is not a plain word"),
        (lambda: Field("v", "2e"), "irreps '2e' is not one of 0e, 0o, 1o, 1e"),
        (lambda: Field("v", kind="bool"), "kind 'bool' is not one of"),
        (lambda: Field("v", "1e", translates=True), r"only a vector \(irreps '1o'\) can translate, found '1e'"),
        (lambda: Field("cell", kind="label"), "need one; found kind 'label', size 0"),
        (lambda: Field("v", size=3), "found kind 'real', size 3"),
        (lambda: Field("type", kind="category", size=2, of="cell"), "must have dynamic = false"),
        (lambda: Field("v", scale=0), "scale must be positive and finite, found 0"),
        (lambda: Field("v", scale=float("inf")), "scale must be positive and finite"),
        (lambda: StateSpec(()), "needs at least one field"),
        (lambda: StateSpec((Field("v"), Field("v", "1o"))), "field names repeat: v, v"),
        (lambda: StateSpec((Field("v", dynamic=False),)), "at least one dynamic field"),
        (lambda: StateSpec((Field("v"),), space=4), "space must be 1, 2 or 3 dimensions, found 4"),
        (
            lambda: StateSpec((Field("position", "1o"), Field("v", "1o", rate_of="positon"))),
            "rate_of names no field: did you mean 'position'",
        ),
        (lambda: StateSpec((Field("r", "1o"), Field("v", rate_of="r"))), "'v' is declared the rate of 'r', but their irreps differ"),
        (
            lambda: StateSpec((Field("r"), Field("type", kind="category", size=2, of="r", dynamic=False))),
            "'type' is declared a property of 'r', which is not a label",
        ),
        (lambda: BODIES["velocty"], "no field 'velocty': did you mean 'velocity'"),
        (lambda: BODIES.slice("mass", among_dynamic=True), "'mass' is static"),
        (lambda: StateSpec.from_json("{"), "not valid JSON"),
        (lambda: StateSpec.from_dict({"sites": ["body"]}), "mapping with the keys fields, sites"),
        (lambda: StateSpec.from_dict({"fields": [{"name": "v"}], "site": ["a"]}), "unknown key 'site': did you mean 'sites'"),
        (lambda: StateSpec.from_dict({"fields": ["v"]}), "field 0 is not a mapping with a name"),
        (lambda: StateSpec.from_dict({"fields": [{"name": "v", "unitt": "m"}]}), "field 'v': unknown key 'unitt': did you mean 'unit'"),
        (lambda: StateSpec.from_dict({"fields": [{"name": 7}]}), "field 7: name: expected a word, found 7"),
        (lambda: StateSpec.from_dict({"fields": [{"name": "v", "dynamic": "no"}]}), "'v': dynamic: expected true or false, found 'no'"),
        (lambda: StateSpec.from_dict({"fields": [{"name": "v", "scale": "1"}]}), "'v': scale: expected a number, found '1'"),
        (lambda: StateSpec.from_dict({"fields": [{"name": "v", "size": 2.5}]}), "'v': size: expected a whole number, found 2.5"),
        (lambda: StateSpec.from_dict({"fields": [{"name": "v"}], "sites": "body"}), "sites: expected a list of names, found 'body'"),
        (lambda: StateSpec.from_dict({"fields": [{"name": "v"}], "space": "3"}), "space: expected a whole number, found '3'"),
    ],
)
def test_specs_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"velocity": None}, "missing field velocity"),
        ({"sping": np.zeros((2, 4))}, "unknown field 'sping': did you mean 'spin'"),
        ({"position": np.zeros((2, 4, 2))}, r"'position' is a vector: expected \(\*batch, body, 3\), found \(2, 4, 2\)"),
        ({"position": np.zeros(3)}, r"'position' is a vector: expected \(\*batch, body, 3\), found \(3,\)"),
        ({"mass": np.zeros(())}, r"'mass' is a scalar: expected \(\*batch, body\), found \(\)"),
        ({"mass": np.zeros((2, 5))}, r"same batch and site dimensions: mass \(2, 5\), position \(2, 4\)"),
    ],
)
def test_fields_that_do_not_fit_are_named(changes, message, convert):
    fields = {name: convert(value) for name, value in (values(BODIES) | changes).items() if value is not None}
    with pytest.raises(ShapeError, match=message):
        BODIES.pack(**fields)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_check_names_what_is_wrong_with_a_state(convert):
    x = state(BODIES)
    BODIES.check(convert(x))
    for bad, message in (
        (x[..., 1:], r"x0: expected \(\*batch, body, 11\) with channels mass 1, position 3.*found \(2, 4, 10\)"),
        (x[0, 0], r"found \(11,\)"),
        (x.astype(np.int64), "expected floating point numbers, found dtype .*int64"),
        (np.where(x > 1, np.nan, x), "holds NaN or infinite values"),
    ):
        with pytest.raises(ShapeError, match=message):
            BODIES.check(convert(bad), what="x0")


# -- the Euclidean group -------------------------------------------------------------------------------------------------


@given(spec=specs(), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_euclidean_elements_form_a_group(spec, seed):
    x = state(spec, seed=seed)
    g, h = element(spec, seed), element(spec, seed + 1)
    one = EuclideanElement(np.eye(spec.space), np.zeros(spec.space), np.arange(4))
    np.testing.assert_array_equal(spec.act(one, x), x)
    np.testing.assert_allclose(spec.act(g, spec.act(h, x)), spec.act(compose(g, h), x), **TINY)
    np.testing.assert_allclose(spec.act(inverse(g), spec.act(g, x)), x, **TINY)
    np.testing.assert_array_equal(g.act_latent(h.act_latent(x)), compose(g, h).act_latent(x))


@given(spec=specs(), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_dynamic_part_moves_with_the_whole(spec, seed):
    x, g = state(spec, seed=seed), element(spec, seed)
    np.testing.assert_array_equal(spec.dynamic(spec.act(g, x)), spec.act_dynamic(g, spec.dynamic(x)))
    np.testing.assert_array_equal(spec.advance(spec.act(g, x), spec.act_dynamic(g, spec.dynamic(x))), spec.act(g, x))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_elements_preserve_volume(seed):
    g, size = element(BODIES, seed), 4 * BODIES.channels
    origin = BODIES.act(g, np.zeros((4, BODIES.channels)))
    columns = BODIES.act(g, np.eye(size).reshape(size, 4, BODIES.channels)) - origin
    assert abs(np.linalg.det(columns.reshape(size, size))) == pytest.approx(1, abs=1e-10)


def test_vectors_scalars_and_their_mirror_images_transform_as_physics_says():
    """A cross product of vectors is a pseudovector, a triple product a pseudoscalar, a relative position a vector."""
    rng = np.random.default_rng(0)
    r, v, w = rng.standard_normal((3, 4, 3))

    def world(r: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        triple = (np.cross(v, w) * (r - r.mean(-2, keepdims=True))).sum(-1)
        return BODIES.pack(mass=(v * w).sum(-1), position=r, velocity=v, spin=np.cross(v, w), handedness=triple)

    signs = set()
    for seed in range(8):
        g = element(BODIES, seed)
        signs.add(round(np.linalg.det(g.rotation)))
        turned = [a @ g.rotation.T for a in (r, v, w)]
        moved = [a[g.permutation] for a in (turned[0] + g.translation, *turned[1:])]
        np.testing.assert_allclose(BODIES.act(g, world(r, v, w)), world(*moved), **TINY)
    assert signs == {-1, 1}


def test_random_elements_are_haar_distributed():
    """Orthogonal, half of them reflections, and every column uniform on the sphere (false-failure rate 1e-6)."""
    rng, x = np.random.default_rng(0), np.empty((3, 7))
    draws = [Euclidean(3, translation_scale=2.0).random(x, rng) for _ in range(4000)]
    rotations = np.stack([g.rotation for g in draws])
    np.testing.assert_allclose(rotations @ rotations.swapaxes(1, 2), np.eye(3) + np.zeros_like(rotations), atol=1e-12)
    z = 4.9  # two-sided 1e-6
    assert abs((np.linalg.det(rotations) > 0).mean() - 0.5) < z * 0.5 / np.sqrt(4000)
    assert np.abs(rotations.mean(0)).max() < 5.4 * np.sqrt(1 / 3 / 4000)
    assert np.abs((rotations**2).mean(0) - 1 / 3).max() < 5.4 * np.sqrt(4 / 45 / 4000)
    assert np.std([g.translation for g in draws]) == pytest.approx(2, rel=z / np.sqrt(2 * 12000))
    counts = np.unique([g.permutation for g in draws], axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert np.abs(counts - 4000 / 6).max() < 5.2 * np.sqrt(4000 * 5 / 36)


@pytest.mark.parametrize(("axis", "kept"), [((0.0, 0.0, 1.0), 8), ((1.0, 1.0, 0.0), 4), ((1.0, 2.0, 3.0), 1)])
def test_in_a_cubic_box_an_axis_keeps_its_place(axis, kept):
    """Of the 48 symmetries of the cube those that map the axis to itself, each about as often as another."""
    group, rng = Euclidean(3, geometry=Space(3, box=(2.0, 2.0, 2.0), rotations="axis", axis=axis)), np.random.default_rng(0)
    turns = np.stack([group.random(np.empty((2, 7)), rng).rotation for _ in range(400)])
    np.testing.assert_array_equal(turns @ np.array(axis), np.broadcast_to(axis, (400, 3)))
    counts = np.unique(turns, axis=0, return_counts=True)[1]
    np.testing.assert_allclose(counts, np.full(kept, 400 / kept), atol=5 * np.sqrt(400 / kept))


def test_same_seed_same_element():
    a, b = element(BODIES, 3), element(BODIES, 3)
    np.testing.assert_array_equal(a.rotation, b.rotation)
    np.testing.assert_array_equal(a.permutation, b.permutation)


def test_a_group_without_translations_says_so():
    still = Euclidean(2, translation_scale=0.0)
    assert still.description == "O(2) × S_N: rotations, reflections, permutations of bodies"
    assert Euclidean(3).description == "E(3) × S_N: rotations, reflections, translations, permutations of bodies"


# -- the checks ----------------------------------------------------------------------------------------------------------


def pull(x: torch.Tensor, axes: slice = slice(None)) -> torch.Tensor:
    """A step with softened attraction; an honest one compares velocities on all axes."""
    r, v = BODIES.get(x, "position"), BODIES.get(x, "velocity")
    speed = (v[..., None, :, axes] - v[..., :, None, axes]).square().sum(-1, keepdim=True)
    dv = ((r[..., None, :, :] - r[..., :, None, :]) / (1 + speed)).sum(-2)
    fields = {name: BODIES.get(x, name) for name in ("spin", "handedness")}
    return BODIES.pack_dynamic(position=r + 0.1 * v, velocity=v + dv, **fields)


def test_equivariance_error_tells_a_defect_from_rounding():
    x = torch.from_numpy(state(BODIES, batch=(3,)))
    honest = equivariance_error(pull, x, Euclidean(3), act_in=BODIES.act, act_out=BODIES.act_dynamic)
    assert honest.samples == 10
    assert honest.maximum < 1e-13
    sliced = equivariance_error(lambda x: pull(x, slice(2)), x, Euclidean(3), act_in=BODIES.act, act_out=BODIES.act_dynamic)
    assert sliced.median > 1e-3
    invariant = equivariance_error(
        lambda x: torch.cdist(BODIES.get(x, "position"), BODIES.get(x, "position")).sum(-1, keepdim=True),
        x,
        Euclidean(3),
        act_in=BODIES.act,
        act_out=lambda g, y: g.act_latent(y),
    )
    assert invariant.maximum < 1e-10


def test_density_invariance_error_tells_a_defect_from_rounding():
    x0 = torch.from_numpy(state(BODIES, batch=(3,)))
    path = torch.from_numpy(state(BODIES, batch=(3, 2), seed=1))
    z = torch.from_numpy(np.random.default_rng(2).standard_normal((3, 2, 4, 5)))

    def log_density(x0, path, z, axes=slice(None)):
        before = torch.cat([x0[:, None], path[:, :-1]], 1)
        residual = BODIES.get(path, "velocity") - BODIES.get_dynamic(pull(before, axes), "velocity")
        return -(residual.square().sum(-1) * z.square().sum(-1)).sum((1, 2))

    arguments = (BODIES, x0, path, z, Euclidean(3))
    assert density_invariance_error(log_density, *arguments).maximum < 1e-12
    assert density_invariance_error(lambda *a: log_density(*a, axes=slice(2)), *arguments).median > 1e-4
    assert density_invariance_error(lambda x0, path, z: log_density(x0, path, z.flip(2)), *arguments).median > 1e-4
