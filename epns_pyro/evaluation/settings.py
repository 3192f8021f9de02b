"""How much an evaluation looks at."""

from __future__ import annotations

import pydantic

from epns_pyro.config import Config

Positive = pydantic.PositiveInt


class EvaluationConfig(Config):
    """Sizes of an evaluation; the defaults take a few minutes on two CPU cores for a quick celestial run.

    Parameters
    ----------
    members : int
        Members of the ensemble of every held-out trajectory; with 39, 99, ... intervals of 50, 80, 90 and 95% are exact.
    trajectories : int
        Held-out trajectories, of the test set and, for recalibration, of the validation set.
    initial_members : int
        Runs from each initial state of the set `same_init`, of model and truth alike.
    importance_samples : int
        Of the IWAE bound.
    likelihood_transitions : int
        Test transitions that are scored.
    guide_transitions, guide_draws : int
        Of the simulation-based calibration of the guide.
    long_trajectories : int
        Of the set `long`, one member each.
    piece : int
        Trajectories evaluated at a time: bounds the memory.
    seed : int
    """

    members: Positive = 39
    trajectories: Positive = 100
    initial_members: Positive = 200
    importance_samples: Positive = 64
    likelihood_transitions: Positive = 2000
    guide_transitions: Positive = 200
    guide_draws: Positive = 99
    long_trajectories: Positive = 20
    piece: Positive = 20
    seed: int = 0
