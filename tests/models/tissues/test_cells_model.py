"""The model of label images: invariant through stock Pyro, a true law of images, and unmoved by cells that vanish, split or swell."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from label_tissues import label_spec, law, tissues, transition
from pyro import poutine
from pyro.infer import Predictive, TraceMeanField_ELBO
from torch import Tensor

from epns_pyro.backbones.tissues.tissue import Size, Tissue
from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.inference.elbo import Objective, elbo_step
from epns_pyro.models import EPNSGuide, EPNSModel, Feedback
from epns_pyro.models.tissues.cells import WINDOW_PIXELS, CellsModelConfig, CellsTransition
from epns_pyro.state import Field, StateSpec
from epns_pyro.symmetry import Relabelling, density_invariance_error
from epns_pyro.systems import CellsConfig

LATENT = 3
CELLS = 9


def through_pyro(t: CellsTransition):
    """log p(x, z | x_0) as stock Pyro computes it: (x0, path, z) -> (batch,)."""

    def log_density(x0: Tensor, path: Tensor, z: Tensor) -> Tensor:
        data = {f"z_{step + 1}": z[:, step] for step in range(z.shape[1])}
        trace = poutine.trace(poutine.condition(EPNSModel(t), data=data)).get_trace(x0, path)
        trace.compute_log_prob()
        return sum(site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample" and site["name"] != "trajectory")

    return log_density


# -- symmetry --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lattice", [(40, 40), (72, 72), (72, 50)])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("interlacing", [1, 4])
def test_the_density_does_not_depend_on_names_nor_on_the_origin_of_a_periodic_lattice(lattice, periodic, interlacing):
    spec = label_spec(CELLS, periodic=periodic)
    t = transition(spec, lattice, interlacing=interlacing)
    x = tissues(spec, lattice, 2, 3, spread=4.0)
    z = torch.randn(2, 2, CELLS, LATENT, dtype=torch.float64)
    error = density_invariance_error(through_pyro(t), spec, x[:, 0], x[:, 1:], z, Relabelling(CELLS, shifts=periodic), samples=3)
    assert error.maximum <= 1e-9


@pytest.mark.parametrize("periodic", [False, True])
def test_the_published_network_is_as_invariant(periodic):
    spec = label_spec(CELLS, periodic=periodic)
    t = transition(spec, (26, 23), "spatial-conv")
    x = tissues(spec, (26, 23), 2, 2)
    z = torch.randn(2, 1, CELLS, LATENT, dtype=torch.float64)
    error = density_invariance_error(through_pyro(t), spec, x[:, 0], x[:, 1:], z, Relabelling(CELLS, shifts=periodic), samples=3)
    assert error.maximum <= 1e-9


def test_a_confluent_periodic_tissue_has_no_origin_either():
    spec = label_spec(CELLS, periodic=True)
    t = transition(spec, (18, 17), interlacing=4)
    x = tissues(spec, (18, 17), 2, 2, spread=100.0)
    assert x[..., 0].min() > 0
    z = torch.randn(2, 1, CELLS, LATENT, dtype=torch.float64)
    error = density_invariance_error(through_pyro(t), spec, x[:, 0], x[:, 1:], z, Relabelling(CELLS, shifts=True), samples=8)
    assert error.maximum <= 1e-9


def test_the_unet_is_seen_to_know_names():
    spec = label_spec(CELLS)
    t = transition(spec, (16, 16), "unet")
    x = tissues(spec, (16, 16), 2, 2)
    z = torch.randn(2, 1, CELLS, LATENT, dtype=torch.float64)
    assert density_invariance_error(through_pyro(t), spec, x[:, 0], x[:, 1:], z, Relabelling(CELLS), samples=3).maximum > 1e-6


# -- cells that misbehave --------------------------------------------------------------------------------------------------

LARGE = torch.zeros(24, 24, dtype=torch.int64)
LARGE[2:22, 2:22] = 1
LARGE[10:12, 22] = 2
PIECES = torch.zeros(24, 24, dtype=torch.int64)
PIECES[2:5, 2:5], PIECES[18:20, 20:22], PIECES[9:13, 9:12], PIECES[0, 23] = 1, 1, 2, 2
TINY = torch.zeros(24, 24, dtype=torch.int64)
TINY[0, 0], TINY[23, 11], TINY[12, 12] = 1, 2, 3
STATES = {"large": LARGE, "pieces": PIECES, "tiny": TINY, "medium": torch.zeros_like(TINY), "confluent": torch.full_like(TINY, 2)}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("network", ["windows", "spatial-conv", "unet"])
def test_values_and_gradients_are_finite_whatever_the_cells_do(name, network):
    t = transition(label_spec(3), (24, 24), network)
    x = torch.stack([STATES[name], STATES[name]], -1)[None]  # cell i is of type i
    for other in STATES.values():
        t.zero_grad()
        step = elbo_step(t.at(x), torch.stack([other, other], -1)[None])
        assert step.log_likelihood.isfinite().all()
        assert (step.kl >= 0).all()
        (step.log_likelihood - step.kl.sum((-2, -1))).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in t.parameters())
    present = set(x[..., 0].unique().tolist()) | {0}
    for drawn in (step.emission.sample(), step.emission.mode):
        assert set(drawn.unique().tolist()) <= present


def test_a_cell_larger_than_its_window_keeps_its_far_pixels():
    """Outside of every window a pixel is a contest of its present cell and the medium, not lost to the floor."""
    t = transition(label_spec(3), (24, 24), floor=1e-9)
    x = torch.stack([LARGE, LARGE], -1)[None]
    stays = law(t, x).pixel_log_prob(x[..., :1])[0].view(24, 24)
    assert float(stays[LARGE > 0].detach().min()) > -20.0


def test_absent_cells_have_the_standard_prior_and_no_kl():
    spec = label_spec(CELLS)
    t = transition(spec, (16, 16))
    x = tissues(spec, (16, 16), 2, 2)
    x[x[..., 0] == 4] = 0
    step = t.at(x[:, 0])
    prior, posterior = step.prior.base_dist, step.posterior(x[:, 1]).base_dist
    for one in (prior, posterior):
        assert torch.equal(one.loc[:, 3], torch.zeros(2, LATENT, dtype=torch.float64))
        assert torch.equal(one.scale[:, 3], torch.ones(2, LATENT, dtype=torch.float64))
    assert (elbo_step(t.at(x[:, 0]), x[:, 1]).kl[:, 3] == 0).all()
    assert (elbo_step(t.at(x[:, 0]), x[:, 1]).kl[:, 0] > 0).all()


def test_absent_cells_and_batch_mates_do_not_change_a_density():
    spec = label_spec(CELLS)
    t = transition(spec, (16, 16), interlacing=4)
    x = tissues(spec, (16, 16), 3, 3)
    z = torch.randn(3, 2, CELLS, LATENT, dtype=torch.float64)
    together = through_pyro(t)(x[:, 0], x[:, 1:], z)
    torch.testing.assert_close(through_pyro(t)(x[1:2, 0], x[1:2, 1:], z[1:2])[0], together[1], rtol=1e-11, atol=0.0)
    wide_spec = label_spec(CELLS + 4)
    wide = transition(wide_spec, (16, 16), interlacing=4)
    wide.load_state_dict(t.state_dict())
    more = torch.cat([z, torch.zeros(3, 2, 4, LATENT, dtype=torch.float64)], 2)
    standard = 2 * 4 * LATENT * 0.5 * np.log(2 * np.pi)  # of the absent cells' latents, at zero
    torch.testing.assert_close(through_pyro(wide)(x[:, 0], x[:, 1:], more) + standard, together, rtol=1e-11, atol=0.0)


# -- the posterior ---------------------------------------------------------------------------------------------------------


def fresh(spec: StateSpec, lattice: tuple[int, int], **settings: object) -> CellsTransition:
    torch.manual_seed(0)
    return CellsModelConfig.parse({"latent": LATENT, "prior_width": 8} | settings).build(DataContext(spec, 1.0, {}, lattice))


def test_before_training_the_posterior_is_the_prior():
    spec = label_spec(CELLS)
    x = tissues(spec, (16, 16), 2, 2)
    assert (elbo_step(fresh(spec, (16, 16)).at(x[:, 0]), x[:, 1]).kl == 0).all()


def test_the_posterior_sees_where_its_own_cell_went():
    t = transition(label_spec(3), (24, 24), inner={"window": 7})
    x = torch.zeros(1, 24, 24, dtype=torch.int64)
    x[0, 4:8, 4:8], x[0, 16:20, 16:20] = 1, 2
    state = lambda labels: torch.stack([labels, labels], -1)  # noqa: E731
    step = t.at(state(x))
    still = step.posterior(state(x)).base_dist.loc
    for shift in ((1, 0), (0, -1)):
        moved = x.clone()
        moved[0, 2:10, 2:10] = x[0, 2:10, 2:10].roll(shift, (0, 1))
        found = step.posterior(state(moved)).base_dist.loc
        assert (found[0, 0] - still[0, 0]).abs().min() > 1e-6
        assert torch.equal(found[0, 1], still[0, 1])


# -- Pyro ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feedback", [Feedback.TEACHER, Feedback.PUSHFORWARD])
def test_stock_pyro_gives_the_loss_and_gradient_of_the_trainer(feedback):
    spec = label_spec(CELLS)
    t = transition(spec, (16, 16))
    x = tissues(spec, (16, 16), 2, 3)
    found = []
    for objective in (
        lambda: Objective(t, feedback)(x[:, 0], x[:, 1:]).loss * 4,
        lambda: TraceMeanField_ELBO()(EPNSModel(t, feedback=feedback), EPNSGuide(t, feedback=feedback))(x[:, 0], x[:, 1:]),
    ):
        t.zero_grad()
        torch.manual_seed(3)
        loss = objective()
        loss.backward()
        found.append((float(loss.detach()), {name: p.grad.clone() for name, p in t.named_parameters() if p.grad is not None}))
    (ours, our_gradient), (theirs, their_gradient) = found
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert our_gradient.keys() == their_gradient.keys()
    for name, gradient in our_gradient.items():
        torch.testing.assert_close(gradient, their_gradient[name], rtol=1e-9, atol=1e-9, msg=name)


def test_forecasts_run_in_parallel_and_keep_types():
    spec = label_spec(CELLS)
    t = transition(spec, (14, 14))
    x = tissues(spec, (14, 14), 2, 3)
    pyro.set_rng_seed(0)
    out = Predictive(EPNSModel(t), guide=EPNSGuide(t), num_samples=3, parallel=True)(x[:, 0], horizon=2)
    assert out["x_2"].shape == (3, 2, 14, 14, 1)
    assert out["z_1"].shape == (3, 2, CELLS, LATENT)
    assert out["x_2"].dtype == torch.int64
    again = spec.advance(x[:, 0], out["x_1"])
    types = spec.entity_property(x[:, 0], "type")
    for s, b in itertools.product(range(3), range(2)):
        assert torch.equal(types[b][out["x_1"][s, b, ..., 0]], again[s, b, ..., 1])
    smoothed = Predictive(EPNSModel(t), guide=EPNSGuide(t), num_samples=3, parallel=True)(x[:, 0], x[:, 1:])
    assert smoothed["z_2"].shape == (3, 2, CELLS, LATENT)


def test_the_law_expands_as_distributions_do():
    spec = label_spec(CELLS)
    x = tissues(spec, (12, 12), 2, 1)[:, 0]
    emission = law(transition(spec, (12, 12)), x)
    wide = emission.expand((4, 2))
    assert wide.batch_shape == (4, 2)
    assert wide.event_shape == (12, 12, 1)
    assert wide.sample((3,)).shape == (3, 4, 2, 12, 12, 1)
    torch.testing.assert_close(wide.log_prob(x[..., :1])[3], emission.log_prob(x[..., :1]))


def test_training_raises_the_bound_and_uses_the_latents_of_independent_pixels():
    """Forty steps on one batch of the real process."""
    system = CellsConfig.small().build()
    x = torch.as_tensor(system.simulate(system.initial(8, np.random.default_rng(0)), 4, np.arange(8, dtype=np.uint64))).long()
    t = fresh(system.spec, (40, 40), interlacing=1, latent=4, network={"name": "windows", "width": 8, "window": 13, "spacing": 2.25})
    optimizer = torch.optim.Adam(t.parameters(), 1e-2)
    bounds, kls = [], []
    for _ in range(40):
        step = elbo_step(t.at(x[:, 3]), x[:, 4])
        bounds.append(float((step.log_likelihood - step.kl.sum((-2, -1))).mean()))
        kls.append(float(step.kl.sum((-2, -1)).mean()))
        optimizer.zero_grad()
        (0.2 * step.kl.sum((-2, -1)) - step.log_likelihood).mean().backward()
        optimizer.step()
    assert bounds[-1] > bounds[0] + 300
    assert kls[-1] > 1.0


def test_nearly_all_pixels_of_real_tissues_are_among_the_candidates():
    """What the default window of the small system misses goes to the floor: under 2 in 10,000 of the cells' pixels."""
    system = CellsConfig.small().build()
    x = torch.as_tensor(system.simulate(system.initial(12, np.random.default_rng(1)), 12, np.arange(12, dtype=np.uint64))).long()
    t = fresh(system.spec, (40, 40), network={"name": "windows", "window": 13, "spacing": 2.25})
    now, after = t.tissue(x[:, 1:-1].flatten(0, 1)), x[:, 2:, ..., 0].flatten(0, 1)
    crops = t.network.crops(now)
    reached = crops.labels(after.flatten(-2)) == torch.arange(1, 17)[:, None]
    missed = 1 - float(reached.sum() / (after > 0).sum())
    assert 0 <= missed < 2e-4


