"""The Pyro programs, run by stock Pyro. False-failure rate of a statistical test: 1e-6."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO
from scipy.stats import ks_2samp
from torch import Tensor
from worlds import context, particles, trajectories

from epns_pyro.errors import ShapeError
from epns_pyro.models import EPNSGuide, EPNSModel, Feedback

BATCH, BODIES, STEPS = 3, 4, 2
ABOUT = context("celestial", BODIES)
X0, PATH = trajectories(ABOUT, BATCH, STEPS)


@pytest.fixture
def transition():
    return particles(ABOUT, backbone={"name": "vector", "width": 4, "vectors": 4, "layers": 1})


def sites(trace: poutine.Trace) -> dict[str, Tensor]:
    return {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample" and name != "trajectory"}


def log_probs(trace: poutine.Trace) -> dict[str, Tensor]:
    trace.compute_log_prob()
    return {name: trace.nodes[name]["log_prob"] for name in sites(trace)}


# -- the programs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"path": PATH}, {"horizon": STEPS}], ids=["path", "horizon"])
def test_sites_have_the_names_and_shapes_that_scripts_rely_on(transition, arguments):
    trace = poutine.trace(EPNSModel(transition)).get_trace(X0, **arguments)
    found = {name: tuple(value.shape) for name, value in sites(trace).items()}
    latent, dynamic = (BATCH, BODIES, 3), (BATCH, BODIES, 6)
    hidden = (BATCH, BODIES, 8 + 3 * 3 + 6 + 1)  # scalars, vectors, where the integrator leads, its log_max_kick
    assert found == {"h_1": hidden, "z_1": latent, "x_1": dynamic, "h_2": hidden, "z_2": latent, "x_2": dynamic}
    assert all(value.shape == (BATCH,) for value in log_probs(trace).values())
    assert [trace.nodes[name]["is_observed"] for name in ("z_1", "x_1")] == [False, "path" in arguments]
    assert (trace.nodes["h_1"]["fn"].log_prob(trace.nodes["h_1"]["value"]) == 0).all()
    assert trace.nodes["trajectory"]["fn"].size == BATCH


def test_the_guide_has_the_latents_of_the_model_and_nothing_else(transition):
    guide = EPNSGuide(transition)
    found = sites(poutine.trace(guide).get_trace(X0, PATH))
    assert {name: tuple(value.shape) for name, value in found.items()} == {f"z_{t}": (BATCH, BODIES, 3) for t in (1, 2)}
    assert sites(poutine.trace(guide).get_trace(X0, horizon=STEPS)) == {}


def test_the_end_of_the_path_is_returned_and_static_fields_are_kept(transition):
    model, spec = EPNSModel(transition), transition.spec
    torch.testing.assert_close(model(X0, PATH), PATH[:, -1])
    trace = poutine.trace(model).get_trace(X0, horizon=STEPS)
    end = trace.nodes["_RETURN"]["value"]
    torch.testing.assert_close(spec.dynamic(end), trace.nodes["x_2"]["value"])
    torch.testing.assert_close(spec.get(end, "mass"), spec.get(X0, "mass"))


def by_hand(transition, feedback: Feedback, z: dict[str, Tensor], path: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """log p and log q of every site along a path, for given latents: the loop that the programs stand for."""
    spec, x, model, guide = transition.spec, X0, {}, {}
    for t in range(1, path.shape[1] + 1):
        step = transition.at(x)
        emission = step.emission(z[f"z_{t}"])
        model[f"z_{t}"] = step.prior.log_prob(z[f"z_{t}"])
        model[f"x_{t}"] = emission.log_prob(spec.dynamic(path[:, t - 1]))
        guide[f"z_{t}"] = step.posterior(path[:, t - 1]).log_prob(z[f"z_{t}"])
        x = path[:, t - 1] if feedback is Feedback.TEACHER else spec.advance(x, emission.mean)
    return model, guide


@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
@pytest.mark.parametrize("feedback", [Feedback.TEACHER, Feedback.PUSHFORWARD])
def test_the_programs_are_the_loop_they_stand_for(transition, feedback, kl_weight):
    _, path = trajectories(ABOUT, BATCH, 4)
    settings = {"feedback": feedback, "kl_weight": kl_weight}
    guide = poutine.trace(EPNSGuide(transition, **settings)).get_trace(X0, path)
    model = poutine.trace(poutine.replay(EPNSModel(transition, **settings), trace=guide)).get_trace(X0, path)
    p, q = by_hand(transition, feedback, sites(guide), path)
    found = {name: value for name, value in log_probs(model).items() if name[0] != "h"}
    weighted = {name: (kl_weight if name[0] == "z" else 1.0) * value for name, value in p.items()}
    assert found.keys() == p.keys()
    for name, value in weighted.items():  # only the latents carry the weight
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-10)
    for name, value in log_probs(guide).items():
        torch.testing.assert_close(value, kl_weight * q[name], rtol=1e-12, atol=1e-10)


def test_pushforward_differs_from_teacher_forcing_from_the_second_step_on(transition):
    z = sites(poutine.trace(EPNSGuide(transition)).get_trace(X0, PATH))
    teacher, pushed = (by_hand(transition, feedback, z, PATH)[0] for feedback in (Feedback.TEACHER, Feedback.PUSHFORWARD))
    torch.testing.assert_close(pushed["x_1"], teacher["x_1"])
    assert not torch.allclose(pushed["x_2"], teacher["x_2"], rtol=1e-3)


def test_no_gradient_flows_through_what_is_pushed_forward(transition):
    latents = {f"z_{t}": torch.zeros(BATCH, BODIES, 3, dtype=torch.float64, requires_grad=True) for t in (1, 2)}
    model = poutine.condition(EPNSModel(transition, feedback=Feedback.PUSHFORWARD), data=latents)
    loss = log_probs(poutine.trace(model).get_trace(X0, PATH))["x_2"].sum()
    first, second = torch.autograd.grad(loss, list(latents.values()), allow_unused=True)
    assert first is None
    assert second.abs().max() > 0


def test_a_forecast_feeds_back_samples_unless_the_mean_is_asked_for(transition):
    spec = transition.spec
    for feedback in Feedback:
        nodes = poutine.trace(EPNSModel(transition, feedback=feedback)).get_trace(X0, horizon=2).nodes
        fed = nodes["x_1"]["fn"].mean if feedback is Feedback.PUSHFORWARD else nodes["x_1"]["value"]
        torch.testing.assert_close(nodes["h_2"]["value"], transition.at(spec.advance(X0, fed)).h)


# -- stock Pyro ------------------------------------------------------------------------------------------------------------


def test_svi_trains_and_leaves_no_global_parameters(transition):
    before = {name: parameter.detach().clone() for name, parameter in transition.named_parameters()}
    svi = SVI(EPNSModel(transition), EPNSGuide(transition), pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO())
    torch.manual_seed(0)
    losses = [svi.step(X0, PATH) for _ in range(15)]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert all(not torch.equal(before[name], parameter) for name, parameter in transition.named_parameters())
    assert dict(pyro.get_param_store().named_parameters()) == {}


def test_particles_of_the_elbo_may_be_vectorised(transition):
    """Means of ELBOs drawn one way and the other agree to 6 standard errors."""
    model, guide, draws = EPNSModel(transition), EPNSGuide(transition), 25
    torch.manual_seed(0)
    single = torch.tensor([TraceMeanField_ELBO().loss(model, guide, X0, PATH) for _ in range(draws)])
    together = TraceMeanField_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, X0, PATH)
    error = float(single.std()) * (1 / draws + 1 / 400) ** 0.5
    assert abs(float(single.mean()) - together) < 6 * error


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_forecasts(transition, parallel):
    draws = Predictive(EPNSModel(transition), guide=EPNSGuide(transition), num_samples=5, parallel=parallel)(X0, horizon=3)
    assert {f"{kind}_{t}" for kind in "zx" for t in (1, 2, 3)} <= draws.keys()
    for t in (1, 2, 3):
        assert draws[f"x_{t}"].shape == (5, BATCH, BODIES, 6)
        assert draws[f"z_{t}"].shape == (5, BATCH, BODIES, 3)
    assert not torch.equal(draws["x_1"][0], draws["x_1"][1])


def test_predictive_is_one_law_in_parallel_and_in_turn(transition):
    """Kolmogorov-Smirnov on 12 projections of the last state (Bonferroni: 1e-6 in all)."""
    model, guide = EPNSModel(transition), EPNSGuide(transition)
    torch.manual_seed(0)
    draws = [Predictive(model, guide=guide, num_samples=n, parallel=p)(X0, horizon=3)["x_3"] for n, p in ((2000, True), (60, False))]
    for trajectory in range(BATCH):
        for body in range(BODIES):
            direction = torch.randn(6, dtype=torch.float64)
            a, b = ((x[:, trajectory, body] @ direction).numpy() for x in draws)
            assert ks_2samp(a, b).pvalue > 1e-6 / (BATCH * BODIES)


def test_predictive_with_a_path_draws_from_the_guide(transition):
    torch.manual_seed(0)
    draws = Predictive(EPNSModel(transition), guide=EPNSGuide(transition), num_samples=4000, parallel=True)(X0, PATH)
    step = transition.at(X0)
    law = step.posterior(PATH[:, 0]).base_dist
    z = ((draws["z_1"] - law.loc) / law.scale).detach()
    assert (z.mean(0).abs() < 5.4 / 4000**0.5).all()
    assert ((z.square().mean(0) - 1).abs() < 5.4 * (2 / 4000) ** 0.5).all()


def test_any_site_can_be_conditioned_on(transition):
    """A forecast through a given state: what comes after starts there."""
    spec, given = transition.spec, transition.spec.dynamic(PATH[:, 0])
    trace = poutine.trace(poutine.condition(EPNSModel(transition), data={"x_1": given})).get_trace(X0, horizon=2)
    assert trace.nodes["x_1"]["is_observed"]
    torch.testing.assert_close(trace.nodes["h_2"]["value"], transition.at(spec.advance(X0, given)).h)
    z = {"z_1": torch.zeros(BATCH, BODIES, 3, dtype=torch.float64)}
    trace = poutine.trace(poutine.condition(EPNSModel(transition), data=z)).get_trace(X0, horizon=1)
    torch.testing.assert_close(trace.nodes["x_1"]["fn"].mean, transition.at(X0).emission(z["z_1"]).mean)


def test_the_model_can_be_drawn(transition):
    pytest.importorskip("graphviz")
    source = pyro.render_model(EPNSModel(transition), model_args=(X0, PATH)).source
    for name in ("z_1", "x_1", "z_2", "x_2", "trajectory"):
        assert name in source


# -- mistakes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [EPNSModel, EPNSGuide])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X0[..., 1:], PATH), r"x0: expected \(\*batch, body, 7\) with channels mass 1, position 3, velocity 3; found \(3, 4, 6\)"),
        ((X0.long(), PATH), r"x0: expected floating point numbers, found dtype torch.int64"),
        ((X0, PATH[:, 0]), r"path: expected \(batch, time, \*site, channel\) to go with x0 \(3, 4, 7\), found \(3, 4, 7\)"),
        ((X0, PATH[:2]), r"to go with x0 \(3, 4, 7\), found \(2, 2, 4, 7\)"),
        ((X0, PATH[:, :, :3]), r"to go with x0 \(3, 4, 7\), found \(3, 2, 3, 7\)"),
        ((X0,), r"without a path the model needs horizon=, a number of steps of at least 1, found None"),
        ((X0, None, 0), r"at least 1, found 0"),
        ((X0, PATH, 5), r"horizon 5 contradicts the length of the path, 2: leave it out"),
    ],
)
def test_wrong_arguments_are_named(transition, program, arguments, message):
    x0, path, horizon = (*arguments, None, None)[:3]
    with pytest.raises(ShapeError, match=message):
        program(transition)(x0, path, horizon=horizon)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[:, :0], "x0: expected (*batch, body, channel), none empty; found (2, 0, 7)"),
        (lambda x: x.index_fill(-1, torch.tensor([1]), torch.inf), "x0: holds NaN or infinite values"),
        (
            lambda x: x.index_fill(1, torch.tensor([1]), torch.nan),
            "x0: bodies are absent (NaN), but the training data",
        ),
    ],
)
def test_states_that_no_step_can_start_from_are_refused_before_pyro_sees_them(change, said):
    transition = particles(context("celestial"))
    x0 = trajectories(context("celestial"), batch=2)[0]
    with pytest.raises(ShapeError) as caught:
        EPNSModel(transition)(change(x0), horizon=1)
    assert str(caught.value).startswith(said)
