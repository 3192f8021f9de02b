"""Compiled steps: one graph each, the same futures, bounds and gradients to rounding, and plain steps where there can be no graph."""

from __future__ import annotations

import copy
import pickle
import shutil
import warnings

import numpy as np
import pyro
import pytest
import torch
from worlds import context, particles, trajectories

from epns_pyro.inference import compiled
from epns_pyro.inference.compiled import CompiledBound, CompiledSampler
from epns_pyro.inference.elbo import Objective
from epns_pyro.inference.hidden import objective
from epns_pyro.inference.rollout import rollout_blocks
from epns_pyro.models import Feedback
from epns_pyro.models.bodies.particles import ParticlesConfig, ParticleTransition
from epns_pyro.models.transition import Carry
from epns_pyro.simulator import Simulator

MODELS = {
    "vector": {},
    "no integrator": {"integrator": None},
    "frames": {"backbone": {"name": "frames", "width": 8, "layers": 1}},
    "central": {"integrator": {"steps": 2, "network": {"name": "central"}}},
    "fusion": {"backbone": {"name": "fusion", "width": 8, "channels": 4, "layers": 1}},
    "fusion, quadrupoles": {"backbone": {"name": "fusion", "width": 8, "channels": 4, "layers": 1, "lmax": 2}},
    "mixture": {"emission": "mixture"},
    "turns": {"emission": {"name": "mixture", "turns": 3}},
    "shared latents": {"latents": "shared", "linear_path": False},
}


def model(name: str) -> ParticleTransition:
    small = {"backbone": {"name": "vector", "width": 8, "vectors": 4, "layers": 1}, "integrator": {"steps": 2}}
    return particles(context(world(name)), **small | MODELS[name]).eval()


def world(name: str) -> str:
    return "still plane" if name == "turns" else "celestial"


def futures(transition: ParticleTransition, members: int, name: str = "", **settings: object) -> np.ndarray:
    x0, _ = trajectories(context(world(name)))
    blocks = rollout_blocks(transition, x0, steps=3, members=members, seed=0, block_size=4, **settings)
    return np.concatenate([block.states.reshape(-1, *block.states.shape[2:]) for block in blocks])


@pytest.fixture(autouse=True)
def _forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_one_graph_and_its_futures_are_those_of_plain_steps(name: str) -> None:
    """The backend runs the graph without compiling it; without a fallback: a break in the graph would be an error."""
    transition, graphs = model(name), []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Dynamo|.*lru_cache")
        sampler = CompiledSampler(transition, backend=count)
        np.testing.assert_allclose(futures(transition, 5, name, sampler=sampler), futures(transition, 5, name), rtol=1e-9, atol=1e-12)
    assert sampler.compiled
    assert len(graphs) == 1  # blocks of 3 states, and of any other number but 1


def test_what_is_carried_is_carried_on() -> None:
    """The memory of a model goes through the graph: velocities that are inferred."""
    about = context("positions alone")
    assert about.spec.names == ("position",)
    transition = particles(about, integrator=None).eval()
    x0, _ = trajectories(about)
    with pyro.validation_enabled(False), torch.no_grad():
        sampler = CompiledSampler(transition, backend="eager")
        torch.manual_seed(0)
        here = sampler(sampler(transition.start(x0)))
        torch.manual_seed(0)
        there = compiled.sample_step(transition, compiled.sample_step(transition, transition.start(x0)))
    torch.testing.assert_close(here.x, there.x, rtol=1e-9, atol=1e-12)
    assert len(here.memory) == len(there.memory)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["a copy", "a pickle"])
def test_a_duplicate_samples_with_the_weights_of_its_own(duplicate) -> None:
    transition = model("no integrator")
    sampler = CompiledSampler(transition, backend="eager")
    before = futures(transition, 2, sampler=sampler)
    other = duplicate(sampler)
    with torch.no_grad():
        for weights in other.transition.parameters():
            weights.add_(0.1)
    found = futures(transition, 2, sampler=other)
    np.testing.assert_allclose(found, futures(other.transition, 2), rtol=1e-9, atol=1e-12)
    assert not np.allclose(found, before)


