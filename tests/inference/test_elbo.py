"""The trainer's objective against stock Pyro, and the bounds against one another."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from small import MODEL
from torch.distributions import kl_divergence

from epns_pyro.data import Store
from epns_pyro.inference.elbo import Bounds, Objective, latent_kl, log_density, path_bounds
from epns_pyro.models import EPNSGuide, EPNSModel, Feedback, Transition


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


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("feedback", [Feedback.TEACHER, Feedback.PUSHFORWARD])
@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_loss_and_gradient_equal_stock_pyro(setup, steps: int, feedback: Feedback, kl_weight: float) -> None:
    transition, x0, path = setup
    path = path[:, :steps]
    torch.manual_seed(1)
    ours = Objective(transition, feedback)(x0, path, kl_weight=kl_weight).loss * len(x0) * steps
    ours.backward()
    our_gradient = gradients(transition)

    model, guide = (program(transition, feedback=feedback, kl_weight=kl_weight) for program in (EPNSModel, EPNSGuide))
    torch.manual_seed(1)
    theirs = TraceMeanField_ELBO()(model, guide)(x0, path)
    theirs.backward()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    assert_same(our_gradient, gradients(transition))

    before = {name: p.detach().clone() for name, p in transition.named_parameters()}
    torch.manual_seed(1)
    step = SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), TraceMeanField_ELBO()).step(x0, path)
    assert step == pytest.approx(float(ours.detach()), rel=1e-12)
    assert_same({name: (before[name] - p.detach()) / 1e-3 for name, p in transition.named_parameters()}, our_gradient)
    assert not list(pyro.get_param_store())


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    size = max(gradient.abs().max() for gradient in expected.values())
    assert size > 1.0
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12 * float(size), msg=name)


def test_pushforward_is_not_teacher_forcing_and_no_gradient_flows_through_time(setup) -> None:
    transition, x0, path = setup
    torch.manual_seed(1)
    teacher = Objective(transition, Feedback.TEACHER)(x0, path).log_likelihood
    torch.manual_seed(1)
    pushed = Objective(transition, Feedback.PUSHFORWARD)(x0, path).log_likelihood
    assert abs(float(teacher - pushed)) > 1e-3
    starts, step = [], transition.step
    transition.step = lambda carry: (starts.append(carry), step(carry))[1]
    Objective(transition, Feedback.PUSHFORWARD)(x0, path)
    assert len(starts) == path.shape[1]
    assert not any(carry.x.requires_grad for carry in starts)


@pytest.mark.parametrize("network", ["encoder", "integrator", "prior_net", "guess_scalars", "posterior_net", "decoder"])
def test_every_network_runs_once_per_step(setup, network: str) -> None:
    transition, x0, path = setup
    calls = []
    getattr(transition, network).register_forward_hook(lambda *_: calls.append(1))
    Objective(transition)(x0, path)
    assert len(calls) == path.shape[1]


def divergences(transition: Transition, x0: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """Teacher-forced KL of every latent dimension, mean over batch, time and entities, with its gradient: (latent,)."""
    x = torch.cat([x0[:, None], path[:, :-1]], 1).flatten(0, 1)
    step = transition.at(x)
    posterior, prior = step.posterior(path.flatten(0, 1)), step.prior
    return kl_divergence(posterior.base_dist, prior.base_dist).mean((0, 1))


@pytest.mark.parametrize("below", [0, 1, 2, 3])
def test_free_bits_take_the_gradient_of_the_dimensions_below_and_of_no_other(setup, below: int) -> None:
    """The threshold lies above the `below` smallest of the three KLs."""
    transition, x0, path = setup
    with torch.no_grad():
        per_dimension = divergences(transition, x0, path)
    edges = torch.cat([per_dimension.new_zeros(1), per_dimension.sort().values, per_dimension.max()[None] * 2])
    free_bits = float(edges[below : below + 2].mean())
    counted = per_dimension > free_bits
    assert int(counted.sum()) == MODEL.latent - below

    def run(**settings: float) -> tuple[float, dict[str, torch.Tensor]]:
        torch.manual_seed(2)
        loss = Objective(transition, Feedback.TEACHER)(x0, path, **settings)
        loss.loss.backward()
        assert float(loss.kl) == pytest.approx(float(per_dimension.sum()) * x0.shape[1], rel=1e-12)  # what is reported is never held back
        return float(loss.loss.detach()), gradients(transition)

    with_bits, without_kl = run(free_bits=free_bits, kl_weight=0.7), run(kl_weight=0.0)
    bits = float(torch.where(counted, per_dimension, free_bits).sum()) * x0.shape[1]
    assert with_bits[0] == pytest.approx(without_kl[0] + 0.7 * bits, rel=1e-12)
    (0.7 * x0.shape[1] * divergences(transition, x0, path)[counted].sum()).backward()
    expected = gradients(transition)
    difference = {name: with_bits[1][name] - without_kl[1][name] for name in without_kl[1]}
    for name, found in difference.items():
        torch.testing.assert_close(found, expected.get(name, torch.zeros_like(found)), rtol=1e-9, atol=1e-9, msg=name)
    assert (max(found.abs().max() for found in difference.values()) > 1e-3) == (below < MODEL.latent)


def test_free_bits_are_held_against_the_mean_over_processes(setup) -> None:
    transition, x0, path = setup
    shares = (lambda mean: mean, lambda mean: mean + 1e7)
    here, elsewhere = (Objective(transition)(x0, path, free_bits=1e6, share=share) for share in shares)
    bits = 1e6 * MODEL.latent * x0.shape[1]
    torch.testing.assert_close(here.loss.detach(), bits - here.log_likelihood)  # all below
    torch.testing.assert_close(elsewhere.loss.detach(), elsewhere.kl - elsewhere.log_likelihood)  # all above


# -- bounds along a path -----------------------------------------------------------------------------------------------------


def test_iwae_is_above_the_elbo(setup) -> None:
    """E[IWAE_k] grows with k from the ELBO at k = 1; 5 standard errors of differences, false-failure rate 1e-6 in all, seed fixed."""
    transition, x0, path = setup
    torch.manual_seed(3)
    with torch.no_grad():  # before training the guide is all but exact, and the bounds meet
        for parameter in transition.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x0, path = x0[:1].expand(400, -1, -1), path[:1].expand(400, -1, -1, -1)
    one, few, many = (path_bounds(transition, x0, path, num_samples=k).iwae for k in (1, 4, 32))
    elbo = path_bounds(transition, x0, path).elbo
    assert z_score(one - elbo) < 5
    assert z_score(elbo - one) < 5
    assert z_score(few - one) > 5
    assert z_score(many - few) > 5


def z_score(x: torch.Tensor) -> float:
    return float(x.mean() / x.std() * len(x) ** 0.5)


def test_bounds_are_sums_over_time(setup) -> None:
    transition, x0, path = setup
    whole = path_bounds(transition, x0, path)
    torch.testing.assert_close(whole.elbo, whole.log_likelihood - whole.kl)
    before = torch.cat([x0[:, None], path], 1)
    steps = [path_bounds(transition, before[:, t], path[:, t : t + 1]) for t in range(path.shape[1])]
    torch.testing.assert_close(sum(step.kl for step in steps), whole.kl)  # analytic, so without noise
    torch.manual_seed(5)
    batch = path_bounds(transition, x0[:1], path[:1])
    torch.manual_seed(5)
    torch.testing.assert_close(path_bounds(transition, before[0, :-1], path[0][:, None]).elbo.sum(), batch.elbo[0])


def test_blocks_change_nothing(setup, store: Store) -> None:
    """Torch draws Normal numbers in blocks of 16: pieces of that size see the noise that the whole sees."""
    transition, *_ = setup
    x = torch.as_tensor(store.read("train"))
    x0, path = x[:, 0], x[:, 1:4]
    whole, *others = (_bounds_with_seed(transition, x0, path, block_size) for block_size in (48, 32, 16))
    for bounds in others:
        for name, value in bounds._asdict().items():
            torch.testing.assert_close(value, getattr(whole, name), msg=name)
    kl = latent_kl(transition, x0, path)
    torch.testing.assert_close(latent_kl(transition, x0, path, block_size=5), kl)
    torch.testing.assert_close(kl.sum() * path.shape[1], whole.kl.mean())


def _bounds_with_seed(transition: Transition, x0: torch.Tensor, path: torch.Tensor, block_size: int) -> Bounds:
    torch.manual_seed(3)
    return path_bounds(transition, x0, path, block_size=block_size)


@pytest.mark.parametrize("block_size", [40, 4])
def test_the_block_size_bounds_what_the_networks_see(setup, block_size: int) -> None:
    transition, x0, path = setup
    seen = []
    transition.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[:-2].numel()))
    path_bounds(transition, x0, path, num_samples=10, block_size=block_size)
    assert max(seen) <= block_size
    assert sum(seen) == 10 * path.shape[:2].numel()


def test_log_density_is_the_log_prob_of_the_pyro_trace(setup) -> None:
    transition, x0, path = setup
    z = torch.randn(len(x0), path.shape[1], x0.shape[1], MODEL.latent, dtype=torch.float64)
    latents = {f"z_{t + 1}": z[:, t] for t in range(path.shape[1])}
    trace = poutine.trace(poutine.condition(EPNSModel(transition), data=latents)).get_trace(x0, path)
    found = log_density(transition, x0, path, z)
    assert found.shape == (len(x0),)
    torch.testing.assert_close(found.sum(), trace.log_prob_sum())
    torch.testing.assert_close(found[:1], log_density(transition, x0[:1], path[:1], z[:1]))
