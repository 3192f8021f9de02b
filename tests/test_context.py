"""The origin of the coordinates: moving all of the data by a constant changes nothing, however far."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import Predictive
from small import MODEL, ONE_PROCESS

from epns_pyro.conditioning.observations import InitialNormal, Observations
from epns_pyro.context import DataContext
from epns_pyro.data import open_store
from epns_pyro.runs import load
from epns_pyro.simulator import Simulator
from epns_pyro.state import Field, StateSpec
from epns_pyro.training.checkpoint import context_from_plain, context_to_plain
from epns_pyro.training.run import RunConfig, RunFolder, TrainingConfig
from epns_pyro.training.trainer import Trainer

SPEC = StateSpec((Field("position", "1o", translates=True), Field("spin", "1o")), space=2)
FAR = np.array([5.0e5, 5.6e6])  # metres of a map; single precision is good to 0.5 m there
TRAINING = TrainingConfig(steps=6, batch=8, log_every=3, validate_every=6, checkpoint_every=6, validation_transitions=20)


def walks(shift: np.ndarray | float, folder: Path, name: str) -> Path:
    """Trajectories of three bodies that move by 0.1 a step."""
    rng = np.random.default_rng(0)
    dims = ("trajectory", "time", "body", "space")
    x = rng.normal(size=(20, 1, 3, 2)) + 0.1 * rng.normal(size=(20, 8, 3, 2)).cumsum(1)
    data = xr.Dataset({"position": (dims, x + shift), "spin": (dims, rng.normal(size=x.shape))})
    data.attrs = {"state_spec": SPEC.to_json(), "frame_dt": 1.0}
    data.to_zarr(folder / name, mode="w", consolidated=False)
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Simulator, np.ndarray]]:
    """The same training near the origin and far from it, each with trajectories of its test set."""
    folder, found = tmp_path_factory.mktemp("origin"), {}
    for name, shift in (("near", 0.0), ("far", FAR)):
        store = open_store(walks(shift, folder, f"{name}.zarr"))
        run = RunFolder(folder / name)
        config = RunConfig(system=store.system.config, model=MODEL, training=TRAINING)
        run.create(config)
        validation = Trainer(config, store, run, ONE_PROCESS).fit()
        found[name] = load(run.path), store.read("test"), validation
    return found


def test_the_origin_is_measured_only_where_zero_is_far_from_the_data(tmp_path):
    assert open_store(walks(0.0, tmp_path, "near.zarr")).context().origin == ()
    far = open_store(walks(FAR, tmp_path, "far.zarr")).context()
    np.testing.assert_allclose(far.origin, FAR, atol=1)


def test_training_far_away_is_training_here(runs):
    near, far = (runs[name][2] for name in ("near", "far"))
    assert far.elbo == pytest.approx(near.elbo, abs=1e-3)


def test_likelihoods_and_futures_do_not_depend_on_where_the_data_are(runs):
    bounds, futures, chances = [], [], []
    for name, shift in (("near", 0.0), ("far", FAR)):
        sim, x, _ = runs[name]
        torch.manual_seed(0)
        bounds.append(sim.elbo(x[:, 0], x[:, 1:]).numpy())
        future = sim.rollout(x[:, 0], steps=4, members=3)
        futures.append((future["position"] - shift).values)
        threshold = np.broadcast_to(shift, 2)[1]
        chances.append(
            sim.probability(lambda y, at=threshold: SPEC.get(y, "position")[:, -1, 0, 1] > at, x[0, 0], steps=2, members=20).hits
        )
        assert future["alive"].all()
    np.testing.assert_allclose(bounds[1], bounds[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(futures[1], futures[0], atol=1e-4)
    assert chances[0] == chances[1]


def test_conditioning_does_not_depend_on_where_the_data_are(runs):
    filtered, bridged = [], []
    for name, shift in (("near", 0.0), ("far", FAR)):
        sim, x, _ = runs[name]
        path = x[0, :4]
        seen = Observations.from_states(SPEC, path, {"position": 0.05}, every=1)
        start = InitialNormal(path[0], {"position": 0.1})
        filtered.append((sim.filter(start, seen, particles=50)["position"] - shift).values)
        bridged.append((sim.smooth(path[0], end=path[3], steps=3, particles=50)["position"] - shift).values)
    np.testing.assert_allclose(filtered[1], filtered[0], atol=1e-3)
    np.testing.assert_allclose(bridged[1], bridged[0], atol=1e-3)


def test_there_and_back_again():
    context = DataContext(SPEC, 1.0, {"position": 1.0, "spin": 1.0}, (3,), tuple(FAR))
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    local = context.to_local(x)
    np.testing.assert_allclose(SPEC.get(local, "position"), SPEC.get(x, "position") - FAR)
    np.testing.assert_array_equal(SPEC.get(local, "spin"), SPEC.get(x, "spin"))
    np.testing.assert_allclose(context.to_global(local), x, atol=1e-8)
    np.testing.assert_array_equal(context.to_local(torch.as_tensor(x)).numpy(), local)
    assert replace(context, origin=()).to_local(x) is x


def test_a_checkpoint_of_before_has_no_origin():
    context = DataContext(SPEC, 1.0, {"position": 1.0, "spin": 1.0}, (3,), tuple(FAR))
    plain = context_to_plain(context)
    assert context_from_plain(plain) == context
    del plain["origin"]
    assert context_from_plain(plain) == replace(context, origin=())


def test_stock_pyro_takes_and_gives_the_coordinates_of_the_data(runs):
    """Predictive and the ELBO of Pyro: far from zero they say what they say near it."""
    futures, scores = [], []
    for name, shift in (("near", 0.0), ("far", FAR)):
        sim, x, _ = runs[name]
        torch.manual_seed(0)
        sites = Predictive(sim.model, guide=sim.guide, num_samples=3, parallel=True)(torch.as_tensor(x[:, 0]), horizon=3)
        assert sites["x_1"].shape[0] == 3
        futures.append(SPEC.get_dynamic(sites["x_3"].double(), "position").numpy() - shift)
        torch.manual_seed(1)
        trace = poutine.trace(poutine.replay(sim.model, poutine.trace(sim.guide).get_trace(x[:, 0], x[:, 1:]))).get_trace(x[:, 0], x[:, 1:])
        scores.append(trace.log_prob_sum().item())
        observed = SPEC.get_dynamic(trace.nodes["x_1"]["value"].double(), "position").numpy()
        np.testing.assert_allclose(observed - shift, SPEC.get(x[:, 1], "position") - shift, atol=1e-6)
    np.testing.assert_allclose(futures[1], futures[0], atol=1e-4)
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