# -- settings --------------------------------------------------------------------------------------------------------------


def test_states_that_are_no_label_images_are_refused():
    with pytest.raises(ConfigError, match="one dynamic field, of labels"):
        fresh(StateSpec((Field("heat"),), sites=("y", "x"), space=2), (8, 8))
    dirty = StateSpec((Field("cell", kind="label", size=3), Field("salt", dynamic=False)), sites=("y", "x"), space=2)
    with pytest.raises(ConfigError, match="one static field at most, the type of every cell; found salt"):
        fresh(dirty, (8, 8))


def test_labels_without_types_are_all_of_one():
    spec = StateSpec((Field("cell", kind="label", size=4),), sites=("y", "x"), space=2)
    t = fresh(spec, (8, 8))
    x = torch.zeros(1, 8, 8, 1, dtype=torch.int64)
    x[0, 2:5, 2:5] = 1
    assert t.tissue(x).types.tolist() == [[1, 0, 0]]
    assert elbo_step(t.at(x), x).log_likelihood.isfinite().all()


def test_the_rule_of_an_ensemble_is_said_in_words():
    spec = label_spec(3)
    assert "every pixel independently" in fresh(spec, (8, 8), interlacing=1).sampling_rule
    assert "16 interlaced classes" in fresh(spec, (8, 8), interlacing=4).sampling_rule


def test_a_tissue_counts_what_it_holds():
    labels = torch.tensor([[[0, 1, 1], [3, 3, 1]]])
    tissue = Tissue(labels, torch.tensor([[1, 0, 2]]), False, 5)
    assert tissue.areas.tolist() == [[3, 0, 2]]
    assert tissue.present.tolist() == [[True, False, True]]
    assert tissue.type_of_pixels(tissue.flat).tolist() == [[0, 1, 1, 2, 2, 1]]


def test_a_film_of_many_large_cells_is_evaluated_image_by_image():
    """Memory is that of the windows around all cells of a block of images."""
    small, large = (fresh(label_spec(cells), lattice) for cells, lattice in ((17, (64, 64)), (286, (700, 1100))))
    assert small.block_size == 64
    window = math.prod(large.network.window(Size(700, 1100)))
    assert 1 <= large.block_size <= max(1, WINDOW_PIXELS // (285 * window))
