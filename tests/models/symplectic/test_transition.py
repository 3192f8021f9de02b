"""The symplectic transition: its start, its densities beside closed forms, its guide, energy along runs, and the data that it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from phase_space import DT, about, follow_gravity, states, symplectic

from epns_pyro.conditioning.gaussian import require_normal
from epns_pyro.durations import with_duration
from epns_pyro.errors import ConfigError
from epns_pyro.inference.elbo import Objective, path_bounds
from epns_pyro.inference.rollout import rollout_blocks
from epns_pyro.models.symplectic.transition import FASTER, SymplecticConfig
from epns_pyro.state import Field, StateSpec
from epns_pyro.systems import NBodyConfig

GRADES = ("free-flight", "body", "system")
NOISES = [*({"name": "covariance", "grade": grade} for grade in GRADES), *({"name": "kicks", "nodes": n} for n in (1, 2, 3))]


def fresh(context, **settings):
    torch.manual_seed(0)
    return SymplecticConfig.parse(settings).build(context).double()


def log_prob(transition, x, x_next):
    """log p(x' | x) of a transition without latents: (*batch,)."""
    step = transition.at(x)
    law, value = step.observe(step.emission(step.prior.sample()), x_next)
    return law.log_prob(value)


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_before_training_bodies_move_freely_with_the_noise_of_the_data(noise):
    context = about(3)
    transition, x = fresh(context, noise=noise), states(context, batch=4000)
    step = transition.at(x)
    torch.testing.assert_close(step.h, transition.bodies.persistence(x))
    with torch.no_grad():
        error = step.emission(step.prior.sample()).sample() - step.h
    velocity = transition.spec.get_dynamic(error, "velocity")
    assert 0.85 < float(velocity.std()) / context.step_scales["velocity"] < 1.1


def white_noise_covariance(sigma: float = 1.0) -> torch.Tensor:
    """Covariance of position and velocity of one body along one axis after a frame of free flight."""
    return sigma**2 * torch.tensor([[DT**3 / 3, DT**2 / 2], [DT**2 / 2, DT]], dtype=torch.float64)


def quiet(transition):
    """Take away the error of a recording, as far as it goes."""
    with torch.no_grad():
        transition.log_spread.fill_(-50.0)
    return transition


@pytest.mark.parametrize("noise", NOISES[:3], ids=str)
def test_in_free_flight_every_grade_has_the_covariance_of_white_noise(noise):
    context = about(5)
    transition, x = quiet(symplectic(context, size=0.0, noise=noise, steps=3)), states(context)
    step = transition.at(x)
    with torch.no_grad():
        draws = step.emission(step.prior.sample()).sample((20_000,)) - step.h
        wanted = white_noise_covariance() * float(step.sigma[0]) ** 2
    for body in (0, 4):
        error = draws[:, body].unflatten(-1, (2, 3)).transpose(0, 1).flatten(1)
        torch.testing.assert_close(torch.cov(error), wanted, rtol=0.05, atol=0)


def test_a_coupled_density_is_better_by_the_logarithm_of_two_per_body_and_axis():
    """-0.5 log(1 - 3/4), the correlation of position and velocity in free flight being sqrt(3) / 2: 10.40 nats for 5 bodies in 3D."""
    context = about(5)
    transition, x = quiet(symplectic(context, size=0.0, noise=NOISES[0])), states(context, batch=20_000)
    with torch.no_grad():
        step = transition.at(x)
        law = step.emission(step.prior.sample())
        y = law.sample()
        coupled = law.log_prob(y).mean()
        diagonal = torch.distributions.Normal(law.mean, law.base_dist.variance.sqrt()).log_prob(y).sum((-2, -1)).mean()
    assert math.isclose(float(coupled - diagonal) / 15, math.log(2), rel_tol=0.01)


def test_two_kicks_at_gauss_nodes_have_this_covariance_and_one_has_no_volume():
    context, wanted = about(1), white_noise_covariance()
    for nodes in (1, 2, 3):
        transition = symplectic(context, size=0.0, noise={"name": "kicks", "nodes": nodes})
        step = transition.at(states(context))
        size = float(step.sigma[0])
        z = torch.eye(3 * nodes, dtype=torch.float64)[:, None]  # one latent at a time
        ways = (step.emission(z).mean - step.h)[:, 0].detach()
        found = (ways.T @ ways / size**2).unflatten(0, (2, 3)).unflatten(2, (2, 3))[:, 0, :, 0]
        if nodes == 1:
            assert abs(float(torch.linalg.det(found))) < 1e-16
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


# -- beside a process that is known -----------------------------------------------------------------------------------------------

CELESTIAL = NBodyConfig(dt=0.005, sigma=0.1).build()


def celestial(noise: dict, steps: int = 20):
    """A transition that follows the law of the celestial system, and 40 of its transitions."""
    context = replace(about(5, scales={"mass": 4.0, "position": 2.0, "velocity": 1.5}), spec=CELESTIAL.spec.with_scales({"mass": 4.0}))
    transition = symplectic(context, noise=noise, steps=steps)
    config = CELESTIAL.config
    follow_gravity(transition, config.gravitational_constant, config.softening, config.sigma)
    x = CELESTIAL.simulate(CELESTIAL.initial(40, np.random.default_rng(0)), 1, np.arange(40, dtype=np.uint64))
    return quiet(transition), torch.as_tensor(x[:, 0]), torch.as_tensor(x[:, 1])


def test_the_density_of_the_whole_system_is_that_of_the_true_process():
    """Exact up to the steps: the simulator kicks at 20 times, its oracle too."""
    transition, x, x_next = celestial({"name": "covariance", "grade": "system"})
    oracle = CELESTIAL.transition_log_prob(x.numpy(), x_next.numpy())
    with torch.no_grad():
        found = log_prob(transition, x, x_next).numpy()
    assert abs(np.mean(found - oracle)) < 0.1
    assert np.abs(found - oracle).max() < 3


def test_grades_are_ordered_as_what_they_know():
    """On transitions of the true process: all bodies together, then one at a time, then no forces."""
    scores = []
    for noise in NOISES[:3]:
        transition, x, x_next = celestial(noise)
        with torch.no_grad():
            scores.append(float(log_prob(transition, x, x_next).mean()))
    free, body, system = scores
    assert free < body + 0.02
    assert body < system + 0.02
    assert system - free < 3  # most steps are nearly free


@pytest.mark.parametrize("nodes", [2, 3])
def test_the_bound_with_kicks_comes_near_the_exact_density(nodes):
    """The guide has no weights to learn: it solves for the kicks. What is left is s, and that its Normal law is that of free flight."""
    transition, x, x_next = celestial({"name": "kicks", "nodes": nodes})
    with torch.no_grad():
        transition.log_spread.fill_(math.log(0.02) / FASTER)
        bounds = path_bounds(transition, x, x_next[:, None], num_samples=64)
    oracle = CELESTIAL.transition_log_prob(x.numpy(), x_next.numpy())
    gap = float(np.mean(oracle - bounds.iwae.numpy()))
    assert -0.2 < gap < 2.0


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_every_weight_that_acts_has_a_gradient(noise):
    context = about(3)
    transition, x = symplectic(context, size=0.3, noise=noise, friction=True), states(context, batch=4)
    following = transition.spec.advance(x, transition.bodies.persistence(x) + 0.1)
    Objective(transition)(x, following[:, None]).loss.backward()
    for name, parameter in transition.named_parameters():
        if not parameter.numel():  # there are no attributes of pairs
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_gradient_of_the_noise_is_that_of_the_marginal_density():
    """With kicks the bound is the density in free flight: so is its derivative by the sizes of the noise."""
    context = about(2)
    exact, kicks = (symplectic(context, size=0.0, noise=noise) for noise in (NOISES[0], NOISES[4]))
    for transition in (exact, kicks):
        for parameter in transition.sigma_net.parameters():
            torch.nn.init.zeros_(parameter)
    x = states(context, batch=200)
    with torch.no_grad():
        step = exact.at(x)
        following = exact.spec.advance(x, step.emission(step.prior.sample()).sample())
    slopes = []
    for transition in (exact, kicks):
        with torch.no_grad():
            transition.log_sigma.fill_(0.4 / FASTER)
            transition.log_spread.copy_(torch.tensor([-1.0, -1.5]) / FASTER)
        torch.manual_seed(0)
        loss = torch.stack([Objective(transition)(x, following[:, None]).loss for _ in range(40)]).mean()
        slopes.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [transition.log_sigma, transition.log_spread])]))
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0.1, atol=0.1 * FASTER)


