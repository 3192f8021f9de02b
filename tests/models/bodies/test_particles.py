"""The transition of particles: any make of world, units that do not matter, and what its settings mean."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import DT, POSITION, STEP_SCALES, WORLDS, context, particles, trajectories

from epns_pyro.backbones import BACKBONES
from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.inference.elbo import Objective, log_density, path_bounds
from epns_pyro.models import EPNSModel
from epns_pyro.models.bodies.fields import BodyFields
from epns_pyro.models.bodies.particles import AT_ONCE, ParticlesConfig, ParticleTransition
from epns_pyro.models.transition import TRANSITIONS, Transition
from epns_pyro.state import Field, StateSpec

BATCH, STEPS, LATENT = 3, 2, 3


def latents(entities: int = 4) -> Tensor:
    return torch.randn(BATCH, STEPS, entities, LATENT, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def start_at_zero(transition: ParticleTransition) -> ParticleTransition:
    with torch.no_grad():
        for parameter in transition.parameters():
            parameter.zero_()
    return transition


# -- what networks read ----------------------------------------------------------------------------------------------------

SPECIES = StateSpec((Field("species", kind="category", size=5, dynamic=False), Field("charge", dynamic=False), POSITION), space=2)


def with_species(names: tuple[int, ...], seed: int = 0) -> tuple[DataContext, Tensor]:
    """States of four bodies whose three species have these numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, 4, 4, dtype=torch.float64, generator=generator)
    species = torch.tensor(names, dtype=torch.float64)[torch.randint(3, (BATCH, 4), generator=generator)]
    x = SPECIES.pack(species=species, charge=SPECIES.get(x, "charge"), position=SPECIES.get(x, "position"))
    return DataContext(SPECIES, DT, {"position": 1.0}, (4,)), x


MODELS = {
    "particles": {"width": 8, "hidden_vectors": 3, "latent": 3},
    "neural-sde": {"substeps": 2},
}


def fresh_model(name: str, about: DataContext) -> Transition:
    torch.manual_seed(3)
    return TRANSITIONS.parse({"name": name} | MODELS[name]).build(about).double()


def bounds_while_training(model: Transition, x0: Tensor, path: Tensor, updates: int) -> list[float]:
    """ELBO before and after every update; the last ones are small, so that the noise of gradients settles."""
    objective, bounds = Objective(model), []
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, updates + 1)
    for update in range(updates + 1):
        torch.manual_seed(update)
        loss = objective(x0, path).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        bounds.append(-loss.item())
    return bounds


@pytest.mark.parametrize("name", MODELS)
def test_names_of_classes_change_nothing_before_and_during_training(name):
    bounds = []
    for names in ((0, 1, 2), (4, 0, 3)):
        about, x = with_species(names)
        x = SPECIES.pack(
            species=SPECIES.get(x, "species"), charge=torch.full_like(SPECIES.get(x, "charge"), 0.1), position=SPECIES.get(x, "position")
        )
        path = torch.stack([SPECIES.advance(x, SPECIES.dynamic(x) + 0.1 * t) for t in range(1, 3)], 1)
        bounds.append(bounds_while_training(fresh_model(name, about), x, path, updates=5))
    np.testing.assert_allclose(bounds[1], bounds[0], rtol=1e-9)
    assert bounds[0][-1] > bounds[0][0]


def test_what_a_class_does_is_learnt():
    """Bodies of class 0 stay, those of class 2 move away from the others: nothing but the class tells them apart."""
    about, x = with_species((0, 2, 2))
    species, position = SPECIES.get(x, "species"), SPECIES.get(x, "position")
    charge = torch.full_like(species, 0.1)
    x = SPECIES.pack(species=species, charge=charge, position=position)
    outwards = position - position.mean(-2, keepdim=True)
    path = SPECIES.advance(x, position + torch.where(species[..., None] == 2, outwards, 0.0))[:, None]
    model = fresh_model("particles", about)
    bounds_while_training(model, x, path, updates=150)
    other = SPECIES.pack(
        species=2 - species, charge=torch.full_like(SPECIES.get(x, "charge"), 0.1), position=position
    )  # who was of class 0 is now of class 2
    moved, swapped = ((forward_mean(model, states) - position).norm(dim=-1) for states in (x, other))
    assert (moved[species == 2].mean() > 3 * moved[species == 0].mean()).item()
    assert (swapped[species == 0].mean() > 1.5 * moved[species == 0].mean()).item()


