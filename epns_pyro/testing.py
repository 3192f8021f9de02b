"""Contract tests of systems, backbones and transitions, as functions: the package's tests use them, and yours can.

    from epns_pyro.testing import check_backbone, check_system, check_transition

    def test_my_backbone():
        check_backbone(MyBackboneConfig(width=8))

Each builds a small example from a config, in double precision, and raises ContractError with every broken property, one per line.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, reduce

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from epns_pyro.backbones import Backbone, BackboneConfig, Features, Signature
from epns_pyro.context import DataContext
from epns_pyro.inference.elbo import Objective
from epns_pyro.models import EPNSGuide, EPNSModel, Transition, TransitionConfig
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Euclidean, Group, density_invariance_error, equivariance_error
from epns_pyro.systems import SYSTEMS, System, SystemConfig

TOLERANCE = 1e-9  # relative; with single precision anywhere the error is 1e-8 or more
BODIES = 5
# Raw states for backbones: two scalars, a position, and two more vectors.
BODY_FIELDS = (Field("mass"), Field("charge"), Field("position", "1o", translates=True), Field("velocity", "1o"), Field("spin", "1o"))

Density = Callable[[Tensor, Tensor, Tensor], Tensor]


class ContractError(AssertionError):
    """Names the broken properties, one per line."""


class _Promises:
    """Collects broken properties, so that one run shows all of them."""

    def __init__(self, whose: str) -> None:
        self._whose, self._broken = whose, list[str]()

    def require(self, holds: bool | np.bool_, promise: str, found: object = "") -> None:
        if not holds:
            self._broken.append(f"{promise}: found {found}" if str(found) else promise)

    def close(self, found: Tensor, expected: Tensor, promise: str) -> None:
        same = found.shape == expected.shape and torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        self.require(same, promise)

    def settle(self) -> None:
        if self._broken:
            raise ContractError(f"{self._whose}: {len(self._broken)} broken:\n" + "\n".join(f"- {line}" for line in self._broken))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# -- backbones ---------------------------------------------------------------------------------------------------------------


def check_backbone(config: BackboneConfig, *, space: int = 3, seed: int = 0) -> None:
    """Check that a backbone on bodies fulfils its contract.

    Shapes, any number of batch dimensions, independence of the members of a batch, a gradient for every parameter that is finite even
    where bodies coincide, weights that state_dict restores, and, if it declares `equivariant`, equivariance under translations, rotations,
    reflections and permutations of raw states.

    Parameters
    ----------
    config : BackboneConfig
        Small settings make a fast test.
    space : int
        Dimension of space.
    seed : int
        Seed of weights and states.

    Raises
    ------
    ContractError
        With every broken property.
    """
    promises, spec = _Promises(f"backbone {config.name!r}"), StateSpec(BODY_FIELDS, space=space)
    signature = Signature(in_scalars=2, in_vectors=2, out_scalars=3, out_vectors=2, space=space, bodies=BODIES)

    def build(number: int) -> Backbone:
        with _seeded(number):
            return config.build(signature).double()

    network, x = build(seed), torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, BODIES, spec.channels)))

    def result(name: str, x: Tensor) -> Tensor:
        return evaluate_backbone(network, x, spec)[name]

    out = evaluate_backbone(network, x, spec)
    shapes = {"scalars": (2, 3, BODIES, 3), "vectors": (2, 3, BODIES, 2 * space)}
    for name, shape in shapes.items():
        promises.require(
            tuple(out[name].shape) == shape, f"{name} have the shape {shape} (batch, batch, body, channel)", tuple(out[name].shape)
        )
    promises.settle()  # the other tests need the right shapes
    for name in shapes:
        promises.close(result(name, x[1, 2]), out[name][1, 2], f"{name} do not depend on the batch")
        if network.equivariant:
            fields = RESULT_FIELDS[name]
            error = equivariance_error(
                partial(result, name),
                x[0],
                Euclidean(space, translation_scale=1e3),
                act_in=spec.act,
                act_out=StateSpec(fields, space=space).act,
                samples=4,
            ).maximum
            promises.require(error < TOLERANCE, f"{name} are equivariant to {TOLERANCE:g}", f"{error:.2g}")
    together = x.clone()
    together[..., :2, spec.slice("position")] = 0.0
    for what, states in (("ordinary states", x), ("two bodies in one place", together)):
        network.zero_grad()
        reduce(torch.add, (value.square().sum() for value in evaluate_backbone(network, states, spec).values())).backward()
        for key, parameter in network.named_parameters():
            finite = parameter.grad is not None and bool(parameter.grad.isfinite().all())
            promises.require(finite, f"parameter {key} has a finite gradient for {what}")
    other = build(seed + 1)
    other.load_state_dict(network.state_dict())
    for name, value in evaluate_backbone(other, x, spec).items():
        promises.close(value, out[name], f"{name} are the same after load_state_dict")
    promises.settle()


RESULT_FIELDS = {"scalars": tuple(Field(f"s{i}") for i in range(3)), "vectors": tuple(Field(f"v{i}", "1o") for i in range(2))}


def evaluate_backbone(network: Backbone, x: Tensor, spec: StateSpec) -> dict[str, Tensor]:
    """Evaluate a backbone on raw states of BODY_FIELDS: its scalars and vectors as channels, each (*batch, body, channel)."""
    scalars = torch.stack([spec.get(x, "mass"), spec.get(x, "charge")], -1)
    vectors = torch.stack([spec.get(x, "velocity"), spec.get(x, "spin")], -2)
    out = network(spec.get(x, "position"), Features(scalars, vectors))
    return {"scalars": out.scalars, "vectors": out.vectors.flatten(-2)}


# -- transitions -------------------------------------------------------------------------------------------------------------


def check_transition(
    config: TransitionConfig, system: System, *, context: DataContext | None = None, x: np.ndarray | None = None, seed: int = 0
) -> None:
    """Check that a transition fulfils its contract, on states of a system.

    Distributions of the right shapes for any number of batch dimensions, independent trajectories, a finite objective with a finite
    gradient, weights that state_dict restores, and log p(g x, g z | g x_0) = log p(x, z | x_0) for every g of the
    symmetry of the system, for model and guide, with fresh weights and after a few steps of training.

    Parameters
    ----------
    config : TransitionConfig
        Small settings make a fast test.
    system : System
    context : DataContext, optional
        By default measured on the trajectories.
    x : (batch, time, *site, channel), optional
        At least two trajectories of at least three frames; by default simulated.
    seed : int

    Raises
    ------
    ContractError
        With every broken property.
    """
    promises = _Promises(f"model {config.name!r} on {system.name!r}")
    states = as_double(sample_trajectories(system, seed=seed) if x is None else x)[:, :3]
    context = context or measure_context(system, states.numpy())

    def build(number: int) -> Transition:
        with _seeded(number):
            return config.build(context).double()

    transition = build(seed)
    _check_laws(promises, transition, states, seed)
    for when in ("with fresh weights", "after training"):
        if when == "after training":
            train_a_little(transition, states, promises)
        for group in far_groups(system):
            for kind, program in (("model", EPNSModel(transition)), ("guide", EPNSGuide(transition))):
                error = invariance_error(log_density(program), transition, group, states, seed=seed)
                promises.require(error <= TOLERANCE, f"the density of the {kind} is invariant to {TOLERANCE:g} {when}", f"{error:.2g}")
    other, z = build(seed + 1), draw_latents(transition, states, seed)
    other.load_state_dict(transition.state_dict())
    scores = [log_density(EPNSModel(t))(states[:, 0], states[:, 1:], z) for t in (transition, other, copy.deepcopy(transition))]
    promises.require(torch.equal(scores[0], scores[1]), "the density is the same after load_state_dict")
    promises.require(torch.equal(scores[0], scores[2]), "the density is the same after copy.deepcopy")
    promises.settle()


def _check_laws(promises: _Promises, transition: Transition, x: Tensor, seed: int) -> None:
    spec, now, after = transition.spec, x[:, :2], x[:, 1:3]
    batch, y = tuple(now.shape[:2]), spec.dynamic(after)
    step = transition.at(now)
    z = draw_latents(transition, x, seed)
    laws = {"prior": step.prior, "posterior": step.posterior(after), "emission": step.emission(z)}
    for name, law in laws.items():
        promises.require(tuple(law.batch_shape) == batch, f"the {name} has one law per state, batch {batch}", tuple(law.batch_shape))
    promises.require(len(step.prior.event_shape) == 2, "latents are (entity, latent)", tuple(step.prior.event_shape))
    promises.require(step.prior.event_shape == laws["posterior"].event_shape, "prior and posterior have the same latents")
    event = tuple(laws["emission"].event_shape)
    promises.require(event == tuple(y.shape[2:]), f"the emission has the dynamic channels {tuple(y.shape[2:])}", event)
    one = transition.at(now[1, 1])
    promises.close(one.prior.log_prob(z[1, 1]), step.prior.log_prob(z)[1, 1], "the prior does not depend on the batch")
    apart = one.posterior(after[1, 1]).log_prob(z[1, 1])
    promises.close(apart, laws["posterior"].log_prob(z)[1, 1], "the posterior does not depend on the batch")
    apart = one.emission(z[1, 1]).log_prob(y[1, 1])
    promises.close(apart, laws["emission"].log_prob(y)[1, 1], "the emission does not depend on the batch")


def train_a_little(transition: Transition, x: Tensor, promises: _Promises | None = None) -> None:
    """Take three optimiser steps on paths x (batch, time, *site, channel)."""
    optimizer = torch.optim.Adam(transition.parameters(), lr=1e-2)
    with _seeded(0):
        for _ in range(3):
            optimizer.zero_grad()
            loss = Objective(transition)(x[:, 0], x[:, 1:]).loss
            loss.backward()
            gradients = [parameter.grad for parameter in transition.parameters() if parameter.grad is not None]
            if promises:
                promises.require(bool(loss.isfinite()), "the objective is finite", loss.item())
                promises.require(all(bool(g.isfinite().all()) for g in gradients), "the gradient of the objective is finite")
            optimizer.step()


def log_density(program: EPNSModel | EPNSGuide) -> Density:
    """Return log p(x, z | x_0), or log q(z | x), of every trajectory as a function of x_0, path and z, computed with a Pyro trace."""

    def density(x0: Tensor, path: Tensor, z: Tensor) -> Tensor:
        data = {f"z_{t + 1}": z[:, t] for t in range(path.shape[1])}
        trace = poutine.trace(poutine.condition(program, data=data)).get_trace(x0, path)
        trace.compute_log_prob()
        return reduce(torch.add, (site["log_prob"] for name, site in trace.nodes.items() if name[:2] in ("x_", "z_", "e_")))

    return density


def draw_latents(transition: Transition, x: Tensor, seed: int = 1) -> Tensor:
    """Sample standard Normal latents for every transition of x (batch, time, *site, channel): (batch, time - 1, entity, latent)."""
    with torch.no_grad():
        event = transition.at(x[:, 0]).prior.event_shape
    return torch.randn(len(x), x.shape[1] - 1, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def invariance_error(density: Density, transition: Transition, group: Group, x: Tensor, *, seed: int = 1) -> float:
    """Return the largest violation of log p(g x, g z | g x_0) = log p(x, z | x_0), relative, over random elements of a group."""
    z, fields = draw_latents(transition, x, seed), transition.latent_fields
    return density_invariance_error(density, transition.spec, x[:, 0], x[:, 1:], z, group, latent_fields=fields, samples=3).maximum


def far_groups(system: System) -> list[Group]:
    """Return the symmetry of the system and, if it has translations, the same with large translations."""
    symmetry = system.symmetry
    if isinstance(symmetry, Euclidean) and symmetry.translation_scale:
        return [symmetry, replace(symmetry, translation_scale=1e3)]
    return [symmetry]


# -- systems -----------------------------------------------------------------------------------------------------------------


def check_system(config: SystemConfig, *, x: np.ndarray | None = None, seed: int = 0) -> None:
    """Check that a system fulfils its contract.

    It is registered and its config can be written to YAML and read again. If it has a simulator: trajectories start from their initial
    states, static fields are constant, and a trajectory depends only on its seed, not on the number of workers or on other trajectories.
    Observables are finite, one number per frame. `alive` never becomes True again, is False where a number is not finite, and is the same
    for every element of the symmetry. The oracle, if any, scores every transition independently and is invariant.

    Parameters
    ----------
    config : SystemConfig
    x : (batch, time, *site, channel), optional
        Plausible trajectories, at least two of at least three frames; by default simulated.
    seed : int

    Raises
    ------
    ContractError
        With every broken property.
    """
    promises, system = _Promises(f"system {config.name!r}"), config.build()
    plain = config.model_dump(mode="json")
    promises.require(config.name in SYSTEMS.names, f"it is registered: @SYSTEMS.register({config.name!r})")
    promises.require(type(config).parse(plain) == config, "its config is the same after it was written and read")
    promises.require(system.frame_dt > 0, "frame_dt is positive", system.frame_dt)
    if system.can_simulate:
        _check_simulation(promises, system, seed)
    x = sample_trajectories(system, seed=seed) if x is None else np.asarray(x)
    _check_observables(promises, system, x)
    _check_symmetry(promises, system, x, np.random.default_rng(seed))
    if system.has_oracle:
        now, after = x[:, :-1], x[:, 1:]
        scores = system.transition_log_prob(now, after)
        promises.require(scores.shape == now.shape[:2], "the oracle gives one number per transition", scores.shape)
        promises.require(np.isfinite(scores).all(), "the oracle is finite on simulated transitions")
        alone = system.transition_log_prob(now[1, 1], after[1, 1])
        promises.require(np.allclose(alone, scores[1, 1], rtol=TOLERANCE), "the oracle scores every transition by itself")
    promises.settle()


def _check_simulation(promises: _Promises, system: System, seed: int) -> None:
    spec, n, steps = system.spec, 3, 3
    x0, again = (system.initial(n, np.random.default_rng(seed)) for _ in range(2))
    seeds = np.arange(seed, seed + n, dtype=np.uint64)
    x = system.simulate(x0, steps, seeds, workers=1)
    promises.require(np.array_equal(x0, again), "initial states follow from the generator")
    promises.require(x.shape == (n, steps + 1, *x0.shape[1:]), f"simulate gives {(n, steps + 1, *x0.shape[1:])}", x.shape)
    promises.require(np.array_equal(x[:, 0], x0), "a trajectory starts from its initial state")
    for field in spec.static_fields:
        values = x[..., spec.slice(field.name)]
        if not field.of:  # a property of an entity moves with it
            promises.require((values == values[:, :1]).all(), f"the static field {field.name!r} stays as it is")
    for workers in (2, None):
        same = np.array_equal(system.simulate(x0, steps, seeds, workers=workers), x)
        promises.require(same, f"a trajectory does not depend on the number of workers ({workers})")
    alone = system.simulate(x0[1:2], steps, seeds[1:2])
    promises.require(np.array_equal(alone[0], x[1]), "a trajectory does not depend on other trajectories simulated with it")
    x0[...] = 0
    promises.require(x[:, 0].any(), "simulate does not keep a reference to its input array")


def _check_observables(promises: _Promises, system: System, x: np.ndarray) -> None:
    alive, observables = system.alive(x), system.observables(x)
    promises.require(alive.shape == x.shape[:2] and alive.dtype == bool, "alive is (batch, time) of booleans", (alive.shape, alive.dtype))
    promises.require((alive[:, 1:] <= alive[:, :-1]).all(), "what is no longer alive does not come back")
    promises.require(alive.all(), "trajectories of the system are alive")
    promises.require(len(observables) > 0, "there is an observable to judge a forecast by")
    for name, observable in observables.items():
        promises.require(name.isidentifier() and bool(observable.label), f"observable {name!r} has a plain name and a label")
        promises.require(observable.values.shape == x.shape[:2], f"observable {name!r} is (batch, time)", observable.values.shape)
        promises.require(np.isfinite(observable.values).all(), f"observable {name!r} is finite")
        alone = system.observables(x[1])[name].values
        promises.require(np.allclose(alone, observable.values[1], rtol=1e-6), f"observable {name!r} does not depend on the batch")
    for name in system.key_observables:
        promises.require(name in observables, f"the key observable {name!r} is among the observables")
    if x.dtype.kind == "f":
        broken = x.copy()
        first = system.spec.dynamic_fields[0]
        broken[1, 1, ..., system.spec.slice(first.name)] = np.inf
        found = system.alive(broken)
        promises.require(not found[1, 1:].any() and found[0].all(), "a trajectory ends where a number is not finite, and only that one")


def _check_symmetry(promises: _Promises, system: System, x: np.ndarray, rng: np.random.Generator) -> None:
    spec = system.spec
    for _ in range(2):
        g = system.symmetry.random(x, rng)
        moved = spec.act(g, x)
        promises.require(moved.shape == x.shape and moved.dtype == x.dtype, "the symmetry acts on states", (moved.shape, moved.dtype))
        promises.require(np.array_equal(system.alive(moved), system.alive(x)), "alive is the same for every element of the symmetry")
        if system.has_oracle:
            score, there = (system.transition_log_prob(states[:, :-1], states[:, 1:]) for states in (x, moved))
            promises.require(np.allclose(score, there, rtol=TOLERANCE), f"the oracle is invariant to {TOLERANCE:g}")


# -- examples ----------------------------------------------------------------------------------------------------------------


def sample_trajectories(system: System, *, trajectories: int = 2, steps: int = 2, seed: int = 0) -> np.ndarray:
    """Return trajectories (batch, time, *site, channel): simulated, or Normal noise for 4 bodies where the system has no simulator."""
    rng = np.random.default_rng(seed)
    if system.can_simulate:
        seeds = np.arange(seed, seed + trajectories, dtype=np.uint64)
        return system.simulate(system.initial(trajectories, rng), steps, seeds)
    shape = (trajectories, steps + 1, 4, system.spec.channels)
    x = rng.standard_normal((trajectories, 1, *shape[2:])) + 0.1 * rng.standard_normal(shape)
    for field in system.spec.static_fields:
        x[..., system.spec.slice(field.name)] = x[:, :1, :, system.spec.slice(field.name)]
    return x


def as_double(x: np.ndarray) -> Tensor:
    """Return states as a tensor, float64 or int64."""
    tensor = torch.as_tensor(x)
    return tensor.double() if tensor.is_floating_point() else tensor.long()


def measure_context(system: System, x: np.ndarray) -> DataContext:
    """Return the data context of trajectories x (batch, time, *site, channel) of a system, with scales from their standard deviation."""
    spec = system.spec
    real = [field for field in spec.fields if field.kind == "real"]
    spread = {f.name: float(np.std(x[..., spec.slice(f.name)])) or 1.0 for f in real}
    steps = {f.name: float(np.std(np.diff(x[..., spec.slice(f.name)], axis=1))) or 1.0 for f in real if f.dynamic}
    return DataContext(spec.with_scales(spread), system.frame_dt, steps, tuple(x.shape[2:-1]))
