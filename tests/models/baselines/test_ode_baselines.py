"""Baselines that are ordinary differential equations: the integrator, the Gaussian process, and the two Pyro programs."""

from __future__ import annotations

import math

import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import MultivariateNormal
from worlds import DT, POSITION, VELOCITY, WORLDS, context, trajectories

from epns_pyro.config import Config
from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.models.baselines.gaussian_process import JITTER, SparseGP
from epns_pyro.models.baselines.gp_ode import GPODEConfig
from epns_pyro.models.baselines.ode import moving_fields, rk4
from epns_pyro.models.baselines.ode2vae import ODE2VAEConfig
from epns_pyro.models.program import PathProgram
from epns_pyro.state import Field, StateSpec

STEPS, TRANSITIONS = 2, 60
CONFIGS = {"gp-ode": GPODEConfig(inducing=6, features=32), "ode2vae": ODE2VAEConfig(latent=4, width=8)}
PROGRAMS = pytest.mark.parametrize("name", CONFIGS)


def build(name: str, about: DataContext, seed: int = 0, config: Config | None = None) -> tuple[PathProgram, PathProgram]:
    torch.manual_seed(seed)
    model, guide = (config or CONFIGS[name]).build(about, transitions=TRANSITIONS)
    return model.double(), guide.double()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- the integrator --------------------------------------------------------------------------------------------------------


def test_the_integrator_is_of_fourth_order():
    """A harmonic oscillator: halving the step divides the error by 16."""
    state = torch.tensor([[1.0], [0.3]], dtype=torch.float64)

    def error(substeps: int) -> float:
        end = rk4(lambda s: torch.stack([s[1], -s[0]]), state, 2.0, substeps)
        return float((end[0] - (math.cos(2.0) + 0.3 * math.sin(2.0))).abs())

    errors = torch.tensor([error(n) for n in (4, 8, 16, 32)])
    torch.testing.assert_close((errors[:-1] / errors[1:]).log2(), torch.full((3,), 4.0), atol=0.2, rtol=0)


# -- the Gaussian process --------------------------------------------------------------------------------------------------


def process() -> SparseGP:
    torch.manual_seed(0)
    gp = SparseGP(2, 3, inducing=5, features=4000).double()
    with torch.no_grad():
        gp.log_lengthscale.copy_(torch.tensor([0.3, -0.4]))
        gp.log_amplitude.fill_(0.2)
    return gp


def test_fourier_features_have_the_kernel_as_their_covariance():
    """Its error over 4,000 features is about 1/sqrt(4000) of the variance: 6 of those."""
    gp, x = process(), torch.randn(20, 2, dtype=torch.float64, generator=generator())
    exact = gp.kernel(x, x)
    by_hand = 1.2214027582**2 * torch.exp(-0.5 * (((x[3] - x[7]) / torch.tensor([0.3, -0.4]).double().exp()) ** 2).sum())
    torch.testing.assert_close(exact[3, 7], by_hand)
    assert (gp.fourier(x) @ gp.fourier(x).mT - exact).abs().max() < 6 / math.sqrt(4000) * float(exact[0, 0])


def test_a_draw_passes_through_its_inducing_outputs():
    gp = process()
    u, w = (torch.randn(2, n, 3, dtype=torch.float64, generator=generator(n)) for n in (5, 4000))
    function = gp.draw(u, w)
    exact = gp.kernel(gp.inducing, gp.inducing)
    factor = torch.linalg.cholesky(exact + JITTER * gp.amplitude.square() * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(function(gp.inducing), factor @ u, atol=1e-2, rtol=0)  # up to the jitter


def test_draws_have_the_mean_and_covariance_of_the_sparse_posterior():
    """Against closed forms, at two inputs, over 4,000 draws: every number within 5 standard errors (and the error of the features)."""
    gp, draws = process(), 4000
    loc, scale = torch.tensor([1.0, -0.5, 0.3, 0.0, 2.0]).double(), torch.tensor([0.1, 0.5, 1.0, 0.3, 0.2]).double()
    x = torch.cat([gp.inducing[:1] + 0.2, torch.tensor([[3.0, 3.0]], dtype=torch.float64)]).detach()
    factor = torch.linalg.cholesky(gp.kernel(gp.inducing, gp.inducing) + JITTER * gp.amplitude.square() * torch.eye(5).double())
    reach = torch.linalg.solve_triangular(factor, gp.kernel(gp.inducing, x), upper=False)  # (inducing, point)
    mean = reach.mT @ loc
    covariance = gp.kernel(x, x) - reach.mT @ (torch.eye(5).double() - torch.diag(scale**2)) @ reach
    rng, values = generator(1), []
    for _ in range(draws // 100):
        u = loc[:, None] + scale[:, None] * torch.randn(100, 5, 1, dtype=torch.float64, generator=rng)
        w = torch.randn(100, 4000, 1, dtype=torch.float64, generator=rng)
        with torch.no_grad():
            values.append(gp.draw(u, w)(x)[..., 0])
    sample = torch.cat(values)
    spread = MultivariateNormal(mean, covariance).variance
    assert ((sample.mean(0) - mean).abs() < 5 * (spread / draws).sqrt()).all()
    tolerance = 5 * (2 / draws) ** 0.5 * float(spread.max()) + 6 / math.sqrt(4000) * float(gp.amplitude**2)
    assert (torch.cov(sample.mT) - covariance).abs().max() < tolerance


# -- the programs ----------------------------------------------------------------------------------------------------------


@PROGRAMS
@pytest.mark.parametrize("world", ["celestial", "line"])
def test_stock_pyro_trains_every_weight(name, world):
    about = context(world)
    (model, guide), (x0, path) = build(name, about), trajectories(about)
    objective = TraceMeanField_ELBO()(model, guide)
    loss = objective(x0, path)
    loss.backward()
    assert loss.isfinite()
    parameters = dict(objective.named_parameters())
    assert {id(p) for p in parameters.values()} == {id(p) for p in [*model.parameters(), *guide.parameters()]}
    assert [n for n, p in parameters.items() if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()] == []

    before = [p.detach().clone() for p in parameters.values()]
    assert math.isfinite(SVI(model, guide, Adam({"lr": 1e-2}), TraceMeanField_ELBO()).step(x0, path))
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters.values(), strict=True))


