"""The map of a frame: symplectic at weights of order one, reversible, of second order, and without a trend of energy."""

from __future__ import annotations

import math

import pytest
import torch
from phase_space import about, canonical, draw_error, follow_gravity, in_phase_space, jacobian, states, symplectic, symplectic_error
from test_potentials import KINDS

from epns_pyro.backbones.bodies.base import safe_norm
from epns_pyro.models.symplectic.flow import Flow, Kick, gauss_nodes
from epns_pyro.models.symplectic.transition import SymplecticTransition

DETERMINISTIC = {"pair": KINDS["pair"], "pairwise": KINDS["pairwise"], "vector": KINDS["vector"]}


def pieces(kind: str, bodies: int = 3, steps: int = 4, size: float = 1.0, seed: int = 0, **settings):
    made = about(bodies)
    transition = symplectic(made, seed=seed, size=size, steps=steps, **DETERMINISTIC[kind], **settings)
    return transition, states(made, seed=seed)


# -- the symplectic form -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("bodies", [2, 3, 5])
@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_the_map_is_symplectic_at_random_weights_of_order_one(kind, bodies, steps):
    for seed in range(2):
        transition, x = pieces(kind, bodies, steps, seed=seed)
        matrix = jacobian(*in_phase_space(transition, x, lambda x, t=transition: t.at(x).h))
        assert symplectic_error(matrix) < 1e-12
        assert abs(float(torch.linalg.det(matrix)) - 1) < 1e-11
        assert float((matrix - torch.eye(len(matrix))).abs().max()) > 1e-2  # it is not the identity


def test_friction_scales_the_form_exactly():
    transition, x = pieces("pair", friction=True)
    with torch.no_grad():
        transition.raw_friction.fill_(1.0)
    factor = math.exp(-transition.friction.item() * transition.bodies.frame_dt)
    assert factor < 0.5
    assert draw_error(transition, x, factor=factor) < 1e-12
    assert draw_error(transition, x) > 1e-4


@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_every_draw_of_kicks_inside_the_map_is_symplectic(kind, nodes):
    transition, x = pieces(kind, noise={"name": "kicks", "nodes": nodes})
    assert draw_error(transition, x, torch.randn(3, 3 * nodes, dtype=torch.float64)) < 1e-12


class KicksByPlace(SymplecticTransition):
    """A defect: the size of a kick depends on where the other bodies are."""

    def sigma(self, x, mask=None):
        q = self.spec.get(x, "position")
        return super().sigma(x, mask) * safe_norm(q[..., :, None, :] - q[..., None, :, :]).mean(-1)


def test_a_kick_whose_size_depends_on_places_is_seen():
    made = about(3)
    transition = symplectic(made, kind=KicksByPlace, size=0.3, noise={"name": "kicks", "nodes": 1})
    x, z = states(made), torch.randn(3, 3, dtype=torch.float64)
    assert draw_error(transition, x, z) > 1e-3
    sound = symplectic(made, size=0.3, noise={"name": "kicks", "nodes": 1})
    assert draw_error(sound, x, z) < 1e-12


def test_a_kick_that_is_a_gradient_may_depend_on_places():
    """p += grad S(q), here of sum_ij xi_i . xi_j log(1 + |q_i - q_j|^2)."""
    q, p = torch.randn(2, 3, 3, dtype=torch.float64)
    xi = torch.randn(3, 3, dtype=torch.float64)

    def generator(q):
        return (xi @ xi.T * torch.log1p((q[:, None] - q[None]).square().sum(-1))).sum()

    def by_place(q):
        return xi * (q[:, None] - q[None]).square().sum(-1).sum(-1, keepdim=True)

    def step(flat, change):
        q, p = flat.view(2, 3, 3)
        return torch.cat([q.flatten(), (p + change(q)).flatten()])

    start = torch.cat([q.flatten(), p.flatten()])
    gradient = torch.autograd.functional.jacobian

    def kicked(flat):
        return step(flat, lambda q: gradient(generator, q, create_graph=True))

    assert symplectic_error(jacobian(kicked, start)) < 1e-14
    matrix = jacobian(lambda flat: step(flat, by_place), start)
    assert symplectic_error(matrix) > 1e-2  # although it depends on places only, and keeps volume
    assert abs(float(torch.linalg.det(matrix)) - 1) < 1e-12


