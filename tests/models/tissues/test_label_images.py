"""The law of the next image: it sums to one, is sampled as it is scored, and lets a pixel see only what is drawn before it."""

from __future__ import annotations

import itertools

import pytest
import torch
from label_tissues import label_spec, law, tissues, transition
from torch import Tensor

from epns_pyro.models.tissues.interlacing import dither, pixel_classes
from epns_pyro.models.tissues.label_images import ABSENT

CELLS = 9


def image(rows: str, types: str = "123123123") -> Tensor:
    """A full state (1, y, x, channel) from digits, rows apart by blanks."""
    cell = torch.tensor([[int(c) for c in row] for row in rows.split()])
    table = torch.tensor([0, *map(int, types)])
    return torch.stack([cell, table[cell]], -1)[None]


def every_image(height: int, width: int, labels: int) -> Tensor:
    """(image, y, x, 1)."""
    return torch.tensor(list(itertools.product(range(labels), repeat=height * width))).view(-1, height, width, 1)


@pytest.mark.parametrize("interlacing", [1, 2, 4])
@pytest.mark.parametrize("network", ["windows", "spatial-conv", "unet"])
@pytest.mark.parametrize("start", ["012 122", "000 012", "111 102"])
def test_the_probabilities_of_all_images_sum_to_one(interlacing, network, start):
    t = transition(label_spec(2, types=2), (2, 3), network, interlacing=interlacing, floor=0.01)
    x = image(start, "12")
    with torch.no_grad():
        total = law(t, x).log_prob(every_image(2, 3, 3)).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-12)


def test_cells_that_are_not_there_get_no_probability():
    """Images of the present cells alone sum to one; the others are worth ABSENT per pixel, and are never drawn."""
    t = transition(label_spec(3, types=2), (2, 3), interlacing=2)
    x = image("001 011", "112")
    here = law(t, x)
    assert float(here.log_prob(every_image(2, 3, 2)).exp().sum()) == pytest.approx(1.0, abs=1e-12)
    there = here.pixel_log_prob(image("003 002", "112")[..., :1])
    torch.testing.assert_close(there[0, [2, 5]], torch.full((2,), ABSENT, dtype=torch.float64))
    assert here.expand((500,)).sample().unique().tolist() == [0, 1]


def test_pixels_of_cells_that_appear_are_left_out_of_what_a_step_scores():
    t = transition(label_spec(3, types=2), (2, 3), interlacing=2)
    step = t.at(image("001 011", "112"))
    emission = step.emission(step.prior.mean)
    new, before = image("003 002", "112"), image("001 011", "112")
    scored, value = step.observe(emission, new)
    expected = emission.pixel_log_prob(value)
    expected[0, [2, 5]] = 0
    torch.testing.assert_close(scored.pixel_log_prob(value), expected)
    torch.testing.assert_close(scored.expand((4,)).log_prob(value), expected.sum(-1).expand(4))
    law, same = step.observe(emission, before)
    torch.testing.assert_close(law.log_prob(same), emission.log_prob(same))


@pytest.mark.parametrize("interlacing", [1, 2])
def test_samples_follow_the_law(interlacing):
    """Chi-squared over all 64 images of 2 x 3 pixels, 20,000 draws: false failures 1 in 10,000."""
    t = transition(label_spec(1, types=1), (2, 3), interlacing=interlacing, floor=0.05)
    emission = law(t, image("011 001", "1"))
    images = every_image(2, 3, 2)
    expected = 20_000 * emission.log_prob(images).exp()
    torch.manual_seed(0)
    drawn = emission.sample((20_000,))[:, 0].flatten(1)
    found = torch.bincount((drawn * 2 ** torch.arange(5, -1, -1)).sum(-1), minlength=64)
    large = expected > 5
    rest = (found[~large].sum() - expected[~large].sum()).square() / expected[~large].sum() if (~large).any() else 0.0
    chi2 = float(((found - expected).square() / expected)[large].sum() + rest)
    assert chi2 < 63 + 3.9 * (2 * 63) ** 0.5 + 10
    assert expected[large].max() < 19_000  # the law is not a point


def test_a_pixel_sees_only_the_classes_before_its_own():
    spec = label_spec(CELLS)
    t = transition(spec, (16, 16), interlacing=4)
    x = tissues(spec, (16, 16), 1, 2)
    emission = law(t, x[:, 0])
    value = x[:, 1, ..., :1]
    classes = pixel_classes(t.tissue(x[:, 0]), 4)[0]
    reference = emission.pixel_log_prob(value)[0]
    told = 0
    for pixel in (64, 101, 119, 136, 170):
        other = value.clone().flatten()
        other[pixel] = int(other[pixel] == 0)
        difference = (emission.pixel_log_prob(other.view(value.shape))[0] - reference).abs() > 1e-12
        difference[pixel] = False
        assert not difference[classes <= classes[pixel]].any()
        told += int(difference.sum())
    assert told > 10


def test_with_one_class_pixels_are_independent():
    spec = label_spec(CELLS)
    t = transition(spec, (16, 16), interlacing=1)
    x = tissues(spec, (16, 16), 1, 2)
    first, second = (law(t, x[:, 0]).pixel_log_prob(v) for v in (x[:, 0, ..., :1], x[:, 1, ..., :1]))
    same = (x[0, 0, ..., 0] == x[0, 1, ..., 0]).flatten()
    assert 0 < same.sum() < 256
    torch.testing.assert_close(first[0, same], second[0, same])


def test_the_mode_is_greedy_and_is_what_mean_feedback_feeds_back():
    t = transition(label_spec(2, types=2), (2, 3), interlacing=1)
    emission = law(t, image("012 122", "12"))
    images = every_image(2, 3, 3)
    best = images[emission.log_prob(images).argmax()]
    assert torch.equal(emission.mode[0], best)
    assert torch.equal(emission.mean, emission.mode)
    interlaced = law(transition(label_spec(2, types=2), (2, 3), interlacing=2), image("012 122", "12"))
    assert not any(p.requires_grad for p in (interlaced.mode,))
    assert float(interlaced.log_prob(interlaced.mode)) > float(interlaced.log_prob(interlaced.sample((200,))).mean())


def test_the_dither_spreads_its_first_classes():
    assert sorted(dither(4).flatten().tolist()) == list(range(16))
    for side in (2, 4, 8):
        y, x = (dither(side) < side**2 // 4).nonzero().T
        assert set((y % 2).tolist()) == {0} == set((x % 2).tolist())