# -- energy -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [{"name": "kicks", "nodes": 2}, {"name": "covariance", "grade": "system"}], ids=str)
def test_noise_heats_at_the_exact_rate(noise):
    """d<E>/dt = (3/2) sum m sigma^2; without noise nothing is gained. Total momentum diffuses with sum m^2 sigma^2 t per axis."""
    context, members, frames, sigma = about(3), 600, 150, 0.05
    transition = quiet(follow_gravity(symplectic(context, noise=noise, steps=5), 1.0, 0.5, sigma))
    spec, x = transition.spec, states(context)
    mass, landscape = spec.get(x, "mass"), transition.potential.at(x)

    def energy(states: torch.Tensor) -> torch.Tensor:
        kinetic = 0.5 * (mass * spec.get(states, "velocity").square().sum(-1)).sum(-1)
        return kinetic + landscape.energy(spec.get(states, "position"))

    with torch.no_grad():
        (block,) = rollout_blocks(transition, x[None], steps=frames, members=members, seed=1, block_size=members)
        path = torch.as_tensor(block.states)[:, 0]  # (sample, time, body, channel)
        gained = energy(path[:, -1]) - energy(path[:, 0])
        time = frames * DT
        rate, error = float(gained.mean()) / time, float(gained.std()) / math.sqrt(members) / time
        wanted = 1.5 * float(mass.sum()) * sigma**2
        assert error < 0.2 * wanted
        assert abs(rate - wanted) < 3 * error + 0.01 * wanted
        momentum = (mass[:, None] * spec.get(path[:, -1], "velocity")).sum(-2)
        spread = float((momentum - momentum.mean(0)).square().mean())
        assert math.isclose(spread, float(mass.square().sum()) * sigma**2 * time, rel_tol=0.15)
        still = x[None]
        for _ in range(frames):
            still = spec.advance(still, transition.at(still).h)
        assert abs(float(energy(still)[0] - energy(x))) < 0.05 * wanted * time


