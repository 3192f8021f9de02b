"""One model for steps of several durations, trained on windows of every k-th frame, against a law that is known at every duration."""

from __future__ import annotations

import numpy as np
import pytest
from relaxing import RATE, log_prob, make_store, paths

import epns_pyro
from epns_pyro.errors import ConfigError
from epns_pyro.evaluation.linear_forecasters import Persistence
from epns_pyro.training.presets import preset
from epns_pyro.training.trainable import check_trainable

STRIDES = (1, 2, 5)
SETTINGS = {
    "model.backbone.width": 16,
    "model.backbone.vectors": 8,
    "model.backbone.layers": 2,
    "model.width": 32,
    "model.latent": 2,
    "model.emission": "diagonal",
    "training.steps": 700,
    "training.learning_rate": 5e-3,
    "training.batch": 128,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strides")
    store = make_store(folder / "store.zarr")
    config = preset("particles", "quick", store.system.config).override(SETTINGS | {"training.strides": STRIDES})
    return epns_pyro.train(config, store, folder / "run"), store


@pytest.mark.parametrize("stride", STRIDES)
def test_log_p_of_an_ornstein_uhlenbeck_process_is_the_closed_form_at_every_stride(trained, stride):
    """Within 0.02 nats per transition of 2 numbers; the standard error of the difference, paired by transition, is 0.002.

    Persistence with noise that grows with the duration is 0.06, 0.12 and 0.31 nats below it.
    """
    simulator, store = trained
    dt = stride * store.frame_dt
    x = paths(4000, np.array([dt]), seed=7)
    spec = simulator.spec
    states = spec.pack(position=x, duration=np.full((*x.shape[:-1],), dt))
    truth = log_prob(x[:, 0], x[:, 1], np.full(len(x), dt))
    found = simulator.iwae(states[:, 0], states[:, 1:], num_samples=8).numpy()
    assert abs((truth - found).mean()) < 0.02
    naive = Persistence(simulator.context).log_prob(states[:, 0], states[:, 1])
    assert (found - naive).mean() > 0.5 * (truth - naive).mean() > 0


def test_forecasts_follow_the_durations_that_they_are_given(trained):
    """After steps of 0.2, 1.0 and 0.4 s the mean has relaxed by exp(-rate x 1.6 s)."""
    simulator, _ = trained
    spec, x = simulator.spec, np.broadcast_to([[[1.5, 0.0]]], (4, 1, 2))
    dt = np.array([0.2, 1.0, 0.4, 0.2])
    schedule = spec.pack(position=x, duration=dt[:, None])[None]
    futures = simulator.rollout(schedule[:, 0], steps=3, members=4000, schedule=schedule[:, 1:])
    mean = futures["position"].isel(time=-1, trajectory=0, body=0).mean("sample")
    np.testing.assert_allclose(mean, [1.5 * np.exp(-RATE * 1.6), 0.0], atol=0.06)
    np.testing.assert_allclose(futures["duration"].values, dt[None])


def test_strides_need_long_trajectories_of_recorded_particles(trained, tmp_path):
    _, store = trained
    config = preset("particles", "quick", store.system.config).override({"training.strides": (1, 61)})
    with pytest.raises(ConfigError, match=r"a window at stride 61 takes 62 frames, .* set 'train' has 61"):
        check_trainable(store, config)