@PROGRAMS
def test_a_minibatch_owes_its_share_of_what_the_functions_cost(name):
    """The ELBO of three windows of two steps, of data with 60 transitions, holds a tenth of the KL of the functions."""
    about = context("celestial")
    (model, guide), (x0, path) = build(name, about), trajectories(about)
    q = poutine.trace(guide).get_trace(x0, path)
    latent = [site for site in q.stochastic_nodes if site not in ("draw", "trajectory")]
    assert len(latent) == {"gp-ode": 4, "ode2vae": 2}[name]
    for site in latent:
        plates = [frame.name for frame in q.nodes[site]["cond_indep_stack"]]
        assert q.nodes[site]["scale"] == (1.0 if plates == ["trajectory"] else pytest.approx(6 / TRANSITIONS))
    p = poutine.trace(poutine.replay(model, q)).get_trace(x0, path)
    assert all(p.nodes[site]["scale"] == q.nodes[site]["scale"] for site in latent)
    assert all(p.nodes[f"x_{t}"]["scale"] == 1.0 and p.nodes[f"x_{t}"]["is_observed"] for t in (1, 2))


@PROGRAMS
def test_forecasts_are_of_the_functions_learned(name):
    """Without a path the guide still says which functions: with a sharp guide all futures of a state follow its mean."""
    about = context("celestial")
    (model, guide), (x0, _) = build(name, about), trajectories(about)
    with torch.no_grad():
        scales = guide.log_scale.values() if name == "gp-ode" else [guide.log_scale]
        for scale in scales:
            scale.fill_(-20.0)
    sites = Predictive(model, guide=guide, num_samples=7, parallel=True)(x0, horizon=3)
    assert sites["x_3"].shape == (7, *x0.shape[:-1], about.spec.dynamic_channels)
    name_of = {"gp-ode": "pair_u", "ode2vae": "weights"}[name]
    learned = guide.loc["pair"] if name == "gp-ode" else guide.loc
    torch.testing.assert_close(sites[name_of].flatten(0, 1)[0].squeeze(), learned.detach().squeeze(), atol=1e-6, rtol=0)


@PROGRAMS
def test_draws_together_are_draws_one_by_one(name):
    """Predictive in parallel against one call per draw, with the same functions and starts: the same means."""
    about = context("celestial")
    (model, guide), (x0, _) = build(name, about), trajectories(about)
    with torch.no_grad():
        together = Predictive(model, guide=guide, num_samples=4, parallel=True)(x0, horizon=2)
        for k in range(4):
            fixed = {n: v[k] for n, v in together.items() if n[:2] != "x_"}
            trace = poutine.trace(poutine.condition(model, data=fixed)).get_trace(x0, horizon=2)
            law = trace.nodes["x_2"]["fn"]
            # (x - mean) / sigma of a draw of the same law: 30 numbers each for 3 trajectories, none beyond 6
            assert ((together["x_2"][k] - law.mean) / law.variance.sqrt()).abs().max() < 6


def test_the_equation_of_motion_is_invariant_under_shifts_and_relabelling():
    about = context("celestial")
    (model, _), (x0, _) = build("gp-ode", about), trajectories(about)
    field, spec = model.field, about.spec
    functions = {n: p.draw(*(torch.randn(m, 3, dtype=torch.float64) for m in (6, 32))) for n, p in field.processes.items()}
    order, shift = torch.tensor([2, 0, 3, 1]), torch.tensor([10.0, -3.0, 7.0], dtype=torch.float64)
    moved = spec.pack(**{n: spec.get(x0, n) + (shift if n == "position" else 0.0) for n in spec.names})[:, order]
    here, there = (field.advance(*field.split(x), functions) for x in (x0, moved))
    here = here[:, order].clone()
    here[..., 0, :] += shift
    torch.testing.assert_close(there, here)


