"""Sampling: stock Predictive and the rollout agree in distribution; labels, seeds, memory, feedback, and members that diverge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyro.infer import Predictive
from scipy import stats

from epns_pyro.backbones import Features
from epns_pyro.data import Store
from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.models import Feedback
from epns_pyro.models.transition import Carry, Step
from epns_pyro.simulator import Simulator


def test_predictive_and_rollout_agree_in_distribution(sim: Simulator, x0: np.ndarray) -> None:
    """Kolmogorov-Smirnov tests of 6 channels of one body and its squared speed; false-failure rate 1e-6 in all, seed fixed."""
    x0 = torch.as_tensor(x0[:1], dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        sites = Predictive(sim.model, guide=sim.guide, num_samples=2000, parallel=True)(x0, horizon=3)
    stock = sites["x_3"][:, 0, 1].numpy()
    futures = sim.rollout(x0, steps=3, members=2000, seed=1).isel(trajectory=0, time=3, body=1)
    ours = np.concatenate([futures["position"].values, futures["velocity"].values], -1)
    pairs = [(stock[:, c], ours[:, c]) for c in range(6)] + [((stock[:, 3:] ** 2).sum(-1), (ours[:, 3:] ** 2).sum(-1))]
    assert min(stats.ks_2samp(a, b).pvalue for a, b in pairs) > 1e-6 / 7


def test_predictive_one_by_one_gives_the_same_sites(sim: Simulator, x0: np.ndarray) -> None:
    x0 = torch.as_tensor(x0, dtype=torch.float32)
    for parallel in (True, False):
        with torch.no_grad():
            sites = Predictive(sim.model, guide=sim.guide, num_samples=4, parallel=parallel)(x0, horizon=2)
        assert {name: tuple(v.shape) for name, v in sites.items() if name.endswith("_2")} == {
            "h_2": (4, 2, 3, 8 + 3 * 3 + 6 + 1),
            "x_2": (4, 2, 3, 6),
            "z_2": (4, 2, 3, 3),
        }


def test_the_ensemble_is_labelled(sim: Simulator, x0: np.ndarray) -> None:
    futures = sim.rollout(x0, steps=4, members=5, seed=0)
    moving = ("sample", "trajectory", "time")
    assert {name: variable.dims for name, variable in futures.data_vars.items()} == {
        "mass": ("trajectory", "body"),
        "position": (*moving, "body", "space"),
        "velocity": (*moving, "body", "space"),
        "alive": moving,
    }
    assert dict(futures.sizes) == {"sample": 5, "trajectory": 2, "time": 5, "body": 3, "space": 3}
    np.testing.assert_allclose(futures["time"], 0.1 * np.arange(5))
    for name in ("mass", "position", "velocity"):
        assert futures[name].attrs["units"] == sim.spec[name].unit != ""
    assert futures["alive"].dtype == bool
    assert futures["alive"].all()
    np.testing.assert_allclose(futures["mass"], sim.spec.get(x0, "mass"), rtol=1e-6)
    for name in ("position", "velocity"):
        expected = np.broadcast_to(sim.spec.get(x0, name), (5, 2, 3, 3))
        np.testing.assert_allclose(futures[name].isel(time=0), expected, rtol=1e-6)
        assert (futures[name].diff("time") != 0).all()


def test_same_seed_same_numbers(sim: Simulator, x0: np.ndarray) -> None:
    state = torch.get_rng_state()
    first, again, other = (sim.rollout(x0, steps=3, members=4, seed=seed) for seed in (7, 7, 8))
    assert first.identical(again)
    assert (first["velocity"] != other["velocity"]).isel(time=slice(1, None)).all()
    assert torch.equal(torch.get_rng_state(), state)  # the generator of the script is left alone


def test_members_and_trajectories_have_noise_of_their_own(sim: Simulator, x0: np.ndarray) -> None:
    """Within a block and across blocks."""
    futures = sim.rollout(np.repeat(x0[:1], 4, axis=0), steps=1, members=6, seed=0, block_size=2)
    velocity = futures["velocity"].isel(time=1).values.reshape(24, -1)
    assert len(np.unique(velocity, axis=0)) == 24


@pytest.mark.parametrize("block_size", [1, 4, 12, 35, 1000])
def test_the_block_size_bounds_what_the_networks_see(sim: Simulator, store: Store, block_size: int) -> None:
    seen = []
    sim.transition.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    x0 = store.read("test", slice(0, 5), stop=1)[:, 0]
    futures = sim.rollout(x0, steps=2, members=7, seed=0, block_size=block_size)
    assert max(seen) <= block_size
    assert 2 * max(seen) >= min(35, block_size)  # and a block is made use of
    assert sum(seen) == 2 * 5 * 7  # every state once, however it is cut
    assert futures.sizes["sample"] == 7
    assert np.isfinite(futures["position"]).all()
    np.testing.assert_allclose(futures["position"].isel(time=0, sample=6), sim.spec.get(x0, "position"), rtol=1e-6)


def test_blocks_put_together_are_the_rollout(sim: Simulator, x0: np.ndarray) -> None:
    settings = {"steps": 2, "members": 5, "seed": 3, "block_size": 4}
    futures = sim.rollout(x0, **settings)
    covered = np.zeros((5, 2), int)
    for block in sim.rollout_blocks(x0, **settings):
        covered[block.samples, block.trajectories] += 1
        expected = futures["velocity"].isel(sample=block.samples, trajectory=block.trajectories)
        np.testing.assert_array_equal(sim.spec.get(block.states, "velocity"), expected)
    assert (covered == 1).all()


def test_mean_feedback_feeds_back_the_mean(sim: Simulator, x0: np.ndarray) -> None:
    def sampled(x: np.ndarray | torch.Tensor, feedback: Feedback, members: int) -> np.ndarray:
        futures = sim.rollout(x, steps=1, members=members, seed=0, feedback=feedback).isel(time=1, trajectory=0)
        return np.concatenate([futures["position"], futures["velocity"]], -1)

    samples, means = (sampled(x0[:1], mode, 400) for mode in (Feedback.ANCESTRAL, Feedback.PUSHFORWARD))
    assert means.std(0)[..., 3:].mean() < 0.9 * samples.std(0)[..., 3:].mean()

    transition, x = sim.transition, torch.as_tensor(x0[:1], dtype=torch.float32)
    mean = transition.at(x).emission(torch.zeros(1, 3, 3)).mean.detach().numpy()
    step = transition.step

    def without_latents(carry: Carry) -> Step:
        made = step(carry)
        emission = made.emission
        made.emission = lambda z: emission(torch.zeros_like(z))  # the same mean for all members
        return made

    transition.step = without_latents
    np.testing.assert_allclose(sampled(x, Feedback.PUSHFORWARD, 3), np.repeat(mean, 3, axis=0), rtol=1e-5, atol=1e-6)


def test_a_member_that_diverges_is_dead_and_the_others_live(sim: Simulator, x0: np.ndarray) -> None:
    step, whole = sim.transition.step, sim.rollout(x0[:1], steps=3, members=4, seed=0)
    steps = iter(range(3))

    def diverging(carry):
        made = step(carry)
        emission = made.emission

        def law(z):
            law = emission(z)
            if next(steps) == 1:
                law.base_dist.loc[2] = float("nan")
            return law

        made.emission = law
        return made

    sim.transition.step = diverging
    futures = sim.rollout(x0[:1], steps=3, members=4, seed=0).isel(trajectory=0)
    np.testing.assert_array_equal(futures["alive"], [[True] * 4, [True] * 4, [True, True, False, False], [True] * 4])
    np.testing.assert_array_equal(np.isnan(futures["position"]).any(("body", "space")), ~futures["alive"])
    others = [0, 1, 3]
    np.testing.assert_array_equal(futures["position"].isel(sample=others), whole["position"].isel(sample=others, trajectory=0))


def test_networks_that_overflow_for_one_member_end_that_member_alone(sim: Simulator, x0: np.ndarray) -> None:
    """Then prior and emission have parameters that are not finite, at which PyTorch's Normal refuses to draw."""
    steps = iter(range(3))

    def overflowing(network, seen, hidden: Features) -> Features:
        if next(steps) == 1:
            hidden.scalars[2] = float("nan")
        return hidden

    sim.transition.encoder.register_forward_hook(overflowing)
    alive = sim.rollout(x0[:1], steps=3, members=4, seed=0)["alive"].isel(trajectory=0)
    np.testing.assert_array_equal(alive, [[True] * 4, [True] * 4, [True, True, False, False], [True] * 4])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps: expected at least 1, found 0"),
        ({"members": 0}, "members: expected at least 1, found 0"),
        ({"block_size": 0}, "block_size: expected at least 1, found 0"),
        ({"steps": 2.0}, "steps: expected a whole number, found 2.0"),
        ({"seed": -1}, r"seed: expected a whole number from 0 to 2\^63 - 1, found -1"),
        ({"seed": None}, "seed: expected a whole number .*, found None"),
    ],
)
def test_rollouts_that_make_no_sense(sim: Simulator, x0: np.ndarray, settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sim.rollout(x0, **({"steps": 2, "members": 2} | settings))


def test_programs_refuse_paths_and_horizons_that_do_not_fit(sim: Simulator, store: Store) -> None:
    x = torch.as_tensor(store.read("test"), dtype=torch.float32)
    with pytest.raises(ShapeError, match="path"):
        sim.model(x[:, 0], x[:3, 1:])
    with pytest.raises(ShapeError, match="horizon"):
        sim.model(x[:, 0])
