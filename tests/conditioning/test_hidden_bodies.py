"""Conditioning the true law of the celestial system on part of a trajectory that it made: the rest is known, and judged against.

Seeds are fixed; coverage may be off by 4 standard errors over trajectories, a false-failure rate of 1e-3 (Student's t, 15 degrees).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from pyro.distributions import Independent, MultivariateNormal, Normal, TorchDistribution
from torch import Tensor, nn

from epns_pyro.conditioning.filtering import filter_states, smooth_paths, unweighted
from epns_pyro.conditioning.gaussian import NormalLaw, normal_law
from epns_pyro.conditioning.observations import Observations
from epns_pyro.context import DataContext
from epns_pyro.models.transition import MarkovTransition
from epns_pyro.systems import NBodyConfig

SYSTEM = NBodyConfig.parse({"bodies": 3, "dt": 0.01, "oracle_dt": 0.05, "sigma": 0.3}).build()
SPEC, CONTEXT = SYSTEM.spec, DataContext(SYSTEM.spec, SYSTEM.frame_dt, {"position": 1.0, "velocity": 1.0}, (3,))
STEPS, EVERY, PARTICLES = 15, 5, 150
SEEN = np.array([False, True, True])  # the star is hidden
NOISE = {"position": 0.05}


class FullNormal(TorchDistribution):
    """A Normal over whole states (*site, channel), all numbers correlated."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, mean: Tensor, factor: Tensor) -> None:
        self.loc, self.factor = mean, factor
        super().__init__(mean.shape[:-2], mean.shape[-2:], validate_args=False)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        noise = torch.randn(*sample_shape, *self.loc.flatten(-2).shape, 1, dtype=self.loc.dtype)
        return self.loc + (self.factor @ noise).reshape(self.loc.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return MultivariateNormal(self.loc.flatten(-2), scale_tril=self.factor).log_prob(value.flatten(-2))


@normal_law.register
def _(emission: FullNormal) -> NormalLaw:
    return NormalLaw(emission.loc.flatten(-2), emission.factor)


class Oracle(MarkovTransition):
    """The true law of the system; its one latent says nothing."""

    spec, hidden_event_dim = SPEC, 2

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward_model(self, x: Tensor) -> Tensor:
        return x

    def prior(self, x: Tensor, h: Tensor) -> Independent:
        return Normal(x.new_zeros(*x.shape[:-2], 1, 1), 1.0).to_event(2)

    def emission(self, x: Tensor, h: Tensor, z: Tensor) -> FullNormal:
        mean, covariance = (torch.as_tensor(a) for a in SYSTEM.transition_law(x.numpy(), workers=1))
        return FullNormal(mean, torch.linalg.cholesky(covariance))

    def posterior(self, x: Tensor, h: Tensor, x_next: Tensor) -> Independent:
        return self.prior(x, h)


ORACLE = Oracle()


def crps(posterior: xr.Dataset, field: str, truth: np.ndarray) -> np.ndarray:
    """Fair CRPS of an equally weighted ensemble: (time, body, space)."""
    x = np.sort(posterior[field].values, axis=0)
    n = len(x)
    rank = np.arange(1, n + 1).reshape(-1, 1, 1, 1)
    return np.abs(x - truth).mean(0) - ((2 * rank - n - 1) * x).sum(0) / (n * (n - 1))


@pytest.fixture(scope="module")
def judged() -> dict[str, np.ndarray]:
    """Skill and coverage over trajectories: `crps_*`, `hidden_*` (trajectory, time), `inside_*` (trajectory, time, body, space)."""
    rng, rows = np.random.default_rng(0), []
    starts = SYSTEM.initial(16, rng)
    truths = SYSTEM.simulate(starts, STEPS, np.arange(16, dtype=np.uint64), workers=1)
    for x in truths:
        observations = Observations.from_states(SPEC, x, NOISE, every=EVERY, sites=SEEN, rng=rng)
        nothing = Observations(np.full_like(observations.values, np.nan), observations.noise)
        posteriors = {
            "forecast": filter_states(ORACLE, CONTEXT, x[0], nothing, particles=PARTICLES, seed=0),
            "filter": filter_states(ORACLE, CONTEXT, x[0], observations, particles=PARTICLES, seed=0),
            "smooth": smooth_paths(ORACLE, CONTEXT, x[0], observations, end=None, steps=None, particles=PARTICLES, seed=0, sweeps=1),
        }
        row = {f"ess_{name}": posterior["ess"].values.min() for name, posterior in posteriors.items()}
        for name, posterior in posteriors.items():
            plain = unweighted(posterior)
            fields = ("position", "velocity")
            row[f"hidden_{name}"] = sum(crps(plain, f, SPEC.get(x, f))[:, ~SEEN].mean((1, 2)) for f in fields)
            row[f"crps_{name}"] = sum(crps(plain, f, SPEC.get(x, f)).mean((1, 2)) for f in fields)
            low, high = np.quantile(plain["velocity"], (0.05, 0.95), axis=0)
            row[f"inside_{name}"] = (low <= SPEC.get(x, "velocity")) & (SPEC.get(x, "velocity") <= high)
        rows.append(row)
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def test_measurements_help_at_every_lead_time_from_the_first_on(judged):
    forecast, filtered, smoothed = (judged[f"crps_{name}"].mean(0) for name in ("forecast", "filter", "smooth"))
    assert (filtered[EVERY:] < forecast[EVERY:]).all()
    assert filtered[-1] < 0.6 * forecast[-1]
    np.testing.assert_allclose(filtered[1:EVERY], forecast[1:EVERY], rtol=0.1)  # nothing is known yet
    assert (smoothed[1:] < forecast[1:]).all()
    assert smoothed[1:-1].mean() < 0.9 * filtered[1:-1].mean()


def test_the_hidden_star_shows_in_its_planets(judged):
    forecast, filtered, smoothed = (judged[f"hidden_{name}"].mean(0) for name in ("forecast", "filter", "smooth"))
    assert (filtered[2 * EVERY :] < 0.97 * forecast[2 * EVERY :]).all()
    assert (smoothed[1:] < 0.97 * forecast[1:]).all()


@pytest.mark.parametrize("name", ["forecast", "filter", "smooth"])
def test_intervals_cover(judged, name):
    inside = judged[f"inside_{name}"][:, 1:].mean((1, 2, 3))  # per trajectory: these are independent
    assert abs(inside.mean() - 0.9) < 4 * inside.std(ddof=1) / np.sqrt(len(inside)) + 0.01


def test_particles_last(judged):
    assert np.median(judged["ess_filter"]) > 0.25 * PARTICLES
    assert np.median(judged["ess_smooth"]) > 0.25 * PARTICLES


def test_a_bridge_between_known_states():
    """The middle of a bridge is closer to the truth than that of a forecast, and honest about it."""
    rng, skill, inside = np.random.default_rng(1), [], []
    truths = SYSTEM.simulate(SYSTEM.initial(6, rng), 8, np.arange(6, dtype=np.uint64), workers=1)
    for x in truths:
        bridge = smooth_paths(ORACLE, CONTEXT, x[0], None, end=x[-1], steps=8, particles=PARTICLES, seed=0, sweeps=2)
        plain = unweighted(bridge)
        nothing = Observations(np.full((9, 3, 6), np.nan), np.ones((9, 3, 6)))
        forecast = filter_states(ORACLE, CONTEXT, x[0], nothing, particles=PARTICLES, seed=0)
        truth = SPEC.get(x, "velocity")
        skill.append([crps(p, "velocity", truth)[4:7].mean() for p in (plain, forecast)])
        low, high = np.quantile(plain["velocity"], (0.05, 0.95), axis=0)
        inside.append(((low <= truth) & (truth <= high))[1:-1].mean())
        assert bridge["ess"].min() > 15
    bridged, free = np.mean(skill, 0)
    assert bridged < 0.75 * free
    assert abs(np.mean(inside) - 0.9) < 4 * np.std(inside, ddof=1) / np.sqrt(6) + 0.01
