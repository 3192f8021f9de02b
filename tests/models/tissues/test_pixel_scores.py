"""Where cells are heading while an image is drawn, against a plain count, and turn by turn as all at once."""

from __future__ import annotations

import pytest
import torch
from label_tissues import label_spec, law, tissues, transition

from epns_pyro.backbones.tissues.tissue import AREA_FEATURES, area_features
from epns_pyro.models.tissues.pixel_scores import CELL_RADIUS

CELLS = 5
LATTICE = (12, 11)


@pytest.fixture(params=[False, True], ids=["walls", "periodic"])
def drawn(request: pytest.FixtureRequest):
    spec = label_spec(CELLS, periodic=request.param)
    t = transition(spec, LATTICE, interlacing=2, inner={"window": 5})
    x = tissues(spec, LATTICE, 2, 2, spread=4.0)
    emission = law(t, x[:, 0])
    field, draft = emission._flat(emission.batch_shape)
    assert field.stray.any()  # cells larger than their windows
    with torch.no_grad():
        outlook = emission._outlook(field, draft)
    return emission, field, draft, outlook, x[:, 1, ..., 0].flatten()


def test_a_heading_is_what_a_plain_count_says(drawn) -> None:
    _, field, _, outlook, labels = drawn
    found = outlook.heading(outlook.past(labels), range(4))
    c, areas = field.candidates, field.tissue.areas.flatten().tolist()
    for cell, area in enumerate(areas):
        rows = [r for r in range(len(c.cell)) if c.cell[r] == cell]
        here = [a for a in areas[cell // CELLS * CELLS : (cell // CELLS + 1) * CELLS] if a > 0]
        mean = sum(here) / len(here)
        for k in range(4):
            total, moment, gained, variance = float(area), [0.0, 0.0], 0.0, 0.0
            for r in rows:
                p, before = float(outlook.probability[r]), field.classes[c.pixel[r]] < k
                has = float(labels[c.pixel[r]] == c.name[r]) if before else p
                total += has - float(field.labels[c.pixel[r]] == c.name[r])
                gained += has - p
                variance += 0.0 if before else p * (1 - p)
                moment = [m + has * float(o) / CELL_RADIUS for m, o in zip(moment, c.offset[r], strict=True)]
            expected = [(total - mean) / (1 + mean) ** 0.5, moment[0] / (1 + total), moment[1] / (1 + total), gained / CELL_RADIUS]
            heading = found[cell, k]
            torch.testing.assert_close(heading[:AREA_FEATURES], area_features(torch.tensor(total, dtype=torch.float64)))
            torch.testing.assert_close(heading[AREA_FEATURES : AREA_FEATURES + 4], torch.tensor(expected, dtype=torch.float64))
            assert float(heading[-1]) == pytest.approx(variance**0.5, abs=1e-9)


def test_the_outlook_is_a_probability_and_the_law_of_the_first_class(drawn) -> None:
    emission, field, _, outlook, labels = drawn
    taken = torch.zeros_like(field.labels, dtype=torch.float64).index_add(0, field.candidates.pixel, outlook.probability)
    assert 0.1 < float(taken.max()) <= 1 + 1e-12
    chosen = (field.classes[field.candidates.pixel] == 0) & (labels[field.candidates.pixel] == field.candidates.name)
    with torch.no_grad():
        scored = emission.pixel_log_prob(labels.view(2, *LATTICE, 1)).flatten()[field.candidates.pixel[chosen]]
    assert chosen.sum() > 5
    torch.testing.assert_close(scored.exp(), outlook.probability[chosen], rtol=1e-5, atol=1e-5)


def test_turn_by_turn_equals_all_at_once(drawn) -> None:
    emission, field, draft, outlook, labels = drawn
    every = field.turn(range(4))
    with torch.no_grad():
        whole = emission._candidates(field, draft, every, labels, outlook.heading(outlook.past(labels), range(4)))
        past = torch.zeros(field.tissue.types.numel(), 1, 3, dtype=torch.float64)
        parts = []
        for k in range(4):
            turn = field.turn(range(k, k + 1))
            unseen = torch.where(field.classes < k, labels, 0)
            parts.append(emission._candidates(field, draft, turn, unseen, outlook.heading(past, turn.classes)))
            past = past + outlook.surplus(labels, turn)
    for found, expected in zip(zip(*parts, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.cat(found), expected)
