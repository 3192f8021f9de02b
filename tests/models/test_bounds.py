"""Evidence bounds in a world where the evidence is known: a linear-Gaussian state space. False-failure rate of a statistical test: 1e-6.

    z ~ Normal(b x, S),  x' ~ Normal(A x + W z, R),  so  x' ~ Normal(A x + W b x, R + W S W)   with W, S, R diagonal,

and the posterior of z is Normal too, diagonal like its prior: the exact one is within the reach of the guide.
"""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Independent, Normal
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from epns_pyro.inference.elbo import path_bounds
from epns_pyro.models import EPNSGuide, EPNSModel
from epns_pyro.models.transition import MarkovTransition
from epns_pyro.state import Field, StateSpec

SPACE, STEPS, BATCH = 2, 3, 4


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class LinearGaussian(MarkovTransition):
    """One body; the guide is off the exact posterior by `shift` standard deviations and a factor `stretch` of its width."""

    hidden_event_dim = 2

    def __init__(self, shift: float = 0.0, stretch: float = 1.0) -> None:
        super().__init__()
        self.spec = StateSpec((Field("mass", dynamic=False), Field("position", "1o", translates=True)), space=SPACE)
        self.shift, self.stretch = shift, stretch
        self.A = torch.tensor([[0.9, 0.2], [-0.1, 0.8]], dtype=torch.float64)
        self.b, self.W, self.S, self.R = vector(0.3, -0.5), vector(0.7, -1.2), vector(0.5, 2.0), vector(0.2, 0.4)
        self.dummy = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward_model(self, x: Tensor) -> Tensor:
        return self.spec.get(x, "position")

    def prior(self, x: Tensor, h: Tensor) -> Independent:
        return Normal(self.b * h, self.S.sqrt().expand_as(h)).to_event(2)

    def emission(self, x: Tensor, h: Tensor, z: Tensor) -> Independent:
        return Normal(h @ self.A.T + self.W * z, self.R.sqrt().expand_as(z)).to_event(2)

    def exact(self, h: Tensor, y: Tensor) -> Normal:
        gain = self.S * self.W / (self.R + self.S * self.W**2)
        mean = self.b * h + gain * (y - h @ self.A.T - self.W * self.b * h)
        return Normal(mean, ((1 - gain * self.W) * self.S).sqrt().expand_as(mean))

    def posterior(self, x: Tensor, h: Tensor, x_next: Tensor) -> Independent:
        exact = self.exact(h, self.spec.dynamic(x_next))
        return Normal(exact.loc + self.shift * exact.scale, self.stretch * exact.scale).to_event(2)

    def gap(self) -> float:
        """log p - ELBO per step: the divergence of the guide from the exact posterior, nats."""
        exact = torch.distributions.Normal(torch.zeros(SPACE), torch.ones(SPACE))
        return float(kl_divergence(torch.distributions.Normal(exact.loc + self.shift, self.stretch * exact.scale), exact).sum())


def evidence(transition: LinearGaussian, x0: Tensor, path: Tensor) -> Tensor:
    """log p(x_{1:T} | x_0), in closed form: (batch,), nats."""
    spec = transition.spec
    position = spec.get(torch.cat([x0[:, None], path], 1), "position")[..., 0, :]
    mean = position[:, :-1] @ transition.A.T + transition.W * transition.b * position[:, :-1]
    covariance = torch.diag(transition.R + transition.S * transition.W**2)
    return MultivariateNormal(mean, covariance).log_prob(position[:, 1:]).sum(1)


