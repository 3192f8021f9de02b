"""References for particles against a process whose law is known: velocities that are an autoregression of order two."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from epns_pyro.data import Store, open_store
from epns_pyro.evaluation.linear_forecasters import Autoregression, Persistence

DT, FIRST, SECOND, SIGMA = 0.4, 0.7, 0.25, 0.1


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Walkers with v' = 0.7 v + 0.25 v_1 + 0.1 e, of which one in four leaves half way."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("walkers")
    velocity = np.zeros((60, 22, 4, 2))
    velocity[:, :2] = rng.normal(size=(60, 2, 4, 2))
    for t in range(2, 22):
        velocity[:, t] = FIRST * velocity[:, t - 1] + SECOND * velocity[:, t - 2] + SIGMA * rng.normal(size=(60, 4, 2))
    position = np.cumsum(DT * velocity, axis=1)
    position[:, 11:, 0] = np.nan
    xr.Dataset({"position": (("trajectory", "time", "body", "space"), position)}).to_zarr(folder / "w.zarr", consolidated=False)
    (folder / "w.zarr.yaml").write_text(
        f"frame_dt: {DT}\nspace: 2\nhistory: 2\nfields:\n  - {{name: position, irreps: 1o, translates: true, unit: m}}\n"
    )
    return open_store(folder / "w.zarr")


def test_the_coefficients_and_the_noise_are_found(store):
    found = Autoregression.fit(store, store.context())
    (weights,) = found.weights.values()
    rows = 48 * 18 * 3.5 * 2
    np.testing.assert_allclose(weights, [FIRST - 1, SECOND], atol=5 / np.sqrt(rows))
    assert found.scales["velocity"] == pytest.approx(SIGMA, rel=5 / np.sqrt(2 * rows))


def test_the_density_is_that_of_the_bodies_that_are_there(store):
    found, spec = Autoregression.fit(store, store.context()), store.spec
    x = store.read("test")
    mean, scale = found.law(x[:, 9])
    by_body = stats.norm(mean["velocity"], scale["velocity"]).logpdf(spec.get(x[:, 10], "velocity")).sum(-1)
    both = ~np.isnan(spec.get(x[:, 10], "position")).any(-1)
    assert both.any()
    assert not both.all()
    np.testing.assert_allclose(found.log_prob(x[:, 9], x[:, 10]), np.where(both, by_body, 0.0).sum(-1))


def test_futures_have_the_law_of_the_process(store):
    """Spread of the velocity after three steps against the closed form; 4,000 futures, 5 standard errors."""
    found, spec = Autoregression.fit(store, store.context()), store.spec
    x0 = store.read("test")[:1, 5]
    futures = found.sample(x0, 3, 4000, seed=0)
    velocity = spec.get(futures, "velocity")[:, 0, 3]
    a, b = found.weights["velocity"] + [1.0, 0.0]
    responses = [1.0, a, a * a + b]
    expected = found.scales["velocity"] * np.sqrt(np.sum(np.square(responses)))
    np.testing.assert_allclose(velocity.std(0), expected, rtol=5 / np.sqrt(2 * 4000))
    step = spec.get(futures[:, :, 1:], "position") - spec.get(futures[:, :, :-1], "position")
    np.testing.assert_allclose(step, DT * spec.get(futures[:, :, 1:], "velocity"), atol=1e-12)


def test_what_remembers_more_scores_higher(store):
    """Paired over the transitions of the test set, 4 standard errors."""
    x = store.read("test")[:, 1:]
    pairs = x[:, :-1].reshape(-1, *x.shape[2:]), x[:, 1:].reshape(-1, *x.shape[2:])
    naive, better = (one.log_prob(*pairs) for one in (Persistence(store.context()), Autoregression.fit(store, store.context())))
    lead = better - naive
    assert lead.mean() > 4 * lead.std() / np.sqrt(len(lead))
