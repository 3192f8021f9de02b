"""Sweeps: the density is estimated without bias, draws follow it, and it keeps the symmetries of the images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from label_tissues import label_spec, law, tissues, transition
from torch import Tensor

from epns_pyro.errors import ConfigError
from epns_pyro.models.tissues.cells import CellsModelConfig
from epns_pyro.models.tissues.label_images import LabelImage
from epns_pyro.models.tissues.pixel_laws import PixelLaws
from epns_pyro.models.tissues.sweeps import Sweeps, with_uniform
from epns_pyro.symmetry import Relabelling, density_invariance_error

LATTICE = (2, 3)
FLOOR = 1e-9  # the proposed ways leave out what the uniform law brings


def every_image(labels: int) -> Tensor:
    """(image, y, x, 1)."""
    return torch.tensor(list(itertools.product(range(labels), repeat=6))).view(-1, *LATTICE, 1)


def small_law(sweeps: int, **settings: object) -> LabelImage:
    """The law of an image of 2 x 3 pixels with 2 cells, at weights of order one."""
    t = transition(label_spec(2, types=2), LATTICE, interlacing=2, neighbourhood=3, sweeps=sweeps, floor=FLOOR, **settings)
    if (again := t.scores.again) is not None:  # sweeps that fit the first draw, as trained ones do
        with torch.no_grad():
            for view in again.view:
                view.weight.copy_(torch.eye(len(view.weight)) + 0.1 * view.weight)
            for part in ("own", "kinds", "cell", "medium", "stay"):
                for mine, first in zip(getattr(again, part).parameters(), getattr(t.scores, part).parameters(), strict=True):
                    mine.copy_(first[: len(mine)])
    cell = torch.tensor([[[0, 1, 2], [1, 1, 2]]])
    return law(t, torch.stack([cell, torch.tensor([0, 1, 2])[cell]], -1))


def given_others(sweeps: Sweeps, group: range, labels: Tensor) -> tuple[PixelLaws, Tensor]:
    """The laws of a group of pixels of images (pixel,), given all others."""
    pixels = sweeps.field.given_others(group)
    rows = sweeps.laws.read(sweeps.field, sweeps.draft, pixels)
    return sweeps._given_others(group, pixels, rows, labels, sweeps.marginals.whole(labels))


def exact(emission: LabelImage) -> Tensor:
    """The probability of every image, by summing over all ways: (image,)."""
    images = every_image(3)
    flat = images.flatten(1)
    field, first = emission._flat(torch.Size((len(images),)))
    probability = emission._scores(field, first, flat.flatten(), emission._marginals(field, first)).view(len(images), -1).sum(-1).exp()
    sweeps, labels = emission._sweeps(field, first, emission._marginals(field, first)), flat.flatten()
    for _, group in itertools.product(range(emission.scores.sweeps), field.groups):
        laws, _ = given_others(sweeps, group, labels)
        pixel = laws.pixels.pixel
        g = torch.zeros(len(images), dtype=torch.float64)
        g = g.index_add(0, pixel // 6, with_uniform(field, laws.score(labels) - laws.total, FLOOR, pixel)).exp()
        redrawn = torch.zeros(6, dtype=torch.bool)
        redrawn[pixel % 6] = True
        rest = (flat * (3 ** torch.arange(6)) * ~redrawn).sum(-1)
        probability = g * torch.zeros(3**6, dtype=torch.float64).index_add(0, rest, probability)[rest]
    return probability


OF_THEIR_OWN = {"pseudo_likelihood": True}  # weights of sweeps


@pytest.fixture(scope="module", params=[(1, {}), (2, {}), (1, OF_THEIR_OWN), (2, OF_THEIR_OWN)], ids=["1", "2", "1 fitted", "2 fitted"])
def emission(request: pytest.FixtureRequest) -> LabelImage:
    sweeps, settings = request.param
    return small_law(sweeps, **settings)


@torch.no_grad()
def test_the_probabilities_of_all_images_sum_to_one_and_differ_from_those_without_sweeps(emission: LabelImage) -> None:
    probability, first = exact(emission), emission.pixel_log_prob(every_image(3)).sum(-1).exp()
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-9)
    assert 0.02 < float((probability - first).abs().sum()) < 1.9


@torch.no_grad()
def test_the_density_is_estimated_without_bias(emission: LabelImage) -> None:
    probability, seeds = exact(emission), 300
    likely = probability.topk(40).indices
    emission.seed = torch.arange(seeds).repeat_interleave(len(likely))
    found = emission.log_prob(every_image(3)[likely].expand(seeds, -1, -1, -1, -1).flatten(0, 1)).exp().view(seeds, -1)
    emission.seed = 0
    z = (found.mean(0) - probability[likely]) / (found.std(0) / seeds**0.5)
    assert float(z.square().mean()) < 2
    total, error = float(found.mean(0).sum()), float(found.sum(1).std()) / seeds**0.5
    assert total == pytest.approx(float(probability[likely].sum()), abs=4 * error)
    assert error < 0.1 * total
    assert float((found.std(0) / found.mean(0)).mean()) > 0.05  # it is random in the seed


@torch.no_grad()
def test_draws_follow_the_density(emission: LabelImage) -> None:
    """Chi-squared over all 729 images, 6,000 draws."""
    expected = 6_000 * exact(emission)
    torch.manual_seed(0)
    drawn = emission.sample((6_000,))[:, 0].flatten(1)
    found = torch.bincount((drawn * 3 ** torch.arange(5, -1, -1)).sum(-1), minlength=729)
    large = expected > 5
    chi2, freedom = float(((found - expected).square() / expected)[large].sum()), int(large.sum())
    assert freedom > 20
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5
    first = 6_000 * emission.pixel_log_prob(every_image(3)).sum(-1).exp()
    assert float(((found - first).square() / first)[first > 5].sum()) > 5 * freedom  # the law without sweeps is another one


@pytest.mark.parametrize("periodic", [False, True])
def test_the_bound_is_a_function_of_the_images_with_their_symmetries(periodic: bool) -> None:
    spec = label_spec(7, periodic=periodic)
    t = transition(spec, (16, 16), interlacing=4, sweeps=2, revisions=())
    x = tissues(spec, (16, 16), 2, 2)

    def density(x0: Tensor, path: Tensor, z: Tensor) -> Tensor:
        return law(t, x0, z[:, 0]).log_prob(path[:, 0, ..., :1])

    z = torch.randn(2, 1, 7, t.config.latent, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert density_invariance_error(density, spec, x[:, 0], x[:, 1:], z, Relabelling(7, shifts=periodic), samples=4).maximum < 1e-12
        both = law(t, x[:, 0], z[:, 0])
        again, alone = (both.log_prob(x[:, 1, ..., :1]) for _ in range(2)), law(t, x[1:, 0], z[1:, 0]).log_prob(x[1:, 1, ..., :1])
        assert torch.equal(*again)
        torch.testing.assert_close(both.log_prob(x[:, 1, ..., :1])[1:], alone)
        both.seed = 1
        assert (both.log_prob(x[:, 1, ..., :1])[1:] - alone).abs() > 1e-3


def test_undoing_reads_no_pixel_of_the_group_that_it_draws() -> None:
    spec = label_spec(7)
    t = transition(spec, (16, 16), interlacing=4, sweeps=1, revisions=())
    x = tissues(spec, (16, 16), 1, 2)
    emission = law(t, x[:, 0])
    field, first = emission._flat(emission.batch_shape)
    sweeps, rng = emission._sweeps(field, first, emission._marginals(field, first)), np.random.default_rng(0)
    for group in field.groups:
        labels = x[0, 1, ..., 0].flatten().clone()
        with torch.no_grad():
            laws, _ = given_others(sweeps, group, labels)
            labels[laws.pixels.pixel] = torch.as_tensor(rng.integers(0, 8, len(laws.pixels.pixel)))
            again, _ = given_others(sweeps, group, labels)
        for one, other in zip(laws[2:], again[2:], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_pixels_of_cells_that_appear_stay_and_are_not_scored() -> None:
    t = transition(label_spec(3, types=2), LATTICE, interlacing=2, neighbourhood=3, sweeps=2)
    cell = torch.tensor([[[0, 0, 1], [0, 1, 1]]])
    emission = law(t, torch.stack([cell, torch.tensor([0, 1, 1, 2])[cell]], -1)).given_new()
    value = torch.tensor([[[0, 0, 3], [0, 1, 1]]])[..., None]
    field, first = emission._flat(emission.batch_shape)
    labels = value.flatten()
    before, _ = emission._sweeps(field, first, emission._marginals(field, first)).undo(labels, labels == 3)
    assert before[2] == 3
    assert (before != 3).sum() == 5
    assert torch.isfinite(emission.log_prob(value)).all()


def test_the_gradient_reaches_both_the_first_draw_and_the_sweeps() -> None:
    emission = small_law(2)
    (-emission.log_prob(every_image(3)[100:140]).mean()).backward()
    own = emission.scores.own.own.grad
    assert own.shape[0] == 4
    assert all(float(part.abs().sum()) > 1e-6 for part in own)


@pytest.mark.parametrize("periodic", [False, True])
def test_the_pseudo_likelihood_is_that_of_every_group_given_the_others(periodic: bool) -> None:
    """All groups in one pass, group by group, and in parts that an estimate picks one of."""
    spec = label_spec(7, periodic=periodic)
    t = transition(spec, (16, 16), interlacing=4, sweeps=1, revisions=(), pseudo_likelihood=True, distances=True)
    x = tissues(spec, (16, 16), 2, 2)
    emission, labels = law(t, x[:, 0]), x[:, 1, ..., 0].flatten()
    field, first = emission._flat(emission.batch_shape)
    sweeps, fixed, parts = emission._sweeps(field, first, emission._marginals(field, first)), labels == 3, []
    with torch.no_grad():
        for group in field.groups:
            laws, _ = given_others(sweeps, group, labels)
            pixel = laws.pixels.pixel
            score = with_uniform(field, laws.score(labels) - laws.total, emission.floor, pixel)
            parts.append(torch.stack([score[~fixed[pixel] & (pixel // 256 == image)].sum() for image in range(2)]))
        groups = len(parts)
        torch.testing.assert_close(sweeps.pseudo_likelihood(labels, fixed, range(groups)), sum(parts))
        quarters = [4 * sum(parts[start : start + groups // 4]) for start in range(0, groups, groups // 4)]
        found = sweeps.fit(labels, fixed)
        assert sum(torch.allclose(found, quarter) for quarter in quarters) == 1


def test_pixels_that_are_drawn_at_the_same_time_are_as_far_apart_as_wanted() -> None:
    spec = label_spec(7)
    x = tissues(spec, (16, 16), 1, 2)
    for apart, groups in ((1, 16), (4, 16), (8, 64)):
        emission = law(transition(spec, (16, 16), interlacing=8, sweeps=1, revisions=(), apart=apart), x[:, 0])
        field, _ = emission._flat(emission.batch_shape)
        assert len(field.groups) == groups
        for group in field.groups:
            pixel = field.given_others(group).pixel
            y, column = pixel // 16, pixel % 16
            distance = torch.maximum((y - y[:, None]).abs(), (column - column[:, None]).abs())
            assert (distance + 99 * torch.eye(len(pixel))).min() >= max(apart, 4)


def test_sweeps_that_are_fitted_to_recorded_images_leave_the_rest_of_the_model_alone() -> None:
    value, emission = every_image(3)[100:110], small_law(2, pseudo_likelihood=True)
    emission.draft.cells.requires_grad_()
    field, first = emission._flat(torch.Size((10,)))
    scored, first_draw = emission.log_prob(value), emission.pixel_log_prob(value).sum(-1)
    torch.testing.assert_close(scored, first_draw)  # while training
    with torch.no_grad():
        assert (emission.log_prob(value) - first_draw).abs().max() > 1e-3
    labels, scores = value.flatten(), emission.scores
    of_sweeps, of_first = [scores.again.own.shared, scores.again.view[0].weight], [emission.draft.cells, scores.own.own]
    fit = emission._sweeps(field, first, emission._marginals(field, first)).fit(labels, labels < 0).sum()
    for part, source in ((of_sweeps, fit), (of_first, first_draw.sum())):
        found, expected = (torch.autograd.grad(one, part, retain_graph=True) for one in (scored.sum(), source))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
            assert float(one.abs().sum()) > 1e-6


def test_independent_pixels_have_no_sweeps() -> None:
    with pytest.raises(ConfigError, match="set sweeps to 0, or interlacing above 1"):
        CellsModelConfig.parse({"interlacing": 1, "sweeps": 2})


def test_training_scores_the_law_of_fewer_sweeps() -> None:
    value = every_image(3)[100:110]
    fewer = small_law(1).log_prob(value)
    emission = small_law(2)
    emission.scores.training_sweeps = 1
    torch.testing.assert_close(emission.log_prob(value), fewer)
    with torch.no_grad():
        assert (emission.log_prob(value) - fewer).abs().max() > 1e-3
    t = transition(label_spec(2, types=2), LATTICE, interlacing=2, neighbourhood=3, sweeps=1, training_sweeps=3)
    assert t.scores.training_sweeps == 1
