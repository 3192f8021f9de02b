"""Filtering, smoothing and bridging against closed forms, and on the celestial system against a hidden truth.

Statistical tests have fixed seeds; their bounds are 5 standard errors of the Monte Carlo estimate, a false-failure rate of 1e-4 per test.
"""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
import xarray as xr
from linear_gaussian import CONTEXT, PRIOR, SIZE, SPEC, Exact, LinearGaussian, draw_path, kalman, pack
from pyro.distributions import Delta, MultivariateNormal, Normal
from pyro.infer import SMCFilter
from torch import Tensor

from epns_pyro.conditioning.filtering import filter_states, smooth_paths, unweighted
from epns_pyro.conditioning.gaussian import LinearStep, LogQuadratic, NormalLaw, normal_law
from epns_pyro.conditioning.observations import InitialNormal, Observations
from epns_pyro.conditioning.problem import Proposal
from epns_pyro.errors import ConfigError, DataError, ShapeError
from epns_pyro.models.bodies.emissions import CoupledNormal

STEPS = 12
TRANSITION = LinearGaussian()


def observed(noise: float, *, every: int = 3, seed: int = 0) -> tuple[np.ndarray, Observations]:
    rng = np.random.default_rng(seed)
    path = draw_path(TRANSITION, STEPS, rng)
    observations = Observations.from_states(SPEC, pack(path), {"position": noise}, every=every, rng=rng)
    observations.values[6, 1] = np.nan  # one body is not seen in one frame
    return path, observations


def prior(path: np.ndarray) -> InitialNormal:
    return InitialNormal(pack(path[0]), {"position": PRIOR, "velocity": PRIOR})


def exact(path: np.ndarray, observations: Observations) -> Exact:
    return kalman(TRANSITION, path[0], PRIOR**2 * np.eye(SIZE), observations)


def run_filter(x0: np.ndarray | InitialNormal, observations: Observations, particles: int = 2000, **choices) -> xr.Dataset:
    return filter_states(TRANSITION, CONTEXT, x0, observations, particles=particles, **{"seed": 1, **choices})


def run_smoother(x0: np.ndarray | InitialNormal, observations: Observations | None, particles: int = 2000, **choices) -> xr.Dataset:
    choices = {"end": None, "steps": None, "seed": 1, "sweeps": 2, **choices}
    return smooth_paths(TRANSITION, CONTEXT, x0, observations, particles=particles, **choices)


def flat(posterior: xr.Dataset) -> np.ndarray:
    """(sample, time, state)."""
    both = np.concatenate([posterior[name].values for name in ("position", "velocity")], -1)
    return both.reshape(*both.shape[:2], -1)


