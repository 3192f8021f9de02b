"""The law of steps of a length in a direction: against sums over a grid, its limits, and bodies that run and tumble."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.distributions import MultivariateNormal, VonMises
from worlds import context, particles, trajectories

import epns_pyro
from epns_pyro.data import open_store
from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies import turning
from epns_pyro.models.bodies.mixture import MixtureConfig
from epns_pyro.models.normal import unmasked
from epns_pyro.symmetry import Euclidean, density_invariance_error

TURNS = {"name": "mixture", "turns": 3}
WORLD = {1: "line", 2: "still plane", 3: "positions alone"}
FOCUS = [1e-3, 0.5, 5.0, 200.0]


def numbers(count: int, *values: float) -> list[Tensor]:
    return [torch.full((count,), value, dtype=torch.float64) for value in values]


def first_axis(count: int, space: int) -> Tensor:
    return torch.eye(space, dtype=torch.float64)[0].expand(count, space)


def grid(space: int) -> tuple[Tensor, float]:
    """Points of a grid from -4 to 4, and the volume of a cell."""
    line = torch.linspace(-4, 4, {1: 4001, 2: 801, 3: 161}[space], dtype=torch.float64)
    points = torch.stack(torch.meshgrid(*[line] * space, indexing="ij"), -1).reshape(-1, space)
    return points, float(line[1] - line[0]) ** space


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("kappa", FOCUS)
def test_the_density_integrates_to_one_and_has_the_stated_moments(space: int, kappa: float) -> None:
    points, cell = grid(space)
    axis, about = first_axis(len(points), space), numbers(len(points), 1.3, kappa, 0.3)
    density = cell * turning.log_density(points, axis, *about).exp()
    mean, variance = turning.moments(axis[:1], *(value[:1] for value in about))
    assert float(density.sum()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close((density[:, None] * points).sum(0), mean[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((density[:, None] * (points - mean).square()).sum(0), variance[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("kappa", FOCUS)
def test_draws_have_the_density(space: int, kappa: float) -> None:
    """Shares of draws in shells and cones, within five standard errors of the sums of the density over them."""
    torch.manual_seed(0)
    count = 100_000
    draws = turning.draw(first_axis(count, space), *numbers(count, 1.3, kappa, 0.3))
    points, cell = grid(space)
    density = cell * turning.log_density(points, first_axis(len(points), space), *numbers(len(points), 1.3, kappa, 0.3)).exp()

    def region(x: Tensor) -> Tensor:
        length = x.norm(dim=-1).clamp_min(1e-9)
        return 4 * torch.bucketize(length, torch.tensor([0.9, 1.3, 1.7], dtype=torch.float64)) + (
            2 * (1 + x[:, 0] / length)
        ).long().clamp_max(3)

    expected = torch.zeros(16, dtype=torch.float64).index_add_(0, region(points), density)
    found = torch.bincount(region(draws), minlength=16) / count
    error = (expected * (1 - expected) / count).sqrt()
    assert ((found - expected).abs() < 5 * error + 2e-3).all()  # the last term: cells on the border of a region


def test_without_turns_it_is_a_normal_law_and_without_a_direction_a_sphere() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 3, dtype=torch.float64)
    straight = turning.log_density(x, first_axis(50, 3), *numbers(50, 1.3, 1e9, 0.4))
    normal = MultivariateNormal(1.3 * first_axis(1, 3)[0], 0.16 * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(straight, normal.log_prob(x), rtol=1e-6, atol=1e-6)
    around = turning.log_density(x, first_axis(50, 3), *numbers(50, 1.3, 1e-9, 0.4))
    torch.testing.assert_close(
        around, turning.log_density(x.flip(-1), first_axis(50, 3), *numbers(50, 1.3, 1e-9, 0.4)), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("space", [1, 2, 3])
def test_single_precision_is_enough_for_narrow_rings(space: int) -> None:
    torch.manual_seed(0)
    axis = first_axis(100, space)
    about = numbers(100, 4.0, 300.0, 0.01)
    x = turning.draw(axis, *about)
    exact = turning.log_density(x, axis, *about)
    single = turning.log_density(x.float(), axis.float(), *(value.float() for value in about))
    assert (single - exact).abs().max() < 2e-3


@pytest.mark.parametrize("world", ["still plane", "positions alone"])
def test_the_law_turns_with_the_bodies_at_weights_of_order_one(world: str) -> None:
    about = context(world)
    transition = particles(about, emission=TURNS)
    x0, path = trajectories(about)
    z = torch.randn(*path.shape[:2], *transition.at(x0).prior.event_shape, dtype=torch.float64)

    def density(x0: Tensor, path: Tensor, z: Tensor) -> Tensor:
        step = transition.at(x0)
        law = step.emission(z[:, 0])
        assert isinstance(unmasked(law), turning.Turning)
        return law.log_prob(about.spec.dynamic(path[:, 0])).sum(-1) if law.batch_shape[1:] else law.log_prob(about.spec.dynamic(path[:, 0]))

    assert density_invariance_error(density, about.spec, x0, path, z, Euclidean.of(about.spec), samples=5, seed=0).maximum < 1e-9


def test_moments_of_the_whole_law_are_those_of_its_draws() -> None:
    about = context("still plane")
    law = unmasked(particles(about, emission=TURNS).at(trajectories(about)[0]).emission(torch.zeros(3, 4, 3, dtype=torch.float64)))
    torch.manual_seed(0)
    draws = law.sample((40_000,))
    error = (law.variance / len(draws)).sqrt()
    assert ((draws.mean(0) - law.mean).abs() < 6 * error).all()
    torch.testing.assert_close(draws.var(0), law.variance, rtol=0.15, atol=0.0)
    wide = law.expand((5, *law.batch_shape))
    torch.testing.assert_close(wide.log_prob(draws[:5]), law.log_prob(draws[:5]))


def test_turns_are_refused_for_states_that_make_no_steps() -> None:
    spec = context("celestial").spec
    with pytest.raises(ConfigError, match="turns are for states of which only steps are predicted, found position, velocity"):
        MixtureConfig(turns=2).parameters(spec)


# -- run and tumble ----------------------------------------------------------------------------------------------------------

TUMBLE, SPEED, BLUR, STRAIGHT = 0.1, 2.0, 0.1, 60.0


def run_and_tumble(trajectories: int, frames: int) -> xr.Dataset:
    """One swimmer in the plane: the direction of a step is von Mises about that of the last one, or, now and then, any."""
    torch.manual_seed(0)
    angle, place, path = torch.zeros(trajectories), torch.zeros(trajectories, 2), []
    for _ in range(frames):
        turned = torch.where(
            torch.rand(trajectories) < TUMBLE, 2 * math.pi * torch.rand(trajectories), VonMises(angle, torch.tensor(STRAIGHT)).sample()
        )
        step = SPEED * torch.stack([turned.cos(), turned.sin()], -1) + BLUR * torch.randn(trajectories, 2)
        place, angle = place + step, torch.atan2(step[:, 1], step[:, 0])
        path.append(place)
    positions = torch.stack(path, 1)[:, :, None].numpy()
    return xr.Dataset({"position": (("trajectory", "time", "body", "space"), positions)}, coords={"time": np.arange(frames) * 1.0})


@pytest.mark.slow
def test_one_who_runs_and_tumbles_is_learned_to_the_limit(tmp_path) -> None:
    """Within 0.1 nats per step of the true law, which a mixture of widths alone misses by more than half a nat."""
    path = tmp_path / "swimmer.zarr"
    run_and_tumble(300, 21).to_zarr(path, consolidated=False, zarr_format=3)
    (tmp_path / "swimmer.zarr.yaml").write_text(
        "fields:\n"
        "  - {name: position, irreps: 1o, translates: true}\n"
        "  - {name: velocity, irreps: 1o, rate_of: position, differences: true}\n"
        "space: 2\nframe_dt: 1.0\n"
    )
    store = open_store(path)
    config = epns_pyro.preset("particles", data=store.system.config)
    assert config.model.emission.turns > 0
    x = torch.as_tensor(store.read("test"))
    v = x[..., store.spec.slice("velocity")][:, :, 0].double()
    v0, v1 = v[:, :-1], v[:, 1:]
    axis = v0 / v0.norm(dim=-1, keepdim=True)
    laws = [
        turning.log_density(v1, axis, *(torch.tensor(a).double().expand(v1.shape[:-1]) for a in (SPEED, kappa, BLUR)))
        for kappa in (STRAIGHT, 1e-3)
    ]
    truth = float(torch.logaddexp(laws[0] + math.log(1 - TUMBLE), laws[1] + math.log(TUMBLE)).mean())
    quick = {"training.steps": 600, "training.batch": 64, "training.validate_every": 100}
    elbo = {}
    for turns in (config.model.emission.turns, 0):
        sim = epns_pyro.train(config.override(quick | {"model.emission.turns": turns}), store, tmp_path / f"run{turns}")
        elbo[turns] = float(sim.elbo(x[:, 0], x[:, 1:]).mean()) / (x.shape[1] - 1)
    best = elbo.pop(config.model.emission.turns)
    assert truth - best < 0.1
    assert best - elbo[0] > 0.5
