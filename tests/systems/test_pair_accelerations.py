"""The law of pairs that a system says of itself is the one that its simulator follows."""

from __future__ import annotations

import numpy as np
import pytest

from epns_pyro.systems import CellsConfig, ChargedConfig, GravityConfig, NBodyConfig, SpringsConfig

DT = 1e-6
SYSTEMS = {
    "nbody": NBodyConfig(sigma=0.0, dt=DT, frame_dt=DT),
    **{
        name: kind(dt=DT, frame_dt=DT, velocity="recorded")
        for name, kind in (("charged", ChargedConfig), ("springs", SpringsConfig), ("gravity", GravityConfig))
    },
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_pushes_of_all_others_add_up_to_the_acceleration_of_a_short_step(name):
    system = SYSTEMS[name].build()
    spec, x = system.spec, system.spec.pack(**fields(system))
    x = x[None]
    pushes = system.pair_accelerations(x)
    place = spec.get(x, "position")
    way = place[:, :, None] - place[:, None]
    length = np.linalg.norm(way, axis=-1)
    direction = np.divide(way, length[..., None], out=np.zeros_like(way), where=length[..., None] > 0)
    pushes[:, np.arange(4), np.arange(4)] = 0
    wanted = (pushes[..., None] * direction).sum(2)
    after = system.simulate(x, 1, np.zeros(1, np.uint64))[:, 1]
    found = (spec.get(after, "velocity") - spec.get(x, "velocity")) / DT
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def fields(system) -> dict[str, np.ndarray]:
    """Four bodies that are apart: masses and charges of order one, some pairs joined."""
    rng = np.random.default_rng(0)
    values = {"position": 3 * rng.random((4, 3)), "velocity": rng.random((4, 3)), "mass": 1 + rng.random(4), "charge": np.ones(4)}
    values["spring"] = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]], float)
    return {name: values[name] for name in system.spec.names}


def test_a_system_without_such_a_law_says_so():
    cells = CellsConfig.small().build()
    assert not cells.has_pair_law
    with pytest.raises(TypeError, match="has no known law of pairs"):
        cells.pair_accelerations(np.zeros((1, 2, 2, 1)))