# -- what it takes and what it refuses ----------------------------------------------------------------------------------------------


def test_friction_slows_bodies_down_and_is_off_by_default():
    context = about(2)
    assert fresh(context).friction is None
    transition, x = symplectic(context, size=0.0, friction=True), states(context)
    with torch.no_grad():
        transition.raw_friction.fill_(2.0)
    velocity = transition.spec.get_dynamic(transition.at(x).h, "velocity")
    torch.testing.assert_close(velocity, transition.spec.get(x, "velocity") * torch.exp(-transition.friction * DT))


def test_frames_may_last_differently_and_the_law_does_not_depend_on_it():
    """Two frames of half the length, in half as many sub-steps each, are one frame."""
    context = about(3)
    timed = replace(context, spec=with_duration(context.spec, DT))
    one, half = (symplectic(timed, size=0.3, steps=steps, noise="kicks") for steps in (8, 4))
    half.load_state_dict(one.state_dict())
    x = timed.spec.pack(**{f.name: context.spec.get(states(context), f.name) for f in context.spec.fields}, duration=torch.full((3,), DT))
    short = timed.spec.pack(**{f.name: timed.spec.get(x, f.name) for f in context.spec.fields}, duration=torch.full((3,), DT / 2))
    with torch.no_grad():
        middle = timed.spec.advance(short, half.at(short).h)
        torch.testing.assert_close(half.at(middle).h, one.at(x).h, rtol=1e-12, atol=1e-12)
    for noise in NOISES:
        transition = symplectic(timed, size=0.0, noise=noise)
        with torch.no_grad():
            law = [transition.at(at).emission(transition.at(at).prior.mean) for at in (x, short)]
            spread = [float(one.sample((4000,)).sub(one.mean)[..., 3:].std()) for one in law]
        if noise["name"] == "covariance":
            assert 0.65 < spread[1] / spread[0] < 0.76  # the root of one half