def forward_mean(model: Transition, x: Tensor) -> Tensor:
    step = model.step(model.start(x))
    return step.emission(step.prior.mean).mean.detach()


def test_weights_from_before_embeddings_read_a_class_as_one_scalar_each():
    about, x = with_species((0, 4, 2))
    fields = BodyFields(about)
    fields.load_state_dict({})
    features = fields.features(x).scalars
    assert features.shape[-1] == fields.feature_counts[0] == 2 + 5
    classes = features[..., 2:]
    assert set(classes.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(classes.argmax(-1).to(x.dtype), SPECIES.get(x, "species"))


# -- every make of world ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_worlds_of_every_make_can_be_modelled(world):
    about = context(world)
    transition, (x0, path) = particles(about), trajectories(about)
    trace = poutine.trace(EPNSModel(transition)).get_trace(x0, horizon=STEPS)
    channels = sum(about.spec.width(f) for f in about.spec.dynamic_fields)
    assert trace.nodes["x_2"]["value"].shape == (BATCH, 4, channels)
    assert trace.nodes["z_2"]["value"].shape == (BATCH, 4, LATENT)
    loss = Objective(transition)(x0, path).loss
    loss.backward()
    assert loss.isfinite()
    weights = [(name, p) for name, p in transition.named_parameters() if p.numel()]
    idle = [name for name, p in weights if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()]
    assert idle == []


@pytest.mark.parametrize("graph", [{"kind": "complete"}, {"kind": "radius", "radius": 1.0}, {"kind": "nearest", "neighbours": 3}], ids=str)
@pytest.mark.parametrize("backbone", [name for name in BACKBONES.names if "graph" in BACKBONES[name].model_fields])
@pytest.mark.parametrize("bodies", [33, *(pytest.param(many, marks=pytest.mark.slow) for many in (100, 1000))])
def test_positions_alone_of_many_bodies_can_be_modelled(backbone, graph, bodies):
    """All pairs of 1,000 bodies do not fit into memory at once: crowds have a sparse graph, which the presets choose."""
    if bodies == 1000 and graph["kind"] == "complete":
        pytest.skip("a million pairs")
    about = context("positions alone", bodies=bodies)
    network = {"name": backbone, "graph": graph}
    integrator = {"steps": 2, "network": {"name": "pairwise", "graph": graph}}
    transition = particles(about, backbone=network, integrator=integrator)
    x0, path = trajectories(about, batch=1, steps=1)
    loss = Objective(transition)(x0, path).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("world", WORLDS)
def test_with_weights_of_zero_the_bodies_drift_on(world):
    """x' = x + v dt where there is a rate, x' = x where there is none, and a noise of about the step scale."""
    about = context(world)
    transition, (x0, _) = start_at_zero(particles(about)), trajectories(about)
    law = transition.at(x0).emission(latents()[:, 0])
    spec = about.spec
    for f in spec.dynamic_fields:
        drift = DT * spec.get(x0, "velocity") if f.name == "position" and "velocity" in spec else 0.0
        torch.testing.assert_close(spec.get_dynamic(law.mean, f.name), spec.get(x0, f.name) + drift, rtol=1e-12, atol=1e-12)
        sigma = spec.get_dynamic(law.variance, f.name).sqrt()
        torch.testing.assert_close(sigma, torch.full_like(sigma, STEP_SCALES[f.name]), rtol=0.15, atol=0)


@pytest.mark.parametrize("bodies", [1, 2, 7])
def test_any_number_of_bodies(bodies):
    about = context("celestial", bodies)
    x0, path = trajectories(about)
    assert path_bounds(particles(about), x0, path, num_samples=2).elbo.isfinite().all()


def test_weights_do_not_depend_on_the_number_of_bodies_where_networks_do_not():
    few, many = context("celestial", 3), context("celestial", 9)
    x0, path = trajectories(many)
    one, other = particles(few), particles(many, seed=1)
    other.load_state_dict(one.state_dict())
    z = latents(9)
    torch.testing.assert_close(log_density(one, x0, path, z), log_density(other, x0, path, z))


@pytest.mark.parametrize("emission", ["diagonal", "coupled"])
@pytest.mark.parametrize("backbone", BACKBONES.names)
def test_every_backbone_and_emission_can_be_combined(backbone, emission):
    about = context("celestial")
    settings = {key: value for key, value in {"width": 8, "layers": 2}.items() if key in BACKBONES[backbone].model_fields}
    transition, (x0, path) = particles(about, backbone={"name": backbone} | settings, emission=emission), trajectories(about)
    assert Objective(transition)(x0, path).loss.isfinite()


# -- units -----------------------------------------------------------------------------------------------------------------


def rescaled(about: DataContext, factors: dict[str, float], time: float) -> DataContext:
    """The same data in other units: every field times its factor, times times `time`."""
    spec = about.spec
    scales = {f.name: f.scale * factors.get(f.name, 1.0) for f in spec.fields}
    steps = {name: scale * factors.get(name, 1.0) for name, scale in about.step_scales.items()}
    return replace(about, spec=spec.with_scales(scales), step_scales=steps, frame_dt=about.frame_dt * time)


UNITS = {
    "lengths": ({"position": 1e3, "velocity": 1e3}, 1.0),
    "times": ({"velocity": 1 / 3600}, 3600.0),
    "both": ({"position": 0.01, "velocity": 0.01 / 60}, 60.0),
    "masses": ({"mass": 1e-3, "push": 50.0}, 1.0),
    "the rest": ({"temperature": 1e-3, "dipole": 7.0, "charge": 1.6e-19}, 1.0),
}


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("world", WORLDS)
def test_other_units_move_the_log_density_by_the_jacobian(world, units):
    factors, time = UNITS[units]
    about = context(world)
    other = rescaled(about, factors, time)
    spec = about.spec

    def convert(x: Tensor) -> Tensor:
        return spec.pack(**{name: factors.get(name, 1.0) * spec.get(x, name) for name in spec.names})

    (x0, path), z = trajectories(about), latents()
    here, there = particles(about), particles(other)
    jacobian = STEPS * 4 * sum(spec.width(f) * math.log(factors.get(f.name, 1.0)) for f in spec.dynamic_fields)
    expected = log_density(here, x0, path, z) - jacobian
    torch.testing.assert_close(log_density(there, convert(x0), convert(path), z), expected, rtol=1e-6, atol=1e-5)

    q, p = (t.at(x).posterior(y) for t, x, y in ((here, x0, path[:, 0]), (there, convert(x0), convert(path[:, 0]))))
    torch.testing.assert_close(p.base_dist.loc, q.base_dist.loc, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(p.base_dist.scale, q.base_dist.scale, rtol=1e-5, atol=1e-6)


def test_static_fields_are_not_scored():
    """A published defect: the mass was scored as if it had been predicted."""
    about = context("celestial")
    transition, (x0, path) = particles(about), trajectories(about)
    spec = about.spec
    other = spec.pack(**{name: spec.get(path, name) * (2.0 if name == "mass" else 1.0) for name in spec.names})
    torch.testing.assert_close(log_density(transition, x0, other, latents()), log_density(transition, x0, path, latents()))


# -- settings --------------------------------------------------------------------------------------------------------------


def test_latents_of_the_whole_system():
    """One latent vector, which every body hears and no order of the bodies changes."""
    about = context("celestial")
    transition, (x0, path) = particles(about, latents="shared", linear_path=False), trajectories(about)
    step = transition.at(x0)
    prior, posterior = step.prior, step.posterior(path[:, 0])
    assert prior.event_shape == posterior.event_shape == (1, LATENT)
    z = prior.sample()
    moved = (step.emission(z + 1).mean - step.emission(z).mean).abs()
    assert (moved.amax(-1) > 1e-6).all()  # every body

    order = torch.tensor([2, 0, 3, 1])
    turned = transition.at(x0[:, order]).posterior(path[:, 0][:, order])
    torch.testing.assert_close(turned.base_dist.loc, posterior.base_dist.loc)
    assert path_bounds(transition, x0, path, num_samples=3).iwae.isfinite().all()


def test_latents_per_body_speak_to_their_body_first():
    about = context("celestial")
    transition, (x0, _) = particles(about), trajectories(about)
    step = transition.at(x0)
    z = step.prior.sample()
    nudged = z.clone()
    nudged[:, 0] += 1
    moved = (step.emission(nudged).mean - step.emission(z).mean).norm(dim=-1)
    assert (moved[:, 0] > moved[:, 1:].amax(-1)).all()


@pytest.mark.parametrize("world", ["celestial", "line", "still plane", "warm plane"])
def test_the_guide_sees_where_the_bodies_went(world):
    """A published defect: a guide that sees distances only cannot tell a state from its mirror image. Ours can, relative to x."""
    about = context(world)
    transition, (x0, path) = particles(about), trajectories(about)
    spec, x_next = about.spec, path[:, 0]
    step = transition.at(x0)
    q = step.posterior(x_next).base_dist
    for f in spec.dynamic_fields:
        surprise = spec.get(x_next, f.name) - spec.get(transition_mean(transition, x0), f.name)
        mirrored = spec.pack(**{n: spec.get(x_next, n) - (2 * surprise if n == f.name else 0) for n in spec.names})
        p = transition.at(x0).posterior(mirrored).base_dist
        assert (p.loc - q.loc).abs().max() > 1e-3, f.name


def transition_mean(transition: ParticleTransition, x: Tensor) -> Tensor:
    z = torch.zeros(*x.shape[:-1], LATENT, dtype=x.dtype)
    return transition.spec.advance(x, transition.at(x).emission(z).mean).detach()


def test_outliers_do_not_blow_up_the_guide():
    about = context("celestial")
    transition, (x0, path) = particles(about), trajectories(about)
    far = about.spec.advance(x0, about.spec.dynamic(path[:, 0]) + 1e6)
    q = transition.at(x0).posterior(far).base_dist
    assert q.loc.abs().max() < 100
    assert q.scale.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latents": "shared"}, "a linear path needs latents per body: set linear_path to false for shared latents"),
        ({"hidden_vectors": 2}, "a linear path needs 3 hidden vectors for a frame, found hidden_vectors = 2"),
        ({"backbone": "vectors"}, "unknown backbone 'vectors': did you mean 'vector'?"),
        ({"backbone": {"name": "vector", "widht": 3}}, "unknown key 'widht': did you mean 'width'?"),
        ({"emission": "normal"}, "unknown emission 'normal'"),
        ({"latent": 0}, "latent: input should be greater than 0, found 0"),
        ({"widht": 3}, "unknown key 'widht': did you mean 'width'?"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        ParticlesConfig.parse(settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        ([Field("heat")], {"emission": "diagonal"}, "one vector field that says where bodies are, found none"),
        ([Field("r", "1o", translates=True), Field("q", "1o", translates=True)], {}, "found r, q"),
        ([Field("r", "1o", translates=True), Field("spin", "1e")], {}, "spin is a pseudoscalar or pseudovector"),
        ([Field("r", "1o", translates=True), Field("heat")], {}, "heat is a dynamic scalar: use emission 'diagonal'"),
        ([Field("r", "1o", translates=True)], {"backbone": "tensor-product", "space": 2}, "works in 3 dimensions, found 2"),
    ],
)
def test_states_that_cannot_be_modelled_are_refused(fields, settings, message):
    spec = StateSpec(tuple(fields), space=settings.get("space", 3))
    about = DataContext(spec, DT, {f.name: 1.0 for f in spec.dynamic_fields}, (3,))
    with pytest.raises(ConfigError) as error:
        ParticlesConfig.parse({k: v for k, v in settings.items() if k != "space"}).build(about)
    assert message in str(error.value)


@pytest.mark.parametrize("world", WORLDS)
def test_degenerate_states_have_finite_densities_and_gradients(world):
    about = context(world)
    transition, (x0, path) = particles(about), trajectories(about)
    spec, rng = about.spec, np.random.default_rng(0)
    line = torch.from_numpy(rng.standard_normal((BATCH, 4, 1))) * torch.ones(spec.space, dtype=torch.float64)
    for position, others in ((torch.zeros_like(line), 0.0), (line, 0.0), (torch.zeros_like(line), 1.0), (line, 1.0)):
        fields = {n: position if n == "position" else others * spec.get(x0, n) for n in spec.names}
        x = spec.pack(**fields).requires_grad_()
        loss = Objective(transition)(x, path).loss
        gradients = torch.autograd.grad(loss, [x, *transition.parameters()])
        assert loss.isfinite()
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("backbone", ["vector", "frames", "message-passing", "tensor-product", "mlp", "pairwise"])
def test_a_block_of_states_fits_into_the_cache_whatever_the_network(backbone: str) -> None:
    """Its largest tensor, as it is seen, has at most AT_ONCE numbers, and blocks are not smaller than they need to be."""

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and not func.is_view:
                self.found = max(self.found, out.numel())
            return out

    transition = particles(context("celestial", bodies=9), backbone={"name": backbone}, integrator={"steps": 1})
    x, _ = trajectories(context("celestial", bodies=9), batch=transition.block_size)
    with torch.no_grad(), Largest() as largest:
        transition.at(x)
    assert AT_ONCE / 4 < largest.found <= 2 * AT_ONCE
