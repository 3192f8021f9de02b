"""Training on recorded positions starts from the linear autoregression of their steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from small import trainer

from epns_pyro.data import Store, open_store
from epns_pyro.data.linear import fit_linear, recorded_transitions
from epns_pyro.derived import with_history
from epns_pyro.errors import ConfigError
from epns_pyro.evaluation.linear_forecasters import Autoregression, Persistence
from epns_pyro.inference.elbo import elbo_step
from epns_pyro.models.bodies.particles import ParticlesConfig
from epns_pyro.state import Field, StateSpec
from epns_pyro.training.linear import start_from_linear
from epns_pyro.training.presets import preset

ALONE = StateSpec((Field("position", "1o", translates=True),), space=2)
SPEC = with_history(ALONE, 3)


def turning_back(folder: Path, *, spec: StateSpec = SPEC, error: float = 0.3, seed: int = 0) -> Store:
    """Walks recorded with an error, of which every second has left half way: a step goes back a part of the last ones."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", 40), ("val", 10), ("test", 10)):
        shape = (count, 20, 3, 2)
        x = 40.0 + 0.1 * rng.normal(size=shape).cumsum(1) + error * rng.normal(size=shape)
        x[::2, 12:, 0] = np.nan
        data = xr.Dataset({"position": (("trajectory", "time", "body", "space"), x)})
        data.attrs = {"state_spec": spec.to_json(), "frame_dt": 0.5}
        data.to_zarr(folder / "walks.zarr", group=split, mode="w", consolidated=False)
    return open_store(folder / "walks.zarr")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return turning_back(tmp_path)


def started(store: Store, **settings: object) -> torch.nn.Module:
    """An untrained transition whose networks say next to nothing, after the start."""
    torch.manual_seed(0)
    config = {"autoregression": True, "emission": "coupled", "integrator": None, "linear_path": False, "width": 8, "latent": 2, **settings}
    transition = ParticlesConfig.parse(config).build(store.context())
    start_from_linear(transition, store, store.context(), jitter=0.0, seed=0)
    return transition


def pairs(store: Store, split: str) -> tuple[np.ndarray, np.ndarray]:
    x = store.read(split, start=store.system.forecast_frame).astype(np.float64)
    return x[:, :-1].reshape(-1, *x.shape[2:]), x[:, 1:].reshape(-1, *x.shape[2:])


@pytest.mark.parametrize("settings", [{}, {"emission": "mixture"}, {"linear_path": True}], ids=["coupled", "mixture", "linear path"])
def test_before_training_a_model_is_the_autoregression(store, settings):
    x, after = pairs(store, "val")
    transition, context = started(store, **settings), store.context()
    x0, x1 = (torch.from_numpy(context.to_local(part)).float() for part in (x, after))
    with torch.no_grad():
        bound = elbo_step(transition.step(transition.start(x0)), x1)
        found = (bound.log_likelihood - bound.kl.sum((-2, -1))).numpy()
    references = {kind: kind.fit(store, context) if kind is Autoregression else kind(context) for kind in (Autoregression, Persistence)}
    linear, nothing = (reference.log_prob(x, after) for reference in references.values())
    assert linear.mean() > nothing.mean() + 1  # nats: steps go back
    if not settings:  # a mixture and latents of no size move it by some per cent of a nat
        np.testing.assert_allclose(found.mean(), linear.mean(), atol=0.15)
    assert found.mean() > nothing.mean() + 0.8 * (linear.mean() - nothing.mean())


def test_weights_are_those_of_least_squares(store):
    linear = fit_linear(lambda: recorded_transitions(store), store.context())
    transition = started(store)
    np.testing.assert_allclose(transition.autoregression.weights[0].numpy(force=True), linear.weights["velocity"], atol=0.06)
    x, after = pairs(store, "train")
    there = np.isfinite(after[..., :1]).all(-1) & np.isfinite(x[..., :1]).all(-1)
    seen = np.stack([store.spec.get(x, name)[there].ravel() for name in ("velocity", "velocity_1", "velocity_2")], -1)
    change = (store.spec.get(after, "velocity") - store.spec.get(x, "velocity"))[there].ravel()
    np.testing.assert_allclose(linear.weights["velocity"], np.linalg.lstsq(seen, change, rcond=None)[0], rtol=1e-6)


def test_errors_that_are_added_in_training_are_in_the_start(tmp_path):
    """Of exact tracks the last step says all; of tracks with errors earlier ones count, too."""
    store = turning_back(tmp_path, error=0.0)
    exact, rough = started(store), started(store)
    start_from_linear(rough, store, store.context(), jitter=1.0, seed=0)
    assert abs(exact.autoregression.weights[0, 0]) > 0.9  # v' = v - v + noise
    assert rough.autoregression.weights[0, 1] < exact.autoregression.weights[0, 1] - 0.1


def test_it_is_for_recorded_positions_alone(store, tmp_path):
    assert preset("particles", data=store).model.autoregression
    timed = store.timed()
    assert not preset("particles", data=timed).model.autoregression
    with pytest.raises(ConfigError, match=r"model\.autoregression"):
        ParticlesConfig(autoregression=True).build(timed.context())


@pytest.mark.parametrize(("network", "linear"), [("pairwise", True), ("central", False)])
def test_a_law_that_is_fitted_takes_its_place(store, tmp_path, network, linear):
    """Both are fitted to the same changes, and together they would foresee them twice."""
    changes = {"model.integrator.network": network, "training.motion_windows": None if linear else 20, "model.width": 8}
    config = preset("particles", data=store).override(changes | {"model.emission": "coupled", "training.steps": 1})
    one = trainer(store, tmp_path / "run", config)
    assert one.starts_linear == linear
    one.fit()
    assert (one.transition.autoregression.weights.abs().max() > 0.1) == linear


def test_where_nothing_has_moved_training_starts_from_persistence(store, monkeypatch):
    still = store.read("train")[:, :1].repeat(2, 1)
    nothing = fit_linear(lambda: [(still[:, 0] * 0.0, still[:, 1] * 0.0)], store.context())
    assert not nothing.weights
    monkeypatch.setattr("epns_pyro.training.linear.fit_linear", lambda *_: nothing)
    assert not started(store).autoregression.weights.any()