# -- reversible, of second order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_flipping_velocities_runs_the_map_backward(kind):
    transition, x = pieces(kind)
    flow, (q, v) = transition.flow(x), transition.phase(x)
    there, then = flow(q, v)
    back, again = flow(there, -then)
    torch.testing.assert_close(back, q, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(-again, v, rtol=1e-12, atol=1e-12)


def test_halving_the_sub_step_divides_the_error_by_four():
    made = about(3)
    x = states(made)
    ends = {}
    for steps in (8, 16, 256):
        transition = follow_gravity(symplectic(made, steps=steps), 1.0, 0.5)
        transition.bodies.frame_dt = 1.0
        ends[steps] = torch.cat(transition.flow(x)(*transition.phase(x))).detach()
    coarse, fine = (float((ends[steps] - ends[256]).abs().max()) for steps in (8, 16))
    assert 3.8 < coarse / fine < 4.3


def test_free_flight_is_exact_and_kicks_act_from_their_times_on():
    made = about(2)
    transition, x = symplectic(made, size=0.0, steps=3), states(made)
    flow, (q, v) = transition.flow(x), transition.phase(x)
    change = torch.randn_like(v)
    end, velocity = flow(q, v, [Kick(0.4, change)])
    torch.testing.assert_close(end, q + 0.1 * v + 0.06 * change)
    torch.testing.assert_close(velocity, v + change)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_gauss_nodes_have_the_moments_of_white_noise(count):
    nodes, weights = (torch.tensor(part, dtype=torch.float64) for part in gauss_nodes(count))
    for degree in range(2 * count):
        assert math.isclose(float(weights @ (1 - nodes) ** degree), 1 / (degree + 1), rel_tol=1e-12)
    short = float(weights @ (1 - nodes) ** (2 * count)) - 1 / (2 * count + 1)
    assert abs(short) > 1e-5


# -- symmetry and what is conserved -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_the_map_is_equivariant_from_raw_states(kind):
    transition, x = pieces(kind)
    flow, (q, v) = transition.flow(x), transition.phase(x)
    turn, order = -torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q, torch.tensor([2, 0, 1])
    end, velocity = flow(q, v)
    there, then = transition.flow(x[order])(q[order] @ turn.T + 5.0, v[order] @ turn.T)
    scale = float(end.abs().max())
    torch.testing.assert_close(there, end[order] @ turn.T + 5.0, rtol=1e-12, atol=1e-12 * scale)
    torch.testing.assert_close(then, velocity[order] @ turn.T, rtol=1e-12, atol=1e-12 * float(velocity.abs().max()))


def test_pairs_keep_total_momentum():
    transition, x = pieces("pair", bodies=5, steps=10)
    _, velocity = transition.flow(x)(*transition.phase(x))
    mass = transition.potential.masses(x)[:, None]
    before, after = ((mass * v).sum(0) for v in (transition.phase(x)[1], velocity))
    assert float((after - before).abs().max()) < 1e-14 * float((mass * velocity).abs().max())
    assert float((velocity - transition.phase(x)[1]).abs().max()) > 1e-2


PERIODS = [300, pytest.param(10_000, marks=pytest.mark.slow)]


def energies(periods: int, leak: float = 0.0) -> torch.Tensor:
    """Relative energy of two bodies of masses 1 about each other at every period; `leak` adds a correction to places after a frame."""
    made = about(2)
    transition = follow_gravity(symplectic(made), 1.0, 0.05)
    x = states(made)
    x[..., made.spec.slice("mass")] = 1.0
    landscape, mass = transition.potential.at(x), torch.ones(2, dtype=torch.float64)
    period = 2 * math.pi / math.sqrt(2.0)  # about: separation 1, total mass 2
    flow = Flow(landscape, mass, period, 16)
    q = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]], dtype=torch.float64)
    v = torch.tensor([[0.0, 0.6, 0.1], [0.0, -0.6, -0.1]], dtype=torch.float64)
    seen = []
    with torch.no_grad():
        for _ in range(periods):
            q, v = flow(q, v)
            q = q + leak * landscape.forces(q) if leak else q
            seen.append(landscape.energy(q) + 0.5 * v.square().sum())
    return torch.stack(seen)


def slope_per_thousand(energy: torch.Tensor) -> float:
    """Change of the energy per 1,000 periods, in its amplitude."""
    time = torch.arange(len(energy), dtype=torch.float64)
    time = (time - time.mean()) / 1000
    return float((time * energy).sum() / time.square().sum() / (energy.max() - energy.min()))


@pytest.mark.parametrize("periods", PERIODS)
def test_the_energy_of_two_bodies_has_no_trend_over_many_periods(periods):
    energy = energies(periods)
    assert float(energy.max() - energy.min()) < 0.2 * float(energy.abs().mean())
    error = math.sqrt(12) / (periods / 1000) / math.sqrt(periods)  # of a slope fitted to noise, generously
    assert abs(slope_per_thousand(energy)) < max(1e-3, error)


def test_a_correction_after_the_map_lets_energy_drift():
    assert abs(slope_per_thousand(energies(300, leak=1e-3))) > 1.0


def test_the_canonical_form_is_a_complex_structure():
    J = canonical(3)
    torch.testing.assert_close(J @ J, -torch.eye(6, dtype=torch.float64))
