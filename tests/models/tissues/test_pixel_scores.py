"""Expected areas and centres of cells while an image is drawn, against a plain count, and batch by batch as all at once."""

from __future__ import annotations

import math

import pytest
import torch
from label_tissues import label_spec, law, tissues, transition

from epns_pyro.backbones.tissues.tissue import AREA_FEATURES, area_features
from epns_pyro.models.tissues.pixel_scores import CELL_RADIUS, EXPECTATION_FEATURES, distance_features

CELLS = 5
LATTICE = (12, 11)


@pytest.fixture(params=[False, True], ids=["walls", "periodic"])
def drawn(request: pytest.FixtureRequest):
    spec = label_spec(CELLS, periodic=request.param)
    t = transition(spec, LATTICE, interlacing=2, inner={"window": 5})
    x = tissues(spec, LATTICE, 2, 2, spread=4.0)
    emission = law(t, x[:, 0])
    field, draft = emission._flat(emission.batch_shape)
    assert field.outside.any()  # cells larger than their windows
    with torch.no_grad():
        marginals = emission._marginals(field, draft)
    return emission, field, draft, marginals, x[:, 1, ..., 0].flatten()


def test_an_expectation_is_what_a_plain_count_says(drawn) -> None:
    _, field, _, marginals, labels = drawn
    found = marginals.expectation(marginals.past(labels), range(4))
    c, areas = field.candidates, field.tissue.areas.flatten().tolist()
    for cell, area in enumerate(areas):
        rows = [r for r in range(len(c.cell)) if c.cell[r] == cell]
        here = [a for a in areas[cell // CELLS * CELLS : (cell // CELLS + 1) * CELLS] if a > 0]
        mean = sum(here) / len(here)
        for k in range(4):
            total, moment, gained, variance = float(area), [0.0, 0.0], 0.0, 0.0
            for r in rows:
                p, before = float(marginals.probability[r]), field.classes[c.pixel[r]] < k
                has = float(labels[c.pixel[r]] == c.name[r]) if before else p
                total += has - float(field.labels[c.pixel[r]] == c.name[r])
                gained += has - p
                variance += 0.0 if before else p * (1 - p)
                moment = [m + has * float(o) / CELL_RADIUS for m, o in zip(moment, c.offset[r], strict=True)]
            expected = [(total - mean) / (1 + mean) ** 0.5, moment[0] / (1 + total), moment[1] / (1 + total), gained / CELL_RADIUS]
            expectation = found[cell, k]
            torch.testing.assert_close(expectation[:AREA_FEATURES], area_features(torch.tensor(total, dtype=torch.float64)))
            torch.testing.assert_close(expectation[AREA_FEATURES : AREA_FEATURES + 4], torch.tensor(expected, dtype=torch.float64))
            assert float(expectation[EXPECTATION_FEATURES - 1]) == pytest.approx(variance**0.5, abs=1e-9)
            disc = [moment[0] * CELL_RADIUS / max(total, 1), moment[1] * CELL_RADIUS / max(total, 1), (max(total, 1) / math.pi) ** 0.5]
            torch.testing.assert_close(expectation[EXPECTATION_FEATURES:], torch.tensor(disc, dtype=torch.float64))


def test_distances_are_from_the_expected_centre_in_cell_radii() -> None:
    offset, disc = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0, 2.0], [0.0, 4.0, 3.0]])
    expected = [[5 / 3, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 2.0]]
    torch.testing.assert_close(distance_features(offset, disc), torch.tensor(expected), atol=1e-6, rtol=1e-6)


def test_the_marginal_is_a_probability_and_the_law_of_the_first_class(drawn) -> None:
    emission, field, _, marginals, labels = drawn
    taken = torch.zeros_like(field.labels, dtype=torch.float64).index_add(0, field.candidates.pixel, marginals.probability)
    assert 0.1 < float(taken.max()) <= 1 + 1e-12
    chosen = (field.classes[field.candidates.pixel] == 0) & (labels[field.candidates.pixel] == field.candidates.name)
    with torch.no_grad():
        scored = emission.pixel_log_prob(labels.view(2, *LATTICE, 1)).flatten()[field.candidates.pixel[chosen]]
    assert chosen.sum() > 5
    torch.testing.assert_close(scored.exp(), marginals.probability[chosen], rtol=1e-5, atol=1e-5)


def test_turn_by_turn_equals_all_at_once(drawn) -> None:
    emission, field, draft, marginals, labels = drawn
    every = field.pixels_of(range(4))
    with torch.no_grad():
        whole = emission.scores.laws(field, draft, every, labels, marginals.expectation(marginals.past(labels), range(4)))[2:]
        past = torch.zeros(field.tissue.types.numel(), 1, 3, dtype=torch.float64)
        parts = []
        for k in range(4):
            pixels = field.pixels_of(range(k, k + 1))
            unseen = torch.where(field.classes < k, labels, 0)
            parts.append(emission.scores.laws(field, draft, pixels, unseen, marginals.expectation(past, pixels.classes))[2:])
            past = past + marginals.surplus(labels, pixels)
    for found, expected in zip(zip(*parts, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.cat(found), expected)