def test_a_compiled_simulator_has_the_same_programs(sim: Simulator) -> None:
    made = sim.compile()
    assert made.model is sim.model
    assert made.guide is sim.guide


def test_a_step_that_is_no_graph_is_sampled_plainly() -> None:
    class Asking(ParticleTransition):
        def step(self, carry: Carry):
            again = float(carry.x.abs().max()) > 1.0  # read off the state, in Python
            return super().step(super().step(carry).advance(self.spec.dynamic(carry.x)) if again else carry)

    torch.manual_seed(0)
    settings = {"width": 8, "integrator": None, "backbone": {"name": "vector", "width": 8}}
    transition = Asking(ParticlesConfig.parse(settings), context("celestial")).double().eval()
    sampler = CompiledSampler(transition, backend="eager")
    with pytest.warns(UserWarning, match="the step is not one graph .*: it is sampled without compiling"):
        found = futures(transition, 2, sampler=sampler)
    assert not sampler.compiled
    np.testing.assert_array_equal(found, futures(transition, 2))


def gradients(objective: Objective, x0: torch.Tensor, path: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    objective.zero_grad()
    draws = torch.Generator().manual_seed(3)
    noise = lambda like: torch.randn(like.shape, dtype=like.dtype, generator=draws)  # noqa: E731
    with pyro.validation_enabled(False):
        loss = objective(x0, path, kl_weight=0.5, noise=noise).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


@pytest.mark.parametrize("feedback", [Feedback.TEACHER, Feedback.PUSHFORWARD])
@pytest.mark.parametrize("name", MODELS)
def test_the_bound_of_a_step_is_one_graph_and_its_gradient_that_of_plain_steps(name: str, feedback: Feedback) -> None:
    transition, graphs = model(name).train(), []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    x0, path = trajectories(context(world(name)), steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Dynamo|.*lru_cache")
        bound = CompiledBound(transition, backend=count)
        here, there = (gradients(Objective(transition, feedback, one), x0, path) for one in (bound, None))
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    assert bound.compiled
    assert len(graphs) == 2  # the last step of a window feeds nothing back


def test_a_bound_that_is_no_graph_is_worked_out_plainly() -> None:
    class Asking(ParticleTransition):
        def step(self, carry: Carry):
            again = float(carry.x.abs().max()) > 0.0  # read off the state, in Python
            return super().step(Carry(carry.x.clone()) if again else carry)

    torch.manual_seed(0)
    settings = {"width": 8, "integrator": None, "backbone": {"name": "vector", "width": 8}}
    transition = Asking(ParticlesConfig.parse(settings), context("celestial")).double()
    x0, path = trajectories(context("celestial"))
    bound = CompiledBound(transition, backend="eager")
    with pytest.warns(UserWarning, match="the step is not one graph .*: training goes on without compiling"):
        found = gradients(Objective(transition, bound=bound), x0, path)
    assert not bound.compiled
    for one, other in zip(found, gradients(Objective(transition), x0, path), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_without_a_compiler_a_simulator_samples_as_before(sim: Simulator, monkeypatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler was found"):
        assert sim.compile().sampler is None
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler was found: training is not compiled"):
        objective(sim.transition, Feedback.TEACHER, compiled=True)


@pytest.mark.slow
@pytest.mark.skipif(compiled.find_compiler() is None, reason="needs a C++ compiler")
def test_a_compiled_simulator_samples_the_same_futures(sim: Simulator, x0: np.ndarray) -> None:
    fast = sim.compile()
    for members in (3, 1):
        here, there = (s.rollout(x0[:1], steps=4, members=members, seed=1) for s in (fast, sim))
        for name in ("position", "velocity"):
            np.testing.assert_allclose(here[name], there[name], rtol=1e-4, atol=1e-5)
    assert fast.sampler.compiled
