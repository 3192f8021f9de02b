"""Training of a model with a history: its windows, its validation, and that an interrupted run goes on the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small
import torch
import xarray as xr
from scipy.linalg import toeplitz

import epns_pyro
from epns_pyro.data import Store, open_store
from epns_pyro.errors import ConfigError
from epns_pyro.evaluation import evaluate
from epns_pyro.evaluation.likelihood import _transitions
from epns_pyro.inference.elbo import elbo_step
from epns_pyro.training.run import EvaluationConfig, RunConfig, RunFolder
from epns_pyro.training.trainable import check_trainable
from epns_pyro.training.validation import SEED, Validator, draw_transitions, draw_with_past

HISTORY = {"model.history.frames": 3, "model.history.network.width": 8, "model.history.network.layers": 1}


def config(**training: object) -> RunConfig:
    return small.config(**training).override(HISTORY)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small.make_store(tmp_path_factory.mktemp("history"))


def test_transitions_come_with_the_frames_before_them(store: Store) -> None:
    past, x, x_next = draw_with_past(store, "val", 60, 2)
    for a, b in zip((x, x_next), draw_transitions(store, "val", 60), strict=True):
        np.testing.assert_array_equal(a, b)
    recorded = store.read("val")
    spec, place = store.spec, store.spec.slice("position")
    for before, now in zip(past, x, strict=True):
        row, frame = (int(i[0]) for i in np.nonzero((recorded[:, :, 0, place] == now[0, place]).all(-1)))
        for back in (1, 2):
            if frame >= back:
                np.testing.assert_array_equal(before[-back], recorded[row, frame - back])
            else:
                assert np.isnan(spec.dynamic(before[-back])).all()
                np.testing.assert_array_equal(spec.get(before[-back], "mass"), spec.get(now, "mass"))


def test_validation_is_given_the_past(store: Store, tmp_path: Path) -> None:
    trainer = small.trainer(store, tmp_path / "run", config())
    transition, context = trainer.transition, trainer.context
    found = Validator(store, context, transition, 20, device=torch.device("cpu")).evaluate().numbers
    past, x, x_next = (torch.as_tensor(part, dtype=torch.float32) for part in draw_with_past(store, "val", 20, 2))
    with torch.no_grad():
        transition.history.vector_weights.normal_()
        assert Validator(store, context, transition, 20, device=torch.device("cpu")).evaluate().numbers.elbo != pytest.approx(found.elbo)
        torch.manual_seed(SEED)
        step = elbo_step(transition.step(transition.started(x, past)), x_next)
    again = Validator(store, context, transition, 20, device=torch.device("cpu")).evaluate().numbers
    assert again.log_likelihood == pytest.approx(float(step.log_likelihood.mean()), rel=1e-5)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(store: Store, tmp_path: Path) -> None:
    whole = small.trainer(store, tmp_path / "whole", config(steps=6, horizon={"end": 2}))
    whole.fit()
    parts = small.trainer(store, tmp_path / "parts", config(steps=6, horizon={"end": 2}))
    parts._stopping = lambda *_: parts._counters.step == 3
    with pytest.raises(KeyboardInterrupt):
        parts.fit()
    resumed = small.trainer(store, tmp_path / "parts", config(steps=6, horizon={"end": 2}))
    resumed.fit(resume=True)
    for name, value in whole.transition.state_dict().items():
        assert torch.equal(resumed.transition.state_dict()[name], value), name
    assert whole.transition.history.vector_weights.abs().max() > 0


def test_a_trained_simulator_takes_a_past(store: Store, tmp_path: Path) -> None:
    small.trainer(store, tmp_path / "run", config(steps=2)).fit()
    sim = epns_pyro.load(tmp_path / "run")
    assert sim.config.model.history.frames == 3
    x = store.read("test")
    past, x0, path = x[:, 2:4], x[:, 4], x[:, 5:]
    alone, given = (sim.rollout(x0, steps=2, members=3, seed=1, past=before) for before in (None, past))
    assert given["position"].shape == alone["position"].shape
    assert not np.allclose(given["position"], alone["position"])
    torch.manual_seed(0)
    with_past = sim.bounds(x0, path, past=past).elbo
    torch.manual_seed(0)
    assert not torch.allclose(with_past, sim.elbo(x0, path))
    with pytest.raises(epns_pyro.errors.ShapeError, match="the past: expected"):
        sim.rollout(x0, steps=2, members=3, past=past[:, :, :2])


def test_an_evaluation_judges_windows(store: Store, tmp_path: Path) -> None:
    """Every check measures a model with a history, and the likelihood is that given the frames before each transition."""
    small.trainer(store, tmp_path / "run", config(steps=2)).fit()
    sim = epns_pyro.load(tmp_path / "run")
    settings = EvaluationConfig(
        members=9, trajectories=4, importance_samples=2, likelihood_transitions=12, guide_transitions=10, guide_draws=9, recalibrate=False
    )
    found = evaluate(sim, store, RunFolder(tmp_path / "run"), settings).record
    assert found.likelihood is not None
    assert found.equivariance.maximum < 1e-9
    _, past, x, x_next = _transitions(store, settings, 2)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        elbo = float(sim.bounds(x, x_next[:, None], num_samples=2, past=past).elbo.mean())
    assert {row.key: row.value for row in found.likelihood.rows}["elbo"] == pytest.approx(elbo, rel=1e-5)


def test_a_window_longer_than_all_trajectories_is_refused(store: Store) -> None:
    check_trainable(store, small.config().override({"model.history.frames": 11}))
    with pytest.raises(ConfigError, match="window of 12 frames, but the set 'train' has trajectories of 11: choose at most 11"):
        check_trainable(store, small.config().override({"model.history.frames": 12}))


# -- what history is worth -------------------------------------------------------------------------------------------------

DT = 0.1


def step_covariances(tau: float, lags: int) -> np.ndarray:
    """Covariances of the steps dr of a walker with dr = u dt, du = -u / tau dt + s dW, var u = 1; of white steps for tau = 0."""
    if not tau:
        return DT * np.eye(lags + 1)[0]
    a = np.exp(-DT / tau)
    return np.array([2 * tau**2 * (DT / tau - 1 + a)] + [tau**2 * (1 - a) ** 2 * a**lag for lag in range(lags)])


@pytest.mark.slow
@pytest.mark.parametrize(("tau", "gain"), [(1.0, 1.044), (0.2, 0.375), (0.0, 0.0)])
def test_two_frames_gain_what_the_closed_form_says(tau: float, gain: float, tmp_path: Path) -> None:
    """Of walkers whose velocity is not recorded, per axis and transition; nothing where steps are independent."""
    covariances = step_covariances(tau, 20)
    rng = np.random.default_rng(0)
    steps = np.einsum("ts,nsbd->ntbd", np.linalg.cholesky(toeplitz(covariances)), rng.standard_normal((700, 21, 4, 2)))
    positions = 100 * rng.standard_normal((700, 1, 4, 2)) + np.pad(steps, [(0, 0), (1, 0), (0, 0), (0, 0)]).cumsum(1)
    path = tmp_path / "walkers.zarr"
    xr.Dataset({"position": (("trajectory", "time", "body", "space"), positions)}).to_zarr(path)
    fields = "fields:\n  - {name: position, irreps: 1o, translates: true}\nsplit: {train: 0.7, val: 0.1, test: 0.2}\n"
    Path(f"{path}.yaml").write_text(f"frame_dt: {DT}\nspace: 2\n{fields}")
    walkers = open_store(path)
    settings = {
        "training.steps": 300,
        "training.feedback": "teacher",
        "training.validation_transitions": 300,
        "model.history.frames": 2,
        "model.history.network": {"name": "estag", "width": 16, "vectors": 4, "layers": 1},
        "model.backbone": {"name": "vector", "width": 16, "vectors": 4, "layers": 1},
        "model.width": 16,
        "model.latent": 1,
        "model.linear_path": False,
        "model.emission": "diagonal",
        "model.integrator": None,
    }
    config = epns_pyro.preset("particles", data=walkers.system.config).override(settings)
    sim = epns_pyro.train(config, walkers, tmp_path / "run")
    x = walkers.read("test")
    found = sim.elbo(x[:, 1], x[:, 2:], past=x[:, :1]).numpy() / (20 * 4 * 2)
    moves = np.diff(walkers.spec.get(x.astype(np.float64), "position"), axis=1)
    weight = covariances[1] / covariances[0]
    variance = covariances[0] - weight * covariances[1]
    exact = (-0.5 * (moves[:, 1:] - weight * moves[:, :-1]) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)).mean((1, 2, 3))
    assert 0.5 * np.log(covariances[0] / variance) == pytest.approx(gain, abs=5e-4)
    assert exact.mean() - found.mean() < 0.01
