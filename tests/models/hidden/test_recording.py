"""What is inferred of hidden states, against a Kalman filter; and what is read off a recording."""

from __future__ import annotations

import kicked
import numpy as np
import pytest
import torch
from kicked import DT, SPREAD, Kicked

from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.models.hidden.recording import Recording
from epns_pyro.state import Field, StateSpec


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_last_state_is_that_of_the_filter(noise: float) -> None:
    rng = np.random.default_rng(0)
    y = kicked.simulate(noise, 5, 9, rng, missing=0.3)
    y[:, -1] = np.nan_to_num(y[:, -1])
    transition = Kicked(noise)
    recording = transition.recording
    frames = recording.read(torch.tensor(y))
    path = recording.infer(transition, frames).path()
    _, velocity = kicked.evidence(y, noise)
    np.testing.assert_allclose(path[:, -1, :, 1].detach(), velocity, rtol=1e-9, atol=1e-12)


def test_draws_of_a_path_have_the_exact_law() -> None:
    """Mean and covariance of whole paths against those of the joint Normal law of states and recordings."""
    rng = np.random.default_rng(1)
    noise, steps = 0.3, 4
    y = kicked.simulate(noise, 1, steps + 1, rng, bodies=1)
    y[0, 2] = np.nan
    transition = Kicked(noise, 1)
    frames = transition.recording.read(torch.tensor(y))
    law = transition.recording.infer(transition, frames)
    torch.manual_seed(0)
    draws = law.path(torch.randn(40_000, *frames.evidence.values.shape, dtype=torch.float64))[:, 0, :, 0, :, 0].flatten(1).detach().numpy()

    spread = [np.diag([noise**2, SPREAD**2])]
    powers = [np.eye(2)]
    for _ in range(steps):
        spread.append(kicked.DRIFT @ spread[-1] @ kicked.DRIFT.T + kicked.ROOT @ kicked.ROOT.T)
        powers.append(kicked.DRIFT @ powers[-1])
    covariance = np.block(
        [[spread[s] @ powers[t - s].T if s <= t else powers[s - t] @ spread[t] for t in range(steps + 1)] for s in range(steps + 1)]
    )
    mean = np.concatenate([power @ [y[0, 0, 0, 0], 0.0] for power in powers])
    seen = [2 * t for t in (1, 3, 4)]
    gain = covariance[:, seen] @ np.linalg.inv(covariance[np.ix_(seen, seen)] + noise**2 * np.eye(3))
    exact_mean = mean + gain @ (y[0, [1, 3, 4], 0, 0] - mean[seen])
    exact = covariance - gain @ covariance[seen]
    error = np.sqrt(exact.diagonal() / len(draws))
    assert (np.abs(draws.mean(0) - exact_mean) < 5 * error).all()
    scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
    assert (np.abs(np.cov(draws.T) - exact) < 5 * np.sqrt(2 / len(draws)) * scale).all()


def test_bodies_are_there_from_their_first_detection_to_their_last() -> None:
    y = kicked.simulate(0.1, 1, 6, np.random.default_rng(0), bodies=3)
    y[0, [0, 2], 0] = np.nan  # enters in frame 1, missed in frame 2
    y[0, 3:, 1] = np.nan  # leaves
    y[0, :, 2] = np.nan  # never comes
    frames = Kicked(0.1, 3).recording.read(torch.tensor(y))
    there = frames.evidence.there[0].T.int().tolist()
    assert there == [[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0] * 6]
    assert frames.evidence.first[0].T.int().tolist() == [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6]
    assert frames.scored[0].T.int().tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0], [0] * 6]
    forecast = Kicked(0.1, 3).recording.read(torch.tensor(y), forecast=True)
    assert forecast.evidence.there[0, -1].tolist() == [True, True, False]


def test_positions_are_followed_through_the_walls_of_a_box() -> None:
    spec = StateSpec(
        (Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position", hidden=True)), space=1, box=(10.0,)
    )
    recording = Recording(DataContext(spec, DT, {"position": 1.0, "velocity": 1.0}, (1,)))
    y = torch.tensor([9.0, torch.nan, 0.5, 1.5, 9.5]).reshape(1, 5, 1, 1)
    values = recording.read(torch.cat([y, y * 0], -1)).evidence.values[0, :, 0, 0, 0]
    torch.testing.assert_close(values[[0, 2, 3, 4]], torch.tensor([9.0, 10.5, 11.5, 9.5], dtype=torch.float64))


def test_dynamic_scalars_are_refused() -> None:
    spec = StateSpec((Field("position", "1o", translates=True, noise=0.1), Field("brightness")))
    with pytest.raises(ConfigError, match="dynamic scalar"):
        Recording(DataContext(spec, DT, {"position": 1.0, "brightness": 1.0}, (1,)))
