"""Sampling: stock Predictive and the rollout agree in distribution; seeds, memory, and what users get wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pyro.infer import Predictive
from scipy import stats
from small import config, trainer

import epns_pyro
from epns_pyro.data import Store
from epns_pyro.errors import CheckpointError, ShapeError
from epns_pyro.inference import Simulator
from epns_pyro.inference.checkpoint import read_checkpoint, write_checkpoint
from epns_pyro.models import Feedback
from epns_pyro.symmetry import density_invariance_error


@pytest.fixture(scope="module")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    trainer(store, folder, config(steps=30, validate_every=30, checkpoint_every=30)).fit()
    return folder


@pytest.fixture
def sim(run: Path) -> Simulator:
    return epns_pyro.load(run)


def start(store: Store, n: int = 2) -> np.ndarray:
    return store.read("test", slice(0, n), stop=1)[:, 0]


def test_predictive_and_rollout_agree_in_distribution(sim: Simulator, store: Store) -> None:
    """Kolmogorov-Smirnov tests of every channel of one body; false-failure rate 1e-6 in all, seed fixed."""
    x0 = torch.as_tensor(start(store, 1), dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        sites = Predictive(sim.model, guide=sim.guide, num_samples=2000, parallel=True)(x0, horizon=3)
    stock = sites["x_3"][:, 0, 1].numpy()
    futures = sim.rollout(x0, steps=3, members=2000, seed=1).isel(trajectory=0, time=3, body=1)
    ours = np.concatenate([futures["position"].values, futures["velocity"].values], -1)
    assert min(stats.ks_2samp(stock[:, c], ours[:, c]).pvalue for c in range(6)) > 1e-6 / 6


def test_predictive_one_by_one_gives_the_same_sites(sim: Simulator, store: Store) -> None:
    x0 = torch.as_tensor(start(store), dtype=torch.float32)
    for parallel in (True, False):
        with torch.no_grad():
            sites = Predictive(sim.model, guide=sim.guide, num_samples=4, parallel=parallel)(x0, horizon=2)
        assert {name: tuple(v.shape) for name, v in sites.items() if name.endswith("_2")} == {
            "h_2": (4, 2, 3, 8 + 3 * 3),
            "x_2": (4, 2, 3, 6),
            "z_2": (4, 2, 3, 3),
        }


def test_the_ensemble_is_labelled(sim: Simulator, store: Store) -> None:
    futures = sim.rollout(start(store), steps=4, members=5, seed=0)
    assert dict(futures.sizes) == {"sample": 5, "trajectory": 2, "time": 5, "body": 3, "space": 3}
    np.testing.assert_allclose(futures["time"], 0.1 * np.arange(5))
    assert futures["position"].attrs["units"] == "L"
    x0 = start(store)
    np.testing.assert_allclose(futures["position"].isel(time=0, sample=3), sim.spec.get(x0, "position"), rtol=1e-6)
    assert futures["alive"].all()


def test_same_seed_same_numbers(sim: Simulator, store: Store) -> None:
    first, again, other = (sim.rollout(start(store), steps=3, members=4, seed=seed) for seed in (7, 7, 8))
    assert first.identical(again)
    assert not first.equals(other)


def test_a_chunk_bounds_what_the_networks_see(sim: Simulator, store: Store) -> None:
    seen = []
    sim.transition.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    futures = sim.rollout(start(store, 5), steps=2, members=7, seed=0, chunk=4)
    assert max(seen) <= 4
    assert futures.sizes["sample"] == 7
    assert np.isfinite(futures["position"]).all()


def test_mean_feedback_has_less_spread_than_samples(sim: Simulator, store: Store) -> None:
    spread = {
        mode: float(sim.rollout(start(store, 1), steps=1, members=400, seed=0, feedback=mode)["velocity"].isel(time=1).std("sample").mean())
        for mode in (Feedback.ANCESTRAL, Feedback.PUSHFORWARD)
    }
    assert spread[Feedback.PUSHFORWARD] < 0.9 * spread[Feedback.ANCESTRAL]


def test_a_member_that_diverges_is_dead_and_the_others_live(sim: Simulator, store: Store) -> None:
    emission = sim.transition.emission

    def diverging(x, h, z):
        law = emission(x, h, z)
        law.loc[0] = float("nan")
        return law

    sim.transition.emission = diverging
    futures = sim.rollout(start(store, 1), steps=3, members=4, seed=0)
    np.testing.assert_array_equal(futures["alive"].isel(trajectory=0).sum("time"), [1, 4, 4, 4])


def test_the_trained_distribution_is_equivariant(sim: Simulator, store: Store) -> None:
    sim.to(torch.float64)
    x = torch.as_tensor(store.read("test"))
    z = torch.randn(len(x), x.shape[1] - 1, 3, 3, dtype=torch.float64)
    found = density_invariance_error(sim.log_density, sim.spec, x[:, 0], x[:, 1:], z, sim.system.group)
    assert found.maximum <= 1e-9


def test_bounds(sim: Simulator, store: Store) -> None:
    x = store.read("test")
    elbo, iwae = sim.elbo(x[:, 0], x[:, 1:], num_samples=8), sim.iwae(x[:, 0], x[:, 1:], num_samples=64)
    assert elbo.shape == iwae.shape == (6,)
    assert iwae.mean() > elbo.mean() - 1.0


# -- what users get wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[..., :5], "expected .* channels mass 1, position 3, velocity 3"),
        (lambda x: x[0], r"expected \(batch, body, channel\)"),
        (lambda x: np.where(np.arange(7) == 2, np.nan, x), "NaN"),
        (lambda x: x.astype(int), "floating point"),
    ],
)
def test_states_that_do_not_fit(sim: Simulator, store: Store, spoil, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        sim.rollout(spoil(start(store)), steps=2, members=2)


def test_a_path_that_does_not_fit(sim: Simulator, store: Store) -> None:
    x = torch.as_tensor(store.read("test"), dtype=torch.float32)
    with pytest.raises(ShapeError, match="path"):
        sim.model(x[:, 0], x[:3, 1:])
    with pytest.raises(ShapeError, match="horizon"):
        sim.model(x[:, 0])
    with pytest.raises(ShapeError, match="at least one step"):
        sim.rollout(x[:, 0], steps=0, members=1)


# -- checkpoints -------------------------------------------------------------------------------------------------------------


def test_a_truncated_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    whole = (run / "best.ckpt").read_bytes()
    (tmp_path / "run").mkdir()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "run" / "best.ckpt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            epns_pyro.load(tmp_path / "run")


class Malicious:
    def __reduce__(self):
        return (open, ("proof.txt", "w"))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "epns-pyro checkpoint", "version": 1, "bad": Malicious()}, tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "best.ckpt")
    assert not (tmp_path / "proof.txt").exists()


def test_foreign_and_future_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of epns-pyro"):
        read_checkpoint(tmp_path / "foreign.ckpt")
    torch.save({"format": "epns-pyro checkpoint", "version": 99}, tmp_path / "future.ckpt")
    with pytest.raises(CheckpointError, match="version 99"):
        read_checkpoint(tmp_path / "future.ckpt")


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "a.ckpt", step=1)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "a.ckpt", step=2)
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["step"] == 1
