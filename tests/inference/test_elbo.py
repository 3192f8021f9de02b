"""The trainer's objective against stock Pyro, and the bounds against one another."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from small import MODEL

from epns_pyro.data import Store
from epns_pyro.inference import Objective, log_density, path_bounds
from epns_pyro.models import EPNSGuide, EPNSModel, Feedback


@pytest.fixture
def setup(store: Store):
    torch.manual_seed(0)
    transition = MODEL.build(store.context()).double()
    x = torch.as_tensor(store.read("train", slice(0, 5)))
    return transition, x[:, 0], x[:, 1:4]


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


@pytest.mark.parametrize("feedback", [Feedback.TEACHER, Feedback.PUSHFORWARD])
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_loss_and_gradient_equal_stock_pyro(setup, feedback: Feedback, kl_weight: float) -> None:
    transition, x0, path = setup
    torch.manual_seed(1)
    ours = Objective(transition, feedback)(x0, path, kl_weight=kl_weight).loss * len(x0) * path.shape[1]
    ours.backward()
    our_gradient = gradients(transition)

    model, guide = (program(transition, feedback=feedback, kl_weight=kl_weight) for program in (EPNSModel, EPNSGuide))
    torch.manual_seed(1)
    theirs = TraceMeanField_ELBO()(model, guide)(x0, path)
    theirs.backward()
    their_gradient = gradients(transition)

    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    assert our_gradient.keys() == their_gradient.keys()
    for name, gradient in our_gradient.items():
        torch.testing.assert_close(gradient, their_gradient[name], rtol=1e-9, atol=1e-9)


def test_svi_step_is_the_same_step(setup) -> None:
    transition, x0, path = setup
    before = {name: p.detach().clone() for name, p in transition.named_parameters()}
    torch.manual_seed(1)
    loss = Objective(transition, Feedback.TEACHER)(x0, path).loss * len(x0) * path.shape[1]
    loss.backward()
    expected = {name: before[name] - 1e-3 * p.grad for name, p in transition.named_parameters()}
    transition.zero_grad()

    torch.manual_seed(1)
    svi = SVI(EPNSModel(transition), EPNSGuide(transition), pyro.optim.SGD({"lr": 1e-3}), TraceMeanField_ELBO())
    assert svi.step(x0, path) == pytest.approx(float(loss.detach()), rel=1e-12)
    for name, parameter in transition.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-9, atol=1e-12)
    assert not list(pyro.get_param_store())


def test_h_is_computed_once_per_step(setup) -> None:
    transition, x0, path = setup
    calls = []
    transition.encoder.register_forward_hook(lambda *_: calls.append(1))
    Objective(transition)(x0, path)
    assert len(calls) == path.shape[1]


def test_free_bits_hold_back_only_what_is_below(setup) -> None:
    transition, x0, path = setup
    objective = Objective(transition)

    def run(**settings: float) -> tuple[float, dict[str, torch.Tensor]]:
        torch.manual_seed(2)
        loss = objective(x0, path, **settings)
        loss.loss.backward()
        return float(loss.loss.detach()), gradients(transition)

    plain, no_kl, tiny, huge = run(), run(kl_weight=0.0), run(free_bits=1e-9), run(free_bits=100.0)
    assert tiny[0] == pytest.approx(plain[0], rel=1e-12)
    assert huge[0] == pytest.approx(no_kl[0] + 100.0 * x0.shape[1] * MODEL.latent, rel=1e-12)
    for name in plain[1]:
        torch.testing.assert_close(tiny[1][name], plain[1][name])
        torch.testing.assert_close(huge[1][name], no_kl[1][name])  # below the threshold the KL has no gradient
    assert any((plain[1][name] - no_kl[1][name]).abs().max() > 1e-3 for name in plain[1])


def test_iwae_is_above_the_elbo_and_chunks_change_nothing_but_noise(setup) -> None:
    transition, x0, path = setup
    torch.manual_seed(3)
    bounds = path_bounds(transition, x0, path, num_samples=200)
    assert (bounds.iwae.mean() > bounds.elbo.mean() - 1e-9).all()
    torch.testing.assert_close(bounds.elbo, bounds.log_likelihood - bounds.kl)
    torch.manual_seed(4)
    pieces = path_bounds(transition, x0, path, num_samples=200, chunk=400)
    torch.testing.assert_close(pieces.kl, bounds.kl)  # analytic
    torch.testing.assert_close(pieces.iwae, bounds.iwae, rtol=0.05, atol=1.0)


def test_log_density_is_the_log_prob_of_the_pyro_trace(setup) -> None:
    transition, x0, path = setup
    z = torch.randn(len(x0), path.shape[1], x0.shape[1], MODEL.latent, dtype=torch.float64)
    latents = {f"z_{t + 1}": z[:, t] for t in range(path.shape[1])}
    trace = poutine.trace(poutine.condition(EPNSModel(transition), data=latents)).get_trace(x0, path)
    torch.testing.assert_close(log_density(transition, x0, path, z).sum(), trace.log_prob_sum())