def test_where_the_data_have_no_masses_all_bodies_weigh_the_same():
    context = about(3, mass=False, space=2)
    transition, x = symplectic(context), states(context)
    assert (transition.potential.masses(x) == 1).all()
    assert transition.at(x).h.isfinite().all()


def test_the_order_of_the_fields_does_not_matter():
    context = about(3)
    mass, position, velocity = context.spec.fields
    other = replace(context, spec=StateSpec((velocity, position, mass)))
    x = states(context)
    turned = other.spec.pack(**{f.name: context.spec.get(x, f.name) for f in context.spec.fields})
    for noise in NOISES:
        one, two = (symplectic(c, size=0.5, noise=noise) for c in (context, other))
        two.load_state_dict(one.state_dict())
        with torch.no_grad():
            for spread in (one.log_spread, two.log_spread):
                spread.fill_(-1.0 / FASTER)
            z = torch.randn_like(one.at(x).prior.mean)
            following = one.spec.advance(x, one.at(x).h + 0.1)
            swapped = other.spec.pack(**{f.name: context.spec.get(following, f.name) for f in context.spec.fields})
            scores = []
            for transition, start, end in ((one, x, following), (two, turned, swapped)):
                law, value = transition.at(start).observe(transition.at(start).emission(z), end)
                scores.append(law.log_prob(value))
        torch.testing.assert_close(*scores, rtol=1e-9, atol=1e-9)


def test_absent_bodies_change_nothing_for_the_law_of_the_whole_system():
    context = replace(about(4), absences=True)
    transition = symplectic(context, size=0.5, noise={"name": "covariance", "grade": "system"})
    x = states(context)
    following = transition.spec.advance(x, transition.at(x).h.detach() + 0.1)
    gone = torch.tensor([2])
    for absent in ((x,), (x, following), (following,)):
        start, end = x.clone(), following.clone()
        for states_ in absent:
            target = start if states_ is x else end
            for name in ("position", "velocity"):
                target[gone, transition.spec.slice(name)] = torch.nan
        found = log_prob(transition, start, end)
        assert found.isfinite()
        if len(absent) == 2:
            left = [0, 1, 3]
            torch.testing.assert_close(found, log_prob(transition, x[left], following[left]), rtol=1e-9, atol=1e-9)


def test_a_state_that_has_left_all_bounds_makes_no_exception():
    context = about(3)
    for noise in NOISES:
        transition, x = symplectic(context, noise=noise), states(context)
        x[..., transition.spec.slice("position")] = torch.inf
        with torch.no_grad(), pyro.validation_enabled(False):  # as runs are sampled
            step = transition.at(x)
            assert not step.emission(step.prior.sample()).sample().isfinite().all()


REFUSED = {
    "no velocity": ((Field("position", "1o", translates=True),), "found the dynamic fields position"),
    "a temperature": (
        (Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position"), Field("temperature")),
        "found the dynamic fields position, velocity, temperature",
    ),
    "differences": (
        (Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position", differences=True)),
        "velocity is computed or inferred: use model 'particles'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_data_are_refused_in_one_line(case):
    fields, words = REFUSED[case]
    context = replace(about(3), spec=StateSpec(fields), step_scales={f.name: 0.1 for f in fields})
    with pytest.raises(ConfigError, match=words) as caught:
        fresh(context)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("noise", NOISES[:3], ids=str)
def test_the_filter_knows_these_laws(noise):
    """A law as one Normal distribution of a flattened state scores as the law itself does."""
    context = about(3)
    transition, x = symplectic(context, size=0.3, noise=noise), states(context, batch=2)
    with torch.no_grad():
        step = transition.at(x)
        law = step.emission(step.prior.sample())
        y = law.sample()
        flat = require_normal(law)
        score = torch.distributions.MultivariateNormal(flat.mean, scale_tril=flat.factor).log_prob(y.flatten(-2))
    torch.testing.assert_close(score, law.log_prob(y))
