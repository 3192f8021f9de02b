"""Filtering and smoothing of a model whose state is a window: against a Kalman filter of the window, with its past known and without."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from epns_pyro.conditioning.filtering import filter_states, smooth_paths
from epns_pyro.conditioning.observations import Observations
from epns_pyro.conditioning.problem import Proposal
from epns_pyro.context import DataContext
from epns_pyro.models.bodies.particles import ParticlesConfig, ParticleTransition
from epns_pyro.state import Field, StateSpec

SPEC = StateSpec((Field("position", "1o", translates=True),), space=2)
BODIES, STEPS, NOISE = 2, 8, 2.0
CONTEXT = DataContext(SPEC, 1.0, {"position": 1.0}, (BODIES,))
# Weights of the two last changes, the older first: nothing known, one change known, both known.
WEIGHTS = np.array([[0.0, 0.0], [0.0, 0.6], [-0.3, 0.8]])


@pytest.fixture(scope="module")
def transition() -> ParticleTransition:
    """x' = x + autoregression of the changes in the window + e."""
    small = {"width": 8, "vectors": 3, "layers": 1}
    history = {"frames": 3, "network": {"name": "estag"} | small, "scalars": 2, "vectors": 2}
    config = {"history": history, "integrator": None, "latent": 1, "linear_path": False, "width": 8}
    config["backbone"] = {"name": "vector"} | small
    torch.manual_seed(0)
    made = ParticlesConfig.parse(config).build(CONTEXT).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        made.history.vector_weights[:, 0] = torch.from_numpy(WEIGHTS)
    return made


def noise(transition: ParticleTransition) -> float:
    """Standard deviation of e."""
    step = transition.at(torch.zeros(BODIES, 2, dtype=torch.float64))
    return step.emission(step.prior.mean).variance.sqrt().max().item()


class Exact(NamedTuple):
    """Filtered means and variances (time, body, space), smoothed means and variances, and log p(y_{0:T})."""

    mean: np.ndarray
    variance: np.ndarray
    smooth_mean: np.ndarray
    smooth_variance: np.ndarray
    evidence: float


def kalman(scale: float, known: np.ndarray, observations: Observations) -> Exact:
    """Kalman filter and smoother of windows (x, one before, two before), every axis of its own; `known` (time, body, space) ends at x0."""
    outs, evidence = [], 0.0
    for b, k in np.ndindex(BODIES, 2):
        before = known[::-1, b, k]
        mean = np.array([before[0], *before[1:], *[before[-1]] * (3 - len(before))])
        covariance, track = np.zeros((3, 3)), []
        for t in range(STEPS + 1):
            if t:
                old, new = WEIGHTS[min(len(known) + t - 1, 3) - 1]
                move = np.array([[1 + new, old - new, -old], [1, 0, 0], [0, 1, 0]])
                predicted = move @ mean, move @ covariance @ move.T + np.diag([scale**2, 0, 0])
                track[-1] += (move, *predicted)
                mean, covariance = predicted
            y = observations.values[t, b, k]
            if np.isfinite(y):
                spread = covariance[0, 0] + NOISE**2
                evidence -= 0.5 * ((y - mean[0]) ** 2 / spread + np.log(2 * np.pi * spread))
                gain = covariance[:, 0] / spread
                mean, covariance = mean + gain * (y - mean[0]), covariance - np.outer(gain, covariance[0])
            track.append((mean, covariance))
        later = track[-1][:2]
        smoothed = [later]
        for mean, covariance, move, ahead, ahead_covariance in track[-2::-1]:
            back = covariance @ move.T @ np.linalg.pinv(ahead_covariance)
            later = mean + back @ (later[0] - ahead), covariance + back @ (later[1] - ahead_covariance) @ back.T
            smoothed.append(later)
        outs.append([[(m[0], c[0, 0]) for m, c, *_ in track], [(m[0], c[0, 0]) for m, c in smoothed[::-1]]])
    found = np.array(outs).reshape(BODIES, 2, 2, STEPS + 1, 2).transpose(2, 4, 3, 0, 1)
    return Exact(*found[0], *found[1], evidence)


def problem(past: int) -> tuple[np.ndarray, Observations]:
    """Known states (time, body, space), x0 the last, and observations of every second frame of a path that goes on from there."""
    rng = np.random.default_rng(past)
    path = list(3 * rng.standard_normal((1, BODIES, 2)))
    for t in range(past + STEPS):
        changes = np.diff(path[-3:], axis=0)
        weights = WEIGHTS[min(t + 1, 3) - 1][2 - len(changes) :]
        path.append(path[-1] + np.einsum("t,tbs->bs", weights, changes) + rng.standard_normal((BODIES, 2)))
    path = np.stack(path)
    return path[: past + 1], Observations.from_states(SPEC, path[past:], {"position": NOISE}, every=2, rng=rng)


@pytest.mark.parametrize("past", [0, 1, 2])
@pytest.mark.parametrize("proposal", [Proposal.AUTO, Proposal.FORECAST])
def test_filters_carry_windows(transition: ParticleTransition, past: int, proposal: Proposal) -> None:
    known, observations = problem(past)
    exact = kalman(noise(transition), known, observations)
    before = torch.from_numpy(known[:-1]) if past else None
    choices = {"particles": 1000 if proposal is Proposal.AUTO else 5000, "seed": 1, "proposal": proposal, "past": before}
    found = filter_states(transition, CONTEXT, known[-1], observations, **choices)
    weight = np.exp(found["log_weight"].values)
    mean = np.einsum("st,stbk->tbk", weight, found["position"].values)
    worth = np.minimum.accumulate(found["ess"].values)[:, None, None]  # a resampled particle is worth no more than its parents
    error = 5 * np.sqrt(exact.variance / worth) + 0.02  # long changes are shortened a little
    assert (np.abs(mean - exact.mean) < error).all()
    assert float(found["log_evidence"][-1]) == pytest.approx(exact.evidence, abs=0.5 if proposal is Proposal.AUTO else 0.8)


@pytest.mark.parametrize("past", [0, 2])
def test_smoothers_carry_windows(transition: ParticleTransition, past: int) -> None:
    known, observations = problem(past)
    exact = kalman(noise(transition), known, observations)
    choices = {"end": None, "steps": None, "particles": 1000, "seed": 1, "sweeps": 2}
    choices["past"] = torch.from_numpy(known[:-1]) if past else None
    found = smooth_paths(transition, CONTEXT, known[-1], observations, **choices)
    mean = np.einsum("s,stbk->tbk", np.exp(found["log_weight"].values), found["position"].values)
    worth = np.minimum(found["distinct"].values.clip(1), found["ess"].values.min())[:, None, None]
    error = 5 * np.sqrt(exact.smooth_variance / worth) + 0.02
    assert (np.abs(mean - exact.smooth_mean) < error).all()
    assert float(found["log_evidence"]) == pytest.approx(exact.evidence, abs=0.4)


def test_another_past_is_another_posterior(transition: ParticleTransition) -> None:
    """A body that came from farther away is expected farther on, as the exact filter of this past expects it."""
    known, observations = problem(2)
    known[:-1] -= 4.0
    exact = kalman(noise(transition), known, observations)
    settings = {"particles": 1000, "seed": 1}
    with_past, without = (
        float(filter_states(transition, CONTEXT, known[-1], observations, past=before, **settings)["log_evidence"][-1])
        for before in (torch.from_numpy(known[:-1]), None)
    )
    assert with_past == pytest.approx(exact.evidence, abs=0.4)
    assert abs(with_past - without) > 1
