"""Is the state enough? A Markov process is blamed as rarely as promised; positions alone of an inertial particle are found out.

False-failure rate of a statistical test: 1e-6.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian, draw_path, pack
from pyro.distributions import Independent, Normal
from scipy import stats
from torch import Tensor

from epns_pyro.evaluation.checks.innovations import InnovationCheck, Innovations, Memory, _features, rank_scores, remembered
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.record import EvaluationRecord
from epns_pyro.models.transition import MarkovTransition
from epns_pyro.state import Field, StateSpec

POSITION = StateSpec((Field("position", "1o", translates=True),), space=2)
DT = 0.5


class Persistence(MarkovTransition):
    """x' = x + Normal noise of the right size."""

    spec, hidden_event_dim = POSITION, 2

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward_model(self, x: Tensor) -> Tensor:
        return x

    def prior(self, x: Tensor, h: Tensor) -> Independent:
        zeros = h.new_zeros(*h.shape[:-1], 1)
        return Normal(zeros, zeros + 1).to_event(2)

    def emission(self, x: Tensor, h: Tensor, z: Tensor) -> Independent:
        mean = h + 0 * z
        return Normal(mean, torch.full_like(mean, self.scale), validate_args=False).to_event(2)

    def posterior(self, x: Tensor, h: Tensor, x_next: Tensor) -> Independent:
        return self.prior(x, h)


def inertial(trajectories: int, steps: int, rng: np.random.Generator, *, memory: float) -> np.ndarray:
    """Positions of three bodies that keep `memory` of their velocity: (trajectory, time, body, space)."""
    velocity = rng.normal(size=(trajectories, 3, 2))
    position = [rng.normal(size=velocity.shape)]
    for _ in range(steps):
        velocity = memory * velocity + math.sqrt(1 - memory**2) * rng.normal(size=velocity.shape)
        position.append(position[-1] + DT * velocity)
    return np.stack(position, 1)


def judge(paths: np.ndarray, transition: MarkovTransition, seed: int) -> tuple[float, float, float]:
    scores = rank_scores(transition, torch.as_tensor(paths), seed=seed)
    return remembered(scores, _features(transition.spec, paths[:, :-1]), np.random.default_rng(seed))


def test_a_linear_gaussian_process_is_blamed_as_rarely_as_promised() -> None:
    """The model is the process; bodies share its noise, and 5% of the tests may fail."""
    transition, repetitions, alarms = LinearGaussian(), 60, 0
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        paths = np.stack([pack(draw_path(transition, 15, rng)) for _ in range(4)])
        alarms += judge(paths, transition, seed)[2] < 0.05
    assert alarms <= stats.binom.isf(1e-6, repetitions, 0.05)


def test_innovations_whose_size_changes_together_are_blamed_as_rarely_as_promised() -> None:
    """Calm and wild times of all bodies together are no memory of the direction."""
    repetitions, alarms = 200, 0
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        size = np.exp(np.cumsum(rng.normal(0, 0.3, (5, 20)), 1))[..., None, None]
        common = rng.normal(size=(5, 20, 1, 2)) + 0.3 * rng.normal(size=(5, 20, 3, 2))
        alarms += remembered(np.tanh(size * common), np.zeros((5, 20, 3, 1)), rng)[2] < 0.05
    assert alarms <= stats.binom.isf(1e-6, repetitions, 0.05)


def test_positions_alone_of_inertial_particles_are_found_out() -> None:
    correlation, error, p = judge(inertial(5, 20, np.random.default_rng(0), memory=0.9), Persistence(DT), 0)
    assert p < 0.001
    assert correlation > 0.5
    assert correlation > 5 * error
    correlation, error, p = judge(inertial(5, 20, np.random.default_rng(0), memory=0.0), Persistence(DT), 0)
    assert p > 0.01
    assert abs(correlation) < 0.2


def test_what_the_state_explains_is_no_memory() -> None:
    """Particles in a trap, and a model that knows nothing of it: the pull depends on the position alone."""
    rng, x = np.random.default_rng(1), [np.zeros((20, 2, 2))]
    for _ in range(40):
        x.append(0.7 * x[-1] + 0.3 * rng.normal(size=x[-1].shape))
    paths = np.stack(x[10:], 1)
    scores = rank_scores(Persistence(0.4), torch.as_tensor(paths), seed=0)
    assert remembered(scores, paths[:, :-1], rng)[2] > 0.01
    assert remembered(scores, np.zeros_like(paths[:, :-1]), rng)[2] < 0.01, "without the state it would look like memory"


def test_absent_bodies_have_no_say() -> None:
    paths = inertial(5, 20, np.random.default_rng(0), memory=0.9)
    paths[0, 8:12, 1] = np.nan
    scores = rank_scores(Persistence(DT), torch.as_tensor(paths), seed=0)
    assert np.isnan(scores[0, 7:12, 1]).all()
    assert np.isfinite(scores).sum() == scores.size - 10
    assert judge(paths, Persistence(DT), 0)[2] < 0.001
    assert np.isnan(judge(np.full_like(paths, np.nan), Persistence(DT), 0)).all()


@pytest.mark.parametrize(
    ("correlation", "error", "p", "value", "good"),
    [
        (0.6, 0.02, 0.001, "steps depend on the step before", False),
        (0.15, 0.01, 0.001, "nearly: a small dependence", None),
        (0.3, 0.03, 0.2, "no dependence found", True),
        (0.3, 0.2, 0.2, "too few data to say", None),
    ],
)
def test_the_headline_says_whether_the_state_is_enough(correlation: float, error: float, p: float, value: str, good: bool | None) -> None:
    check = InnovationCheck()
    record = Innovations(trajectories=5, steps=20, fields=(Memory(field="position", correlation=correlation, error=error, p_value=p),))
    (line,) = check.headline(record)
    assert (line.value, line.good) == (value, good)
    assert len(list(check.faults(record))) == (good is False)
    (section,) = check.sections(record, Evaluated(EvaluationRecord()))
    said = section.items[0].caption
    assert ("record velocities, declare them hidden, or use history" in said) is (good is False)
