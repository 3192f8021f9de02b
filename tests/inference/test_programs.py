"""Training, scoring and sampling of any pair of Pyro programs, on a pair whose likelihood is known and on the EPNS itself."""

from __future__ import annotations

import math
import os
import signal

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor, nn
from worlds import context, particles, trajectories

from epns_pyro.errors import CheckpointError, TrainingError
from epns_pyro.inference.elbo import path_bounds
from epns_pyro.models import EPNSGuide, EPNSModel
from epns_pyro.models.program import PathProgram, observed, trajectory_plate
from epns_pyro.state import Field, StateSpec
from epns_pyro.training import stock_pyro
from epns_pyro.training.schedules import HorizonSchedule

SPEC = StateSpec((Field("level"),))
STEPS, NOISE = 3, 0.5


class Shifted(PathProgram):
    """z ~ Normal(0, 1) of a trajectory, x_t ~ Normal(x_0 + drift t + z, NOISE): given x_0 a path is Normal with a known covariance."""

    def __init__(self) -> None:
        super().__init__()
        self.drift = nn.Parameter(torch.zeros(()))

    @property
    def spec(self) -> StateSpec:
        return SPEC

    def forward(self, x0: Tensor, path: Tensor | None = None, *, horizon: int | None = None) -> None:
        steps = self._start(x0, path, horizon)
        with trajectory_plate(SPEC, x0):
            z = pyro.sample("z", Normal(torch.zeros(1), 1.0).to_event(1))
            for t in range(1, steps + 1):
                law = Normal(x0 + self.drift * t + z[..., None], NOISE).to_event(2)
                pyro.sample(f"x_{t}", law, obs=None if path is None else observed(SPEC, path, t))


class ShiftedGuide(Shifted):
    """Normal(loc mean(path - x_0), scale), as wide as one likes."""

    def __init__(self, loc: float, scale: float) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.tensor(loc)), nn.Parameter(torch.tensor(scale))

    def forward(self, x0: Tensor, path: Tensor | None = None, *, horizon: int | None = None) -> None:
        steps = self._start(x0, path, horizon)
        if path is not None:
            with trajectory_plate(SPEC, x0):
                seen = (path - x0[:, None]).mean(1)[..., 0] - self.drift * (steps + 1) / 2
                pyro.sample("z", Normal(self.loc * seen, self.scale.exp()).to_event(1))


def exact(path: Tensor, x0: Tensor) -> Tensor:
    """log p(x_{1:T} | x_0) of a drift of zero."""
    covariance = torch.ones(STEPS, STEPS) + NOISE**2 * torch.eye(STEPS)
    return torch.distributions.MultivariateNormal(torch.zeros(STEPS), covariance).log_prob((path - x0[:, None])[..., 0, 0])


@pytest.fixture
def paths() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(40, 1, 1, generator=generator)
    z, noise = torch.randn(40, 1, 1, 1, generator=generator), torch.randn(40, STEPS, 1, 1, generator=generator)
    return x0, x0[:, None] + z + NOISE * noise


def test_bounds_are_below_the_likelihood_and_meet_it_with_the_exact_guide(paths):
    x0, path = paths
    precision = 1 + STEPS / NOISE**2
    best = ShiftedGuide(STEPS / NOISE**2 / precision, -0.5 * math.log(precision))
    torch.manual_seed(0)
    tight = stock_pyro.program_bounds(Shifted(), best, x0, path, num_samples=2)
    torch.testing.assert_close(tight.elbo, exact(path, x0))
    torch.testing.assert_close(tight.iwae, exact(path, x0))
    loose = stock_pyro.program_bounds(Shifted(), ShiftedGuide(0.5, 0.0), x0, path, num_samples=4000)
    assert (loose.elbo < exact(path, x0)).all()
    torch.testing.assert_close(loose.iwae.mean(), exact(path, x0).mean(), atol=0.1, rtol=0)


def test_bounds_of_the_epns_are_those_of_its_own_road():
    """400 draws of the ELBO of the same two paths on both roads: means within 5 standard errors (p < 1e-4 per path)."""
    about = context("celestial")
    transition = particles(about)
    with torch.no_grad():
        transition.innovation_to_latents.mul_(4)  # a guide far from the prior
    x0, path = (x.repeat(200, *(1,) * (x.ndim - 1)) for x in trajectories(about, batch=2, steps=3))
    torch.manual_seed(0)
    ours = stock_pyro.program_bounds(EPNSModel(transition), EPNSGuide(transition), x0, path, num_samples=2).elbo.reshape(200, 2)
    bounds = path_bounds(transition, x0, path, num_samples=2)
    theirs = bounds.elbo.reshape(200, 2)
    error = ((ours.var(0) + theirs.var(0)) / 200).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    assert (0.1 * bounds.kl.reshape(200, 2).mean(0) > 10 * error).all(), "a KL that is wrong by a tenth would not be seen"