def moments(posterior: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means (time, state) and covariances (time, state, state)."""
    x = flat(posterior)
    weight = np.exp(posterior["log_weight"].values)
    weight = np.broadcast_to(weight if weight.ndim == 2 else weight[:, None], x.shape[:2])
    mean = np.einsum("st,std->td", weight, x)
    return mean, np.einsum("st,std,ste->tde", weight, x - mean, x - mean)


def agrees(posterior: xr.Dataset, mean: np.ndarray, covariance: np.ndarray, *, frames: slice = slice(None)) -> None:
    found, spread = moments(posterior)
    error = 1 / np.sqrt(posterior["ess"].values)[frames, None]
    sd = np.sqrt(np.einsum("tdd->td", covariance))
    assert (np.abs(found - mean)[frames] < 5 * error * sd[frames]).all()
    difference, scale = spread - covariance, sd[:, :, None] * sd[:, None]
    assert (np.abs(difference)[frames] < 5 * np.sqrt(2) * error[..., None] * scale[frames]).all()


# -- closed forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.5, 0.005])
def test_the_filter_is_the_kalman_filter(noise):
    path, observations = observed(noise)
    truth = exact(path, observations)
    found = run_filter(prior(path), observations)
    agrees(found, truth.mean, truth.covariance)
    np.testing.assert_allclose(found["log_evidence"], truth.evidence, atol=0.25)
    assert found["ess"].min() > 400
    np.testing.assert_allclose(np.exp(found["log_weight"]).sum("sample"), 1)


def test_blind_proposals_agree_where_they_can_and_fail_where_they_cannot():
    path, observations = observed(2.0)
    truth = exact(path, observations)
    found = run_filter(prior(path), observations, 10_000, proposal=Proposal.FORECAST)
    np.testing.assert_allclose(found["log_evidence"], truth.evidence, atol=0.1)
    assert (np.abs(moments(found)[0] - truth.mean) < 0.12 * np.sqrt(np.einsum("tdd->td", truth.covariance))).all()
    path, observations = observed(0.005)
    assert run_filter(prior(path), observations, proposal=Proposal.FORECAST)["ess"].min() < 5


def test_too_few_particles_to_look_ahead_still_filter():
    path, observations = observed(3.0, every=1)
    truth = exact(path, observations)
    found = [run_filter(prior(path), observations, 17, seed=seed)["log_evidence"].values[-1] for seed in range(80)]
    likelihood = np.exp(np.array(found) - truth.evidence[-1])  # unbiased on the natural scale
    assert abs(likelihood.mean() - 1) < 5 * likelihood.std() / np.sqrt(len(likelihood))


def test_the_smoother_is_the_rts_smoother():
    path, observations = observed(0.05)
    truth = exact(path, observations)
    found = run_smoother(prior(path), observations)
    agrees(found, truth.smooth_mean, truth.smooth_covariance)
    assert float(found["log_evidence"]) == pytest.approx(truth.evidence[-1], abs=1e-6)  # looking ahead is exact here
    assert found["ess"].min() > 1999
    assert (found["distinct"] == 2000).all()
    lag_one = np.einsum("sd,se->de", *(flat(found)[:, t] - truth.smooth_mean[t] for t in (5, 6))) / 2000
    matrix, _, noise = TRANSITION.law
    filtered = truth.covariance[5]
    back = filtered @ matrix.T @ np.linalg.inv(matrix @ filtered @ matrix.T + noise)
    np.testing.assert_allclose(lag_one, back @ truth.smooth_covariance[6], atol=5 * 0.5 / np.sqrt(2000))  # rows are paths


@pytest.mark.parametrize("known_start", [True, False])
def test_a_bridge_is_the_closed_form(known_start):
    path, _ = observed(0.05)
    matrix, offset, noise = TRANSITION.law
    everything = {name: SPEC.get(pack(path), name) for name in ("position", "velocity")}
    ended = Observations.from_fields(SPEC, everything, dict.fromkeys(everything, 1e-6))
    ended.values[:-1] = np.nan
    start = 0.0 if known_start else PRIOR**2
    truth = kalman(TRANSITION, path[0], start * np.eye(SIZE), ended)
    found = run_smoother(pack(path[0]) if known_start else prior(path), None, end=pack(path[-1]), steps=STEPS)
    assert (flat(found)[:, -1] == path[-1]).all()
    agrees(found, truth.smooth_mean, truth.smooth_covariance, frames=slice(1 if known_start else 0, -1))
    mean, covariance = path[0], start * np.eye(SIZE)
    for _ in range(STEPS):
        mean, covariance = matrix @ mean + offset, matrix @ covariance @ matrix.T + noise
    density = MultivariateNormal(torch.tensor(mean), torch.tensor(covariance)).log_prob(torch.tensor(path[-1]))
    assert float(found["log_evidence"]) == pytest.approx(float(density), abs=0.15)  # what is left is the guide, with 32 latents each


def test_looking_ahead_wrongly_costs_particles_not_truth(monkeypatch):
    right = LinearStep.fit.__func__

    def wrong(cls, *arguments):
        step = right(cls, *arguments)
        return LinearStep(0.8 * step.slope, 0.7 * step.latent, step.offset + 0.05, 2 * step.noise)

    monkeypatch.setattr(LinearStep, "fit", classmethod(wrong))
    path, observations = observed(0.2)
    truth = exact(path, observations)
    found = [run_smoother(prior(path), observations, 400, seed=seed, sweeps=1) for seed in range(12)]
    assert found[0]["ess"].min() < 300
    likelihood = np.exp([float(f["log_evidence"]) - truth.evidence[-1] for f in found])
    assert abs(likelihood.mean() - 1) < 5 * likelihood.std() / np.sqrt(len(found))
    means = np.array([moments(f)[0] for f in found])
    error = means.std(0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(means.mean(0) - truth.smooth_mean) < 7 * error).all()  # 104 values of Student's t with 11 degrees


def test_pyros_own_filter_agrees():
    path, observations = observed(2.0, every=1)
    values, x0 = torch.tensor(observations.values), torch.tensor(pack(path[0]))

    class Model:
        def init(self, state, *_):
            state["x"] = pyro.sample("x_0", Delta(x0.expand(4000, *x0.shape), event_dim=2))
            self.t = 0

        def step(self, state, y):
            self.t += 1
            step = TRANSITION.at(state["x"])
            z = pyro.sample(f"z_{self.t}", step.prior)
            moved = pyro.sample(f"x_{self.t}", step.emission(z))
            state["x"] = SPEC.advance(state["x"], moved)
            seen = y.isfinite()
            pyro.sample(f"y_{self.t}", Normal(moved[..., seen], 2.0).to_event(1), obs=y[seen])

    class Guide:
        def init(self, state, *_):
            pyro.sample("x_0", Delta(x0.expand(4000, *x0.shape), event_dim=2))
            self.t = 0

        def step(self, state, y):
            self.t += 1
            step = TRANSITION.at(state["x"])
            z = pyro.sample(f"z_{self.t}", step.prior)
            pyro.sample(f"x_{self.t}", step.emission(z))

    pyro.set_rng_seed(0)
    stock = SMCFilter(Model(), Guide(), num_particles=4000, max_plate_nesting=0)
    with torch.no_grad():
        stock.init()
        for y in values[1:]:
            stock.step(y)
    weight = stock.state._log_weights.softmax(0).double()
    pyros = torch.einsum("s,s...->...", weight, SPEC.dynamic(stock.state["x"])).flatten().numpy()
    ours = moments(run_filter(pack(path[0]), observations))[0][-1]
    truth = kalman(TRANSITION, path[0], np.zeros((SIZE, SIZE)), observations)
    sd = np.sqrt(truth.covariance[-1].diagonal())
    assert (np.abs(pyros - ours) < 0.2 * sd).all()
    assert (np.abs(ours - truth.mean[-1]) < 0.12 * sd).all()


def test_an_ensemble_is_a_prior_too():
    path, observations = observed(0.1)
    truth = exact(path, observations)
    ensemble = pack(path[0] + PRIOR * np.random.default_rng(0).normal(size=(4000, SIZE)))
    found = run_smoother(ensemble, observations, 4000)
    assert float(found["log_evidence"]) == pytest.approx(truth.evidence[-1], abs=0.5)
    np.testing.assert_allclose(moments(found)[0], truth.smooth_mean, atol=0.15)


# -- Normal laws -------------------------------------------------------------------------------------------------------------


def laws() -> list[tuple[object, Tensor]]:
    torch.manual_seed(0)
    loc = torch.randn(3, 4, 6, dtype=torch.float64)
    factor = torch.randn(3, 4, 2, 2, dtype=torch.float64).tril(-1) + torch.diag_embed(0.5 + torch.rand(3, 4, 2, dtype=torch.float64))
    return [Normal(loc, factor[..., 0, :1].expand_as(loc)).to_event(2), CoupledNormal(loc, factor).to_event(1)]


@pytest.mark.parametrize("emission", laws(), ids=["diagonal", "coupled"])
def test_emissions_are_read_as_normal_laws(emission):
    law, value = normal_law(emission), emission.sample()
    reference = MultivariateNormal(law.mean, scale_tril=law.factor)
    torch.testing.assert_close(reference.log_prob(value.flatten(1)), emission.log_prob(value))
    assert normal_law(Delta(torch.zeros(3))) is None


def test_products_with_a_measurement_are_the_textbook_ones():
    torch.manual_seed(0)
    value, noise = torch.tensor([0.3, torch.nan, -1.0], dtype=torch.float64), torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64)
    mean, factor = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, 3, dtype=torch.float64).tril()
    mean, factor = (a[:1].expand(100_000, *a.shape[1:]) for a in (mean, factor))
    psi = LogQuadratic.of_measurement(value, noise)
    draws, log_mass = psi.tilt(NormalLaw(mean, factor))
    see = torch.eye(3, dtype=torch.float64)[[0, 2]]
    covariance = factor[0] @ factor[0].T
    spread = see @ covariance @ see.T + torch.diag(noise[[0, 2]] ** 2)
    expected = MultivariateNormal(see @ mean[0], spread).log_prob(value[[0, 2]])
    torch.testing.assert_close(log_mass[0], expected)
    gain = covariance @ see.T @ torch.linalg.inv(spread)
    torch.testing.assert_close(draws.mean(0), mean[0] + gain @ (value[[0, 2]] - see @ mean[0]), atol=0.02, rtol=0)
    torch.testing.assert_close(draws.T.cov(), covariance - gain @ spread @ gain.T, atol=0.03, rtol=0)
    x, slope, latent, offset = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 3), (3, 3), (3, 2), (3,)))
    ahead = psi.before(LinearStep(slope, latent, offset, covariance))
    spread = see @ (covariance + latent @ latent.T) @ see.T + torch.diag(noise[[0, 2]] ** 2)
    torch.testing.assert_close(ahead(x), MultivariateNormal((x @ slope.T + offset) @ see.T, spread).log_prob(value[[0, 2]]))


# -- what is asked for -------------------------------------------------------------------------------------------------------


def test_without_observations_a_filter_forecasts():
    path, observations = observed(0.5)
    nothing = Observations(np.full_like(observations.values, np.nan), observations.noise)
    found = run_filter(pack(path[0]), nothing)
    truth = kalman(TRANSITION, path[0], np.zeros((SIZE, SIZE)), nothing)
    agrees(found, truth.mean, truth.covariance, frames=slice(1, None))
    assert (found["log_evidence"] == 0).all()
    assert (found["ess"].round(6) == 2000).all()
    assert dict(found.sizes) == {"sample": 2000, "time": STEPS + 1, "body": 2, "space": 2}
    np.testing.assert_allclose(found["time"], 0.1 * np.arange(STEPS + 1))


def test_a_seed_says_it_all_and_moves_nothing_else():
    path, observations = observed(0.05)
    before = torch.random.get_rng_state()
    first, again, other = (run_filter(prior(path), observations, 100, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(before, torch.random.get_rng_state())
    xr.testing.assert_identical(first, again)
    assert not first.equals(other)
    xr.testing.assert_identical(run_smoother(prior(path), observations, 100), run_smoother(prior(path), observations, 100))


def test_equal_weights_keep_the_moments_and_whole_paths():
    path, observations = observed(0.5)
    filtered, ended = run_filter(prior(path), observations), run_smoother(pack(path[0]), None, end=pack(path[-1]), steps=STEPS)
    for posterior in (filtered, ended):
        plain = unweighted(posterior)
        assert "log_weight" not in plain
        assert plain["position"].dims == posterior["position"].dims
        np.testing.assert_allclose(plain["position"].mean("sample"), moments(posterior)[0].reshape(-1, 2, 4)[..., :2], atol=0.08)
    rows = {row.tobytes() for row in flat(ended)}
    assert all(row.tobytes() in rows for row in flat(unweighted(ended)))


PATH, GOOD = observed(0.5)


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda: run_filter(pack(PATH[0])[None, None], GOOD), ShapeError, r"the initial state: expected one state \(body, channel\)"),
        (lambda: run_filter(pack(PATH[0])[:1], GOOD), ShapeError, r"expected \(time, body, dynamic channel\) = \(time, 1, 4\), found"),
        (lambda: run_filter(pack(PATH[0]), GOOD, 0), ConfigError, "at least one particle"),
        (lambda: run_filter(InitialNormal(pack(PATH[0]), {"speed": 1.0}), GOOD), DataError, "no dynamic field 'speed'"),
        (lambda: run_filter(InitialNormal(pack(PATH[0]), {"velocity": -1.0}), GOOD), DataError, "not negative, found -1"),
        (lambda: run_smoother(pack(PATH[0]), GOOD, 10), ConfigError, "at least 18 particles, found 10"),
        (lambda: run_smoother(pack(PATH[0]), None), ShapeError, "needs steps="),
        (lambda: run_smoother(pack(PATH[0]), GOOD, steps=3), ShapeError, "contradicts the observations, which have 12"),
        (lambda: run_smoother(pack(PATH[0]), GOOD, end=pack(PATH[-1])), ShapeError, "step 12 is both observed and known"),
        (lambda: run_smoother(pack(PATH[0]), None, steps=3, end=pack(PATH)), ShapeError, "the end: expected one state"),
        (lambda: run_smoother(pack(PATH[0]), None, steps=3, end=2 * pack(PATH[-1])), ShapeError, r"static fields \(mass\) differ"),
        (lambda: run_smoother(pack(PATH[0]), GOOD, sweeps=0), ConfigError, "at least one sweep"),
        (
            lambda: run_filter(pack(PATH[0]), GOOD, proposal="best"),
            ConfigError,
            "expected one of 'auto', 'adapted', 'forecast', found 'best'",
        ),
    ],
)
def test_questions_without_an_answer_are_refused(ask, error, message):
    with pytest.raises(error, match=message):
        ask()


def test_impossible_observations_are_named():
    far = Observations(GOOD.values + 1e200, GOOD.noise)
    with pytest.raises(DataError, match="no particle can explain the observations at step 3"):
        run_filter(pack(PATH[0]), far, proposal=Proposal.FORECAST)


def test_a_proposal_has_a_name():
    named, meant = (run_filter(pack(PATH[0]), GOOD, proposal=proposal) for proposal in ("adapted", Proposal.ADAPTED))
    xr.testing.assert_identical(named, meant)
