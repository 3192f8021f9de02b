"""The law of pairs that a model has learned: exact where forces are sums over pairs, beside the truth, by kind, and per mass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from phase_space import about, follow_gravity, symplectic
from worlds import context as world_context
from worlds import particles, trajectories

from epns_pyro.errors import ConfigError
from epns_pyro.inference.pair_law import pair_law
from epns_pyro.systems import ChargedConfig, NBodyConfig, SpringsConfig

CELESTIAL = NBodyConfig(dt=0.01).build()


def celestial(states: int = 200):
    """A transition that follows the celestial law, its context and states."""
    context = replace(about(5), spec=CELESTIAL.spec.with_scales({"mass": 4.0, "position": 2.0}))
    config = CELESTIAL.config
    return follow_gravity(symplectic(context), config.gravitational_constant, config.softening), context, initial(CELESTIAL, states)


def initial(system, states: int) -> np.ndarray:
    return system.initial(states, np.random.default_rng(0))


def test_a_law_that_is_known_is_read_exactly():
    transition, context, x = celestial()
    found = pair_law(transition, CELESTIAL, context, x)
    assert float(abs(found.error).max()) < 1e-9 * float(abs(found.truth).max())
    assert float(found.learned.max()) < 0  # gravity pulls
    assert int(found.pairs.sum()) == len(x) * 20
    assert found.attrs["units"] == "L/T²"


def test_per_mass_gravity_is_one_curve():
    transition, context, x = celestial()
    wide, narrow = (pair_law(transition, CELESTIAL, context, x, per=per) for per in ("", "mass"))

    def width(found):
        ends = found.learned.sel(quantile=[0.05, 0.95])
        return float((abs(ends.diff("quantile").squeeze()) / abs(found.learned.sel(quantile=0.5))).median())

    assert width(wide) > 1
    assert width(narrow) < 0.5
    distance = narrow.distance.values
    wanted = -distance / (distance**2 + CELESTIAL.config.softening**2) ** 1.5
    middle = narrow.learned.sel(quantile=0.5).values[0]
    np.testing.assert_allclose(middle[3:-1], wanted[3:-1], rtol=0.1)
    assert narrow.attrs["units"] == "L/T²/M"


def test_close_pairs_are_in_narrow_bins():
    """Where a force is steep, its change within a bin would look like a law that depends on more than the distance."""
    transition, context, x = celestial(400)
    found = pair_law(transition, CELESTIAL, context, x, per="mass", bins=6)
    pairs = found.pairs.values[0]
    assert len(pairs) == 9
    assert pairs[0] < pairs[1] < pairs[3] < pairs[4] / 1.4
    assert int(pairs.sum()) == len(x) * 20
    assert len(pair_law(transition, CELESTIAL, context, x[:10], bins=6).distance) == 6


def test_a_law_that_is_wrong_is_seen_as_wrong():
    transition, context, x = celestial()
    with torch.no_grad():
        transition.potential.linear.mul_(1.1)
    found = pair_law(transition, CELESTIAL, context, x)
    np.testing.assert_allclose(found.learned, 1.1 * found.truth, rtol=1e-6)
    np.testing.assert_allclose(found.error.sel(quantile=0.5), 0.1 * found.truth.sel(quantile=0.5), rtol=1e-6)


def test_the_integrator_of_particles_is_read_by_taking_bodies_away():
    """A sum over pairs: what j adds to i is what is left when all others are taken away too."""
    context = world_context("celestial")
    transition, (x, _) = particles(context), trajectories(context)
    found = pair_law(transition, CELESTIAL, context, x.numpy(), bins=1)
    spec, values = context.spec, []
    with torch.no_grad():
        for state in x:
            for i in range(4):
                for j in range(4):
                    if i != j:
                        two, alone = state[[i, j]], torch.tensor([True, False])
                        way = spec.get(two, "position")
                        push = (transition.acceleration(two) - transition.acceleration(two, alone))[0]
                        values.append(float(push @ (way[0] - way[1]) / (way[0] - way[1]).norm()))
    np.testing.assert_allclose(found.learned.values[0, 0], np.quantile(values, found["quantile"].values), rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (ChargedConfig(velocity="recorded"), ["charge -1 and -1", "charge -1 and 1", "charge 1 and 1"]),
        (SpringsConfig(velocity="recorded"), ["spring 0", "spring 1"]),
    ],
    ids=["charged", "springs"],
)
def test_kinds_of_pairs_are_told_apart(config, kinds):
    system = config.build()
    context = replace(about(5, mass=False), spec=system.spec)
    transition = symplectic(context, size=0.1)
    found = pair_law(transition, system, context, initial(system, 100), bins=4)
    assert list(found.kind.values) == kinds
    truth = found.truth.sel(quantile=0.5)
    if "spring 0" in kinds:
        assert float(abs(truth.sel(kind="spring 0")).max()) == 0
        np.testing.assert_allclose(truth.sel(kind="spring 1"), -0.1 * found.distance, rtol=0.3)
    else:
        assert (truth.sel(kind="charge -1 and 1") < 0).all()
        assert (truth.sel(kind="charge 1 and 1") > 0).all()


def test_absent_bodies_are_no_pairs():
    transition, context, x = celestial(20)
    context = replace(context, absences=True)
    transition = follow_gravity(symplectic(context), 1.0, 0.1)
    x[:, 3, context.spec.slice("position")] = x[:, 3, context.spec.slice("velocity")] = np.nan
    found = pair_law(transition, CELESTIAL, context, x, bins=3)
    assert int(found.pairs.sum()) == 20 * 12
    assert float(abs(found.error).max()) < 1e-9 * float(abs(found.truth).max())


def test_what_cannot_be_read_is_said_in_one_line():
    transition, context, x = celestial(3)
    with pytest.raises(ConfigError, match="per='charge' names no static scalar"):
        pair_law(transition, CELESTIAL, context, x, per="charge")
    still = particles(world_context("celestial"), integrator=None)
    with pytest.raises(ConfigError, match="no equation of motion"):
        pair_law(still, CELESTIAL, world_context("celestial"), x)