class Recorded:
    """Windows with the interface of `Windows`."""

    def __init__(self, x0: Tensor, path: Tensor) -> None:
        self.x0, self.path, self.length, self.lengths = x0, path, 1, []

    def draw(self) -> tuple[Tensor, Tensor]:
        self.lengths.append(self.length)
        return self.x0, self.path[:, : self.length]


def test_training_finds_the_best_guide_by_windows_that_grow(paths, caplog):
    x0, path = paths
    torch.manual_seed(0)
    model, guide, windows = Shifted(), ShiftedGuide(0.0, 0.0), Recorded(x0, path)
    horizon = HorizonSchedule(start=1, end=STEPS, begin=0.2, finish=0.5)
    with caplog.at_level("INFO"):
        reached = stock_pyro.fit(model, guide, windows, steps=400, learning_rate=0.05, horizon=horizon)
    assert sorted(set(windows.lengths)) == [1, 2, 3]
    assert windows.lengths == sorted(windows.lengths)
    assert abs(reached * STEPS - float(exact(path, x0).mean())) < 0.2
    precision = 1 + STEPS / NOISE**2
    assert abs(float(guide.scale) + 0.5 * math.log(precision)) < 0.15
    assert "step 400 of 400: ELBO" in caplog.text


class Shuffled(Recorded):
    """Windows in random order, which can be continued."""

    def __init__(self, x0: Tensor, path: Tensor) -> None:
        super().__init__(x0, path)
        self.rng = np.random.default_rng(0)

    def draw(self) -> tuple[Tensor, Tensor]:
        rows = self.rng.permutation(len(self.x0))[:20]
        return self.x0[rows], self.path[rows, : self.length]

    def state_dict(self) -> dict:
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict) -> None:
        self.rng.bit_generator.state = state["rng"]


def test_interrupted_and_resumed_equals_uninterrupted(paths, tmp_path):
    """SIGTERM in the middle of training: the state is saved, and training goes on from there."""
    horizon = HorizonSchedule(start=1, end=STEPS, begin=0.2, finish=0.5)

    def trained(name: str, stops: tuple[int, ...] = ()) -> tuple[list[Tensor], int]:
        saved, interrupts, pending = stock_pyro.Saved(tmp_path / name, every=7), 0, list(stops)

        def stop(step: int, steps: int) -> None:
            if pending and step == pending[0]:
                os.kill(os.getpid(), signal.SIGTERM)
                pending.pop(0)

        while True:
            torch.manual_seed(0)
            model, guide = Shifted(), ShiftedGuide(0.0, 0.0)
            settings = {"steps": 30, "learning_rate": 0.05, "horizon": horizon, "log_every": 1}
            try:
                stock_pyro.fit(model, guide, Shuffled(*paths), **settings, saved=saved, on_progress=stop)
                return list(guide.parameters()), interrupts
            except KeyboardInterrupt:
                interrupts += 1

    whole, _ = trained("whole")
    parts, interrupts = trained("parts", stops=(4, 11, 20))
    assert interrupts == 3
    assert all(map(torch.equal, whole, parts))
    (tmp_path / "whole").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"not a readable checkpoint .* remove it to train again"):
        trained("whole")


def test_training_that_cannot_work_says_so(paths):
    x0, path = paths
    windows = Recorded(x0, path * float("nan"))
    with pytest.raises(TrainingError, match="not finite in 2 of 2 steps: lower the learning rate"):
        stock_pyro.fit(Shifted(), ShiftedGuide(0.0, 0.0), windows, steps=9, learning_rate=0.1, horizon=HorizonSchedule())


def test_forecasts_start_at_the_state_and_come_in_blocks(paths):
    x0, _ = paths
    blocks = list(stock_pyro.sample_futures(Shifted(), ShiftedGuide(0.0, 0.0), x0, steps=2, members=5, seed=3, block_size=80))
    assert [tuple(b.shape) for b in blocks] == [(2, 40, 3, 1, 1), (2, 40, 3, 1, 1), (1, 40, 3, 1, 1)]
    futures = torch.cat(blocks)
    assert torch.equal(futures[:, :, 0], x0.expand(5, 40, 1, 1))
    again = torch.cat(list(stock_pyro.sample_futures(Shifted(), ShiftedGuide(0.0, 0.0), x0, steps=2, members=5, seed=3, block_size=80)))
    assert torch.equal(futures, again)
    change = (futures[:, :, 1] - futures[:, :, 0]).flatten().numpy()  # 200 draws of Normal(0, 1.25): 5 standard errors
    assert abs(np.var(change) - 1.25) < 5 * 1.25 * (2 / 200) ** 0.5
