"""Recorded particles: what a description makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from epns_pyro.errors import ConfigError
from epns_pyro.state import Field, StateSpec
from epns_pyro.systems import SYSTEMS, RecordedConfig, System

SWARM = {
    "fields": [
        {"name": "mass", "dynamic": False, "unit": "g"},
        {"name": "place", "irreps": "1o", "translates": True, "unit": "m"},
        {"name": "pace", "irreps": "1o", "rate_of": "place", "unit": "m/s"},
        {"name": "charge"},
    ],
    "space": 2,
}


def swarm(**changes) -> System:
    return RecordedConfig.parse({"spec": SWARM, "frame_dt": 0.5, "time_unit": "s"} | changes).build()


def path(system: System, shape=(3, 6, 4), seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spec = system.spec
    return spec.pack(**{f.name: rng.standard_normal((*shape, spec.width(f)) if f.is_vector else shape) for f in spec.fields})


def test_observables_are_what_they_say():
    system = swarm()
    x = path(system)
    seen = system.observables(x)
    m, r, v, q = (system.spec.get(x, name)[2, 3] for name in system.spec.names)
    centroid = sum(r) / 4
    expected = {
        "spread": np.sqrt(sum((a - centroid) @ (a - centroid) for a in r) / 4),
        "least_pair_distance": min(np.linalg.norm(r[i] - r[j]) for i in range(4) for j in range(i)),
        "mean_speed": sum(np.linalg.norm(a) for a in v) / 4,
        "kinetic_energy": sum(m[i] * (v[i] @ v[i]) / 2 for i in range(4)),
        "rms_charge": np.sqrt(sum(q**2) / 4),
    }
    assert {name: seen[name].values[2, 3] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert {name: o.unit for name, o in seen.items()} == {
        "spread": "m",
        "least_pair_distance": "m",
        "nearest_neighbour_distance": "m",
        "displacement": "m",
        "msd_over_half": "m²",
        "straightness": "",
        "displacement_spread": "m",
        "turning_angle": "rad",
        "velocity_autocorrelation": "",
        "velocity_autocorrelation_over_half": "",
        "polarisation": "",
        "mean_speed": "m/s",
        "kinetic_energy": "g (m/s)²",
        "rms_charge": "",
    }
    assert all(o.values.shape == (3, 6) for o in seen.values())


def test_observables_are_invariant_under_the_group():
    system = swarm()
    x = path(system)
    moved = system.spec.act(system.symmetry.random(x, np.random.default_rng(1)), x)
    for before, after in zip(system.observables(x).values(), system.observables(moved).values(), strict=True):
        np.testing.assert_allclose(after.values, before.values, rtol=1e-9)


PLACE = {"name": "position", "irreps": "1o", "translates": True}
ABOUT_CENTRE = {"name": "position", "irreps": "1o"}
PACE = {"name": "velocity", "irreps": "1o", "rate_of": "position"}
OVER_LAG = {"msd_over_half", "velocity_autocorrelation_over_half"}
PAIR = {"least_pair_distance", "polarisation", "displacement_spread"}
GROUP = {"nearest_neighbour_distance"} | PAIR
MOVES = {"displacement", "straightness", "turning_angle", "velocity_autocorrelation"} | OVER_LAG


@pytest.mark.parametrize(
    ("fields", "more", "bodies", "expected"),
    [
        ([{"name": "level"}], {}, 4, {"rms_level"}),
        ([{"name": "spin", "irreps": "1e"}], {}, 4, {"rms_spin"}),
        ([PLACE | {"dynamic": False}, {"name": "level"}], {}, 4, {"rms_level"}),
        ([PLACE], {}, 4, {"spread", "step_length"} | MOVES | GROUP),
        ([PLACE], {}, 2, {"spread", "step_length"} | MOVES | PAIR),
        ([PLACE], {}, 1, {"step_length"} | MOVES),
        ([PLACE], {"space": 1}, 1, {"step_length"} | MOVES - {"turning_angle"}),
        ([PLACE], {"box": [5, 5, 5]}, 4, {"step_length"} | MOVES | GROUP),
        ([ABOUT_CENTRE], {}, 1, {"rms_position", "step_length"} | MOVES),
        ([ABOUT_CENTRE, PACE], {}, 4, {"rms_position", "mean_speed"} | MOVES | GROUP),
        ([PLACE, PACE | {"differences": True}], {}, 1, {"mean_speed"} | MOVES),
        ([PLACE, PACE, {"name": "before", "irreps": "1o", "lag_of": "velocity"}], {}, 1, {"mean_speed"} | MOVES),
        ([{"name": "tilt", "irreps": "1e"}, {"name": "spin", "irreps": "1e", "rate_of": "tilt"}, PLACE, PACE], {}, 1,
         {"rms_tilt", "rms_spin", "mean_speed"} | MOVES),
    ],
)  # fmt: skip
def test_every_description_has_observables(fields, more, bodies, expected):
    system = swarm(spec={"fields": fields, "space": 3} | more)
    assert set(system.observables(path(system, shape=(3, 6, bodies)))) == expected


def test_translations_are_a_symmetry_only_where_a_field_translates():
    assert "translations" in swarm().symmetry.description
    still = swarm(spec={"fields": [{"name": "force", "irreps": "1o"}], "space": 3})
    assert "translations" not in still.symmetry.description
    assert still.symmetry.random(path(still), np.random.default_rng(0)).translation.tolist() == [0, 0, 0]


def test_data_are_alive_by_their_own_description():
    spec = StateSpec.from_dict(SWARM)
    x = path(swarm())
    config = RecordedConfig.describing(spec, x, frame_dt=0.5, time_unit="s")
    assert set(config.extent) == {"place", "pace", "charge"}
    assert SYSTEMS.parse(config.model_dump(mode="json")) == config
    assert config.build().alive(x).all()


@pytest.mark.parametrize("name", ["place", "pace", "charge"])
def test_a_field_that_outgrows_the_data_is_death(name):
    system = RecordedConfig.describing(swarm().spec, path(swarm()), frame_dt=0.5).override({"extent_multiple": 3.0}).build()
    x, channels = path(system), system.spec.slice(name)
    extent = system.config.extent[name]
    x[1, 2, 0, channels] = 0.9 * 3 * extent / np.sqrt(system.spec.width(name))
    assert system.alive(x).all()
    x[1, 2, 0, channels] *= 2
    assert system.alive(x).tolist() == [[True] * 6, [True] * 2 + [False] * 4, [True] * 6]


def test_moving_the_data_changes_nothing():
    system = RecordedConfig.describing(swarm().spec, path(swarm()), frame_dt=0.5).build()
    x = path(system)
    x[..., system.spec.slice("place")] += 1e6
    assert system.alive(x).all()


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_what_is_not_finite_is_dead_even_without_an_extent(bad):
    system = swarm()
    x = path(system)
    x[0, 3, 1, 2] = bad
    assert system.alive(x)[0].tolist() == [True] * 3 + [False] * 3
    assert system.alive(1e9 * path(system)).all()


def absent(system, x, bodies):
    """Give x (*batch, time, body, channel) room for more bodies, which are never there."""
    more = np.repeat(x[..., :1, :], bodies, axis=-2)
    for field in system.spec.dynamic_fields:
        more[..., system.spec.slice(field.name)] = np.nan
    return np.concatenate([x, more], axis=-2)


def test_absent_bodies_have_no_say():
    system = swarm()
    x = path(system)
    padded = absent(system, x, 3)
    for name, observable in system.observables(x).items():
        np.testing.assert_allclose(system.observables(padded)[name].values, observable.values, rtol=1e-12, err_msg=name)
    before, after = (RecordedConfig.describing(system.spec, states, frame_dt=0.5) for states in (x, padded))
    assert before.extent == pytest.approx(after.extent, rel=1e-12)
    assert after.build().alive(padded).all()
    padded[0, 3, 1, 2] = np.nan  # one number of a body that is there
    assert system.alive(padded)[0].tolist() == [True] * 3 + [False] * 3


def test_a_trajectory_is_over_when_no_body_is_left():
    system = swarm()
    x = absent(system, path(system), 1)
    for field in system.spec.dynamic_fields:
        x[0, 4:, :, system.spec.slice(field.name)] = np.nan
        x[1, 2, :, system.spec.slice(field.name)] = np.nan  # somebody comes back
    assert system.alive(x).tolist() == [[True] * 4 + [False] * 2, [True] * 6, [True] * 6]
    assert np.isnan(system.observables(x)["spread"].values[1, 2])


def test_there_is_nothing_to_simulate():
    system = swarm()
    assert (system.can_simulate, system.has_oracle) == (False, False)
    assert (system.frame_dt, system.time_unit) == (0.5, "s")
    x = path(system)[:, 0]
    with pytest.raises(TypeError, match="system 'recorded' has no simulator"):
        system.simulate(x, 1, np.zeros(3, np.uint64))
    with pytest.raises(TypeError, match="system 'recorded' has no distribution of initial states"):
        system.initial(1, np.random.default_rng(0))
    with pytest.raises(TypeError, match="system 'recorded' has no known transition density"):
        system.transition_log_prob(x, x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": {"fields": [{"name": "x", "irrep": "1o"}]}}, r"field 'x': unknown key 'irrep': did you mean 'irreps'"),
        ({"spec": {"fields": [{"name": "x", "irreps": "2e"}]}}, r"irreps '2e' is not one of 0e, 0o, 1o, 1e"),
        ({"spec": {"fields": [{"name": "u"}], "sites": ["y", "x"]}}, r"particles with one site axis, found y, x"),
        ({"spec": {"fields": [{"name": "cell", "kind": "label", "size": 4}]}}, r"real dynamic fields, found a label 'cell'"),
        ({"spec": {"fields": [{"name": 3}]}}, r"field 3: name: expected a word, found 3"),
        ({"frame_dt": 0}, r"frame_dt: .*greater than 0"),
        ({"extent": {"mass": 1.0}}, r"extent: field 'mass' is static"),
        ({"extent": {"pase": 1.0}}, r"extent: the state has no field 'pase': did you mean 'pace'"),
        ({"extent_multiple": 0.5}, r"extent_multiple: .*greater than 1"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        swarm(**changes)


def test_a_description_is_needed():
    with pytest.raises(ConfigError, match="spec: field required"):
        RecordedConfig.parse({"frame_dt": 0.1})


def test_a_position_in_a_box_cannot_outgrow_it():
    """On a torus no place is the middle: where the box begins says nothing of whether a state is plausible."""
    spec = StateSpec((Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position")), space=2, box=(4.0, 4.0))
    rng = np.random.default_rng(0)
    x = spec.pack(position=rng.uniform(0, 0.1, (3, 5, 2, 2)), velocity=rng.standard_normal((3, 5, 2, 2)))
    config = RecordedConfig.describing(spec, x, frame_dt=1.0)
    assert set(config.extent) == {"velocity"}
    far = spec.pack(position=3.9 * np.ones((3, 5, 2, 2)), velocity=spec.get(x, "velocity"))
    assert config.build().alive(far).all()
    assert config.override({"extent": {"position": 0.1, "velocity": 9.0}}).build().alive(far).all()  # as older stores say it