def observations(transition: LinearGaussian) -> tuple[Tensor, Tensor]:
    x = transition.spec.pack(
        mass=torch.ones(BATCH, STEPS + 1, 1, dtype=torch.float64),
        position=torch.randn(BATCH, STEPS + 1, 1, SPACE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    return x[:, 0], x[:, 1:]


def test_the_closed_form_is_that_of_monte_carlo():
    """The evidence by brute force: a mean over draws of the prior (4e5 draws: exact to 1%, 5 sigma)."""
    transition = LinearGaussian()
    x0, path = observations(transition)
    torch.manual_seed(0)
    log_likelihood = 0.0
    for before, after in zip([x0, *path[:, :-1].unbind(1)], path.unbind(1), strict=True):
        step = transition.at(before)
        z = step.prior.sample((400_000,))
        likelihood = step.emission(z).log_prob(transition.spec.dynamic(after))
        log_likelihood = log_likelihood + likelihood.exp().mean(0).log()
    torch.testing.assert_close(log_likelihood, evidence(transition, x0, path), rtol=0, atol=0.05)


def test_with_the_exact_posterior_the_bounds_are_the_evidence():
    transition = LinearGaussian()
    x0, path = observations(transition)
    truth = evidence(transition, x0, path)
    for samples in (1, 7):
        torch.testing.assert_close(path_bounds(transition, x0, path, num_samples=samples).iwae, truth, rtol=1e-10, atol=1e-10)
    model, guide = EPNSModel(transition), EPNSGuide(transition)
    assert -Trace_ELBO().loss(model, guide, x0, path) == pytest.approx(float(truth.sum()), rel=1e-10)  # draw by draw
    torch.manual_seed(0)
    torch.testing.assert_close(path_bounds(transition, x0, path, num_samples=100_000).elbo, truth, rtol=0, atol=0.04)  # on average


@pytest.mark.parametrize("off", [{"shift": 0.6}, {"stretch": 1.5}, {"shift": -0.3, "stretch": 0.8}], ids=str)
def test_the_elbo_is_below_the_evidence_by_the_divergence_of_the_guide(off):
    transition = LinearGaussian(**off)
    x0, path = observations(transition)
    expected = evidence(transition, x0, path) - STEPS * transition.gap()
    torch.manual_seed(0)
    bounds = path_bounds(transition, x0, path, num_samples=100_000)
    torch.testing.assert_close(bounds.elbo, expected, rtol=0, atol=0.06)
    torch.testing.assert_close(bounds.elbo, bounds.log_likelihood - bounds.kl)
    stock = TraceMeanField_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=1)
    assert -stock.loss(EPNSModel(transition), EPNSGuide(transition), x0, path) == pytest.approx(float(expected.sum()), abs=3.0)


def test_importance_samples_climb_from_the_elbo_to_the_evidence():
    """E[IWAE_1] = ELBO <= E[IWAE_5] <= E[IWAE_50] <= log p, and IWAE_K -> log p."""
    transition = LinearGaussian(shift=0.8, stretch=1.3)
    x0, path = observations(transition)
    truth = float(evidence(transition, x0, path).sum())
    torch.manual_seed(0)
    repeats = 2000
    many = (x0.repeat(repeats, 1, 1), path.repeat(repeats, 1, 1, 1))
    found = {}
    for samples in (1, 5, 50):
        totals = path_bounds(transition, *many, num_samples=samples).iwae.unflatten(0, (repeats, BATCH)).sum(1)
        found[samples] = (float(totals.mean()), float(totals.std()) / repeats**0.5)
    elbo = truth - BATCH * STEPS * transition.gap()
    assert abs(found[1][0] - elbo) < 4.9 * found[1][1]
    for fewer, more in ((1, 5), (5, 50)):
        assert found[fewer][0] + 4.9 * (found[fewer][1] + found[more][1]) < found[more][0]
    assert found[50][0] < truth + 4.9 * found[50][1]
    assert float(path_bounds(transition, x0, path, num_samples=200_000).iwae.sum()) == pytest.approx(truth, abs=0.1)


def test_the_posterior_mean_is_what_conditioning_says():
    """The exact posterior against importance sampling in Pyro: means of z_1 given x_1 (2e5 draws, 5 sigma)."""
    transition = LinearGaussian()
    x0, path = observations(transition)
    torch.manual_seed(0)
    with torch.no_grad(), pyro.plate("draw", 200_000, dim=-2):
        trace = poutine.trace(EPNSModel(transition)).get_trace(x0, path[:, :1])
        trace.compute_log_prob()
    weight = trace.nodes["x_1"]["log_prob"].softmax(0)[..., None, None]
    mean = (weight * trace.nodes["z_1"]["value"]).sum(0)
    exact = transition.exact(transition.at(x0).h, transition.spec.dynamic(path[:, 0]))
    effective = 1 / weight.square().sum(0)
    assert ((mean - exact.mean).abs() / (exact.stddev / effective.sqrt())).max() < 5.5
