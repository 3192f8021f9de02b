"""Fitting the equation of motion before training: it finds the law that made the data, and leaves all else alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from epns_pyro.data import generate
from epns_pyro.errors import ConfigError
from epns_pyro.systems import ChargedConfig, GravityConfig, SetConfig, SpringsConfig
from epns_pyro.training.motion import fit_law, require_integrator
from epns_pyro.training.presets import preset

SETS = {"train": SetConfig(trajectories=60, steps=5), "val": SetConfig(trajectories=2, steps=5)}
SYSTEMS = {
    "springs": SpringsConfig(sets=SETS),
    "gravity": GravityConfig(sets=SETS, bodies=4),
    "charged": ChargedConfig(sets=SETS, bodies=3),
}


def fitted(name, path, windows=120):
    store = generate(SYSTEMS[name], path / "store.zarr")
    context = store.context()
    torch.manual_seed(0)
    transition = preset(name).model.build(context)
    fit = fit_law(transition, store, context, windows, seed=0)
    return store, context, transition, fit


@pytest.mark.parametrize(("name", "relative"), [("springs", 1e-5), ("gravity", 0.01)])
def test_the_law_is_found_where_bodies_are(name, relative, tmp_path):
    store, context, transition, fit = fitted(name, tmp_path)
    spec, x = context.spec, torch.as_tensor(store.read("val")[:, 0])
    bodies, integrator = transition.bodies, transition.integrator.double()
    force = integrator.network(bodies.positions(x), bodies.features(x)).vectors[..., 0, :] * integrator.vectors["velocity"] / 0.1
    r = spec.get(x, "position").numpy()
    way, weights = r[:, None] - r[:, :, None], store.system.weights(x.numpy())
    distance = np.sqrt((way**2).sum(-1) + store.system.force.softening**2)
    truth = -(weights[..., None] * way / distance[..., None] ** store.system.force.power).sum(2)
    error = np.linalg.norm(force.detach().numpy() - truth, axis=-1) / np.linalg.norm(truth, axis=-1).mean()
    assert np.median(error) < relative
    assert fit.scale < relative


def test_what_no_law_foresees_does_not_spoil_it(tmp_path):
    """Charged particles pass each other closer than a frame can tell; the bulk is right all the same."""
    assert fitted("charged", tmp_path)[3].scale < 1e-3


def test_a_fit_changes_the_law_alone_and_keeps_the_precision(tmp_path):
    store = generate(SYSTEMS["springs"], tmp_path / "store.zarr")
    torch.manual_seed(0)
    transition = preset("springs").model.build(store.context())
    before = {key: value.clone() for key, value in transition.state_dict().items()}
    fit_law(transition, store, store.context(), 40, seed=0)
    for key, value in transition.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[key]) or key.startswith("integrator.network"), key
    assert not torch.equal(transition.integrator.network.linear.weight, before["integrator.network.linear.weight"])


def test_what_cannot_be_fitted_is_said(tmp_path):
    context = generate(SYSTEMS["springs"], tmp_path / "store.zarr").context()
    for changes, message in (
        ({"model.integrator": None}, "has no equation of motion to fit"),
        ({"model.integrator.network": "pairwise"}, "the law has .* parameters, at most 1000 can be fitted"),
    ):
        with pytest.raises(ConfigError, match=message):
            require_integrator(preset("springs").override(changes).model.build(context))