def test_pair_forces_are_sums_over_the_others():
    """Against loops, with three bodies that differ in mass."""
    about = context("celestial", 3)
    (model, _), (x0, _) = build("gp-ode", about), trajectories(about, batch=1)
    field, spec = model.field, about.spec
    functions = {n: p.draw(*(torch.randn(m, 3, dtype=torch.float64) for m in (6, 32))) for n, p in field.processes.items()}
    r, v, m = (spec.get(x0[0], n) / spec[n].scale for n in ("position", "velocity", "mass"))
    expected = []
    for i in range(3):
        a = functions["self"](torch.cat([v[i], m[i : i + 1]])[None])[0]
        for j in range(3):
            if j != i:
                a = a + functions["pair"](torch.cat([r[j] - r[i], v[j] - v[i], m[j : j + 1], m[i : i + 1]])[None])[0]
        expected.append(a * spec["velocity"].scale ** 2 / spec["position"].scale)
    found = field.derivative(*field.split(x0), functions)
    torch.testing.assert_close(found[0, :, 1], torch.stack(expected))
    torch.testing.assert_close(found[0, :, 0], spec.get(x0[0], "velocity"))


def test_the_guide_of_the_start_sees_what_follows_and_short_paths_too():
    about = context("celestial")
    (model, guide), (x0, path) = build("ode2vae", about), trajectories(about, steps=4)
    latent, starts = model.latent, {}
    for steps in (1, 2, 3, 4):
        starts[steps] = latent.refined(x0, path[:, :steps]).loc
    assert not torch.allclose(starts[1], starts[2])
    torch.testing.assert_close(starts[3], starts[4], rtol=0, atol=0)
    assert guide(x0, path[:, :1]) is None


@PROGRAMS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [({}, "needs horizon="), ({"horizon": 0}, "at least 1"), ({"path": 1, "horizon": 5}, "contradicts the length of the path, 2")],
)
def test_arguments_that_make_no_sense_are_refused(name, arguments, message):
    about = context("celestial")
    programs, (x0, path) = build(name, about), trajectories(about)
    for program in programs:
        with pytest.raises(ShapeError, match=message):
            program(x0, **{k: path if k == "path" else v for k, v in arguments.items()})


@pytest.mark.parametrize("world", ["still plane", "warm plane", "driven"])
def test_states_that_an_equation_of_second_order_cannot_describe_are_refused(world):
    with pytest.raises(ConfigError, match="needs a position and its rate as the only dynamic fields, found"):
        moving_fields(WORLDS[world])
    assert moving_fields(WORLDS["line"]) == ("position", "velocity")


def test_a_force_can_be_learned():
    """Two bodies on a spring: after 150 steps the functions explain nine tenths of the accelerations of paths never seen."""
    spec = StateSpec((POSITION, VELOCITY), space=1)
    about = DataContext(spec.with_scales({"position": 1.0, "velocity": 1.0}), DT, {"position": 0.01, "velocity": 0.1}, (2,))

    def spring(count: int, seed: int) -> Tensor:
        moving = torch.randn(count, 2, 2, 1, dtype=torch.float64, generator=generator(seed))
        return spec.pack(position=moving[..., 0, :], velocity=moving[..., 1, :])

    def follow(x: Tensor, steps: int) -> Tensor:
        moving, path = torch.stack([spec.get(x, "position"), spec.get(x, "velocity")], -2), []
        for _ in range(steps):
            moving = rk4(lambda s: torch.stack([s[..., 1, :], -2.0 * (s[..., 0, :] - s[..., 0, :].flip(-2))], -2), moving, DT, 4)
            path.append(spec.pack(position=moving[..., 0, :], velocity=moving[..., 1, :]))
        return torch.stack(path, 1)

    x0, unseen = spring(64, 0), spring(64, 1)
    path = follow(x0, 5)
    model, guide = build("gp-ode", about, config=GPODEConfig(inducing=24, features=64))
    model.field.place(x0, generator())
    objective = TraceMeanField_ELBO()(model, guide)
    objective(x0, path)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-2)
    for _ in range(150):
        optimizer.zero_grad()
        (objective(x0, path) / 64).backward()
        optimizer.step()
    with torch.no_grad():
        mean = Predictive(model, guide=guide, num_samples=20, parallel=True)(unseen, horizon=1)["x_1"].mean(0)
    start, true, found = (spec.get(x, "velocity") for x in (unseen, follow(unseen, 1)[:, 0], mean))
    assert ((found - true) ** 2).mean() < 0.1 * ((true - start) ** 2).mean()


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="unknown key 'induced': did you mean 'inducing'"):
        GPODEConfig.parse({"induced": 3})
    about = DataContext(StateSpec((Field("heat"),)), DT, {"heat": 1.0}, (3,))
    with pytest.raises(ConfigError, match="one vector field that says where"):
        ODE2VAEConfig().build(about, transitions=1)
