"""Cells that divide and die: what is drawn is what is scored, names mean nothing, and without events the law is the one of cells that stay.

Statistical tests fail falsely with the probability FALSE_FAILURE, each; their seeds are fixed.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from label_tissues import SMALL, label_spec
from pyro import poutine
from pyro.infer import Predictive
from scipy import stats
from torch import Tensor

from epns_pyro.backbones.tissues.tissue import Tissue
from epns_pyro.context import DataContext
from epns_pyro.inference.elbo import elbo_step, log_density, path_bounds
from epns_pyro.lineage import lineage_spec
from epns_pyro.models import EPNSModel
from epns_pyro.models.tissues.cells import CellsModelConfig, CellsTransition
from epns_pyro.models.tissues.dividing import DividingTransition
from epns_pyro.models.tissues.events import DIES, DIRECTIONS, DIVIDES, STAYS, UNKNOWN, Halves, say_that_no_labels_are_left
from epns_pyro.symmetry import Relabelling, density_invariance_error
from epns_pyro.systems import GrowingTissueConfig
from epns_pyro.systems import growth_dynamics as dynamics
from epns_pyro.systems.lattice import square_lattice
from epns_pyro.testing import check_transition

FALSE_FAILURE = 1e-5
LATENT = 2


def transition(spec, lattice, network: str = "windows", *, seed: int = 1, **settings: object) -> CellsTransition:
    """A small transition in float64 whose every weight matters, as if trained."""
    inner = {"name": network, **SMALL[network], **settings.pop("inner", {})}
    parts = {"network": inner, "latent": LATENT, "prior_width": 8, "interlacing": 2, "neighbourhood": 5} | settings
    torch.manual_seed(seed)
    built = CellsModelConfig.parse(parts).build(DataContext(spec, 1.0, {}, lattice, event_rates=(0.2, 0.3))).double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built


@pytest.fixture(scope="module", params=[False, True], ids=["walls", "periodic"])
def grown(request: pytest.FixtureRequest):
    """A system and trajectories of it, (trajectory, time, y, x, channel), with many divisions and some deaths."""
    settings = {"lattice": (24, 26), "death_rate": 2e-3, "cycle": 100, "most_cells": 30, "blocks": (2, 2)}
    system = GrowingTissueConfig.parse(settings | {"boundary": "periodic" if request.param else "no flux"}).build()
    x = torch.as_tensor(system.simulate(system.initial(4, np.random.default_rng(0)), 14, np.arange(4)).astype(np.int64))
    return system, x[:, 4:]


def state(spec, rows: str, *, types: str = "11111", mothers: str = "00000", ages: str = "00000") -> Tensor:
    """A full state (1, y, x, channel) from digits, rows apart by blanks; properties of labels 1, 2, ..."""
    cell = torch.tensor([[int(c) for c in row] for row in rows.split()])
    table = (torch.tensor([0, *map(int, text)])[cell] for text in (types, mothers, ages))
    return spec.pack(cell=cell, **dict(zip(("type", "mother", "age"), table, strict=True)))[None]


# -- names -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweeps", [0, 1])
def test_the_contract_holds_through_divisions_and_deaths(grown, sweeps):
    system, x = grown
    inner = {"width": 6, "window": 9, "depth": 1, "dilations": (1, 2), "nodes": 3}
    config = {"network": {"name": "windows"} | inner, "latent": LATENT, "prior_width": 8, "interlacing": 4, "sweeps": sweeps}
    context = DataContext(system.spec, 1.0, {}, (24, 26), event_rates=(0.02, 0.1))
    built = CellsModelConfig.parse(config).build(context)
    happened = torch.stack([built.at(x[:, t]).seen_events(x[:, t + 1]) for t in range(2)])
    assert (happened >= DIVIDES).sum() > 2
    check_transition(CellsModelConfig.parse(config), system, context=context, x=x[:, :3].numpy())


def test_daughters_can_be_exchanged(grown):
    system, x = grown
    t = transition(system.spec, (24, 26))
    seen = t.at(x[:, 0]).seen_events(x[:, 1])
    row = int((seen >= DIVIDES).any(-1).nonzero()[0])
    mother = 1 + int((seen[row] >= DIVIDES).nonzero()[0])
    one, other = (x[row, 1, ..., 0][x[row, 1, ..., 2] == mother]).unique().tolist()
    swapped = x[row : row + 1, 1:2].clone()
    swapped[..., 0] = torch.where(swapped[..., 0] == one, other, torch.where(swapped[..., 0] == other, one, swapped[..., 0]))
    z = torch.randn(1, 1, 30, LATENT, dtype=torch.float64)
    z_swapped = z.clone()
    z_swapped[..., [one - 1, other - 1], :] = z[..., [other - 1, one - 1], :]
    scores = [log_density(t, x[row : row + 1, 0], *rest) for rest in ((x[row : row + 1, 1:2], z), (swapped, z_swapped))]
    torch.testing.assert_close(*scores, rtol=1e-10, atol=0.0)


def test_daughters_whose_places_say_nothing_are_told_apart_by_places_all_the_same():
    """Both daughters are away from where the mother was, and names would be the only difference left."""
    spec = lineage_spec(5, 1, periodic=False)
    t = transition(spec, (4, 6))
    x0 = state(spec, "110000 110000 000000 000000")
    path = state(spec, "000000 000000 000220 333000", mothers="01100")[:, None]
    z = torch.randn(1, 1, 5, LATENT, dtype=torch.float64)
    assert t.at(x0).seen_events(path[:, 0])[0, 0] >= DIVIDES
    error = density_invariance_error(lambda *parts: log_density(t, *parts), spec, x0, path, z, Relabelling(5), samples=20)
    assert error.maximum < 1e-10


# -- the law is what is drawn ------------------------------------------------------------------------------------------------


def every_next(spec, x: Tensor) -> Tensor:
    """All states that can follow one with cell 1 alone, up to the names of daughters 2 and 3: (state, y, x, channel)."""
    height, width = x.shape[-3:-1]
    found = []
    for labels in itertools.product((0, 1), repeat=height * width):
        cell = torch.tensor(labels).view(height, width)
        found.append(spec.pack(cell=cell, type=cell, mother=0 * cell, age=cell))
    for labels in itertools.product((0, 2, 3), repeat=height * width):
        there = [label for label in labels if label]
        if set(there) == {2, 3} and there[0] == 2:  # one of the two namings
            cell = torch.tensor(labels).view(height, width)
            found.append(spec.pack(cell=cell, type=(cell > 0).long(), mother=(cell > 0).long(), age=0 * cell))
    return torch.stack(found)


def test_states_are_drawn_as_often_as_they_are_scored():
    spec = lineage_spec(3, 1, periodic=False)
    t = transition(spec, (2, 3), floor=0.01)
    x = state(spec, "110 110")
    step = t.at(x)
    law = step.emission(torch.zeros(1, 3, LATENT, dtype=torch.float64))
    states = every_next(spec, x)
    with torch.no_grad():
        score = law.expand((len(states),)).log_prob(states).exp().numpy()
    assert 0.6 < score.sum() <= 1 + 1e-9  # a lower bound where a cell dies or divides: several directions lead to one image
    torch.manual_seed(0)
    drawn = law.expand((20_000,)).sample()
    assert drawn[..., 0].unique().tolist() == [0, 1, 2, 3]
    names = drawn[..., 0].flatten(1)
    first = torch.where(names == 0, 9, names).gather(1, (names > 0).long().argmax(1, keepdim=True))[:, 0]
    flipped = torch.where(names == 2, 3, torch.where(names == 3, 2, names))
    count = Counter(map(tuple, torch.where((first == 3)[:, None], flipped, names).tolist()))
    tested = [i for i in np.argsort(-score)[:40] if score[i] * 20_000 > 20]
    assert len(tested) > 15
    for i in tested:
        k, stays = count[tuple(states[i, ..., 0].flatten().tolist())], bool((states[i, ..., 0] == 1).any())
        assert stats.binom.cdf(k, 20_000, score[i]) > FALSE_FAILURE / len(tested)  # never less often than scored
        assert not stays or stats.binom.sf(k - 1, 20_000, score[i]) > FALSE_FAILURE / len(tested)  # and exactly, where nothing happens
    assert len({bool((states[i, ..., 0] == 1).any()) for i in tested}) == 2


def test_the_chances_of_all_events_sum_to_one(grown):
    system, x = grown
    t = transition(system.spec, (24, 26))
    events = t.at(x[:, 0]).events
    there = events.names > 0
    torch.testing.assert_close(events.scores.exp().sum(-1)[there], torch.ones(int(there.sum()), dtype=torch.float64))
    torch.manual_seed(0)
    one = events.expand((4000, 4)).sample()[:, 0]
    label = int(events.names[0, 0])
    chance = events.scores[0, 0].detach().exp().numpy()
    seen = np.bincount(one[:, label - 1].numpy(), minlength=len(chance))
    kept = chance > 0
    assert seen[~kept].sum() == 0
    assert stats.chisquare(seen[kept], 4000 * chance[kept] / chance[kept].sum()).pvalue > FALSE_FAILURE
    assert (one[:, [i for i in range(30) if i + 1 not in events.names[0].tolist()]] == STAYS).all()


def test_what_was_drawn_is_read_again(grown):
    system, x = grown
    t = transition(system.spec, (24, 26), floor=1e-6)
    step = t.at(x[:, 5])
    torch.manual_seed(3)
    event = step.events.sample()
    y = step.after_events(step.emission(torch.zeros(4, 30, LATENT, dtype=torch.float64)), event).sample()
    seen = step.seen_events(y)
    assert (event >= DIVIDES).sum() > 3
    divided = (event >= DIVIDES) & (seen != UNKNOWN)
    assert (seen[divided] >= DIVIDES).all()
    away = ((seen[divided] - event[divided]) + DIRECTIONS // 2) % DIRECTIONS - DIRECTIONS // 2
    assert (away.abs() <= 4).float().mean() > 0.6  # cells move after they divide
    assert ((event == DIES) <= (seen == DIES)).all()
    new = (y[..., 0] > 0) & (y[..., 3] == 0)
    assert (y[..., 2][new] > 0).all()
    before = x[:, 5]
    for row in range(4):
        for label in y[row][new[row]][:, 0].unique().tolist():
            where = y[row, ..., 0] == label
            mother = int(y[row, ..., 2][where][0])
            assert (y[row, ..., 1][where] == before[row, ..., 1][before[row, ..., 0] == mother][0]).all()
            assert not (before[row, ..., 0] == label).any()
        old = (y[row, ..., 3] > 0) & (y[row, ..., 0] > 0)
        for label in y[row][old][:, 0].unique().tolist():
            assert y[row, ..., 3][y[row, ..., 0] == label][0] == before[row, ..., 3][before[row, ..., 0] == label][0] + 1


# -- events are seen ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "mothers", "expected"),
    [
        ("1111 1111", "00000", STAYS),
        ("0000 0000", "00000", DIES),
        ("2233 2233", "01100", DIVIDES),  # along x, the first direction
        ("2222 3333", "01100", DIVIDES + DIRECTIONS // 2 - 1),  # nearly along y: the first of three directions that cut alike
        ("2234 2234", "01110", UNKNOWN),
        ("2222 2222", "01000", UNKNOWN),
        ("2233 2233", "00000", DIES),  # two cells that come from nowhere
    ],
)
def test_what_happened_is_seen(after, mothers, expected):
    spec = lineage_spec(5, 1, periodic=False)
    t = transition(spec, (2, 4))
    seen = t.at(state(spec, "1111 1111")).seen_events(state(spec, after, mothers=mothers))
    assert seen[0].tolist() == [expected, *[STAYS] * 4]
    score = t.at(state(spec, "1111 1111")).events.log_prob(seen)
    assert score.isfinite().all()
    assert (score == 0) == (expected == UNKNOWN)


def test_a_cell_is_cut_like_that_of_the_simulator():
    rng = np.random.default_rng(0)
    for periodic in (False, True):
        for _ in range(20):
            image, angle = np.zeros((20, 22), np.int64), rng.integers(DIRECTIONS) * np.pi / DIRECTIONS
            y, x = np.mgrid[:20, :22] - np.array([10, 11])[:, None, None]
            image[((x * np.cos(angle) + y * np.sin(angle)) / 4.6) ** 2 + ((y * np.cos(angle) - x * np.sin(angle)) / 2.3) ** 2 < 1] = 1
            image = np.roll(image, (rng.integers(20), rng.integers(22)), (0, 1)) if periodic else image
            halves = Halves(Tissue(torch.as_tensor(image)[None], torch.ones(1, 1, dtype=torch.int64), periodic, 12))
            elongation = halves.elongation[0, 0]
            found = float(torch.atan2(elongation[1], elongation[0])) / 2
            assert abs((found - angle + np.pi / 2) % np.pi - np.pi / 2) < 0.1
            direction = round(found * DIRECTIONS / np.pi) % DIRECTIONS
            lattice, second = square_lattice(20, 22, neighbours=8, periodic=periodic), np.empty(440, np.bool_)
            dynamics.halves(np.append(image.ravel(), 2).astype(np.uint16), 1, lattice, second)
            ours = halves.second[0, :, direction].numpy() & (image.ravel() == 1)
            differ = (ours != second).sum()
            assert min(differ, image.sum() - differ) <= 0.2 * image.sum()


# -- without events ----------------------------------------------------------------------------------------------------------


def test_without_lineage_there_are_no_events():
    t = transition(label_spec(4), (8, 8))
    assert type(t) is CellsTransition
    assert t.at(torch.zeros(1, 8, 8, 2, dtype=torch.int64)).events is None


def test_where_nothing_happens_images_have_the_law_of_cells_that_stay():
    plain, spec = label_spec(4, types=2), lineage_spec(7, 2, periodic=False)
    t, same = transition(spec, (6, 7)), transition(plain, (6, 7))
    weights = {key: value for key, value in t.state_dict().items() if not key.startswith("event_net")}
    weights["network.cell.weight"] = weights["network.cell.weight"][:, :-10].clone()
    with torch.no_grad():
        t.network.cell.weight[:, -10:] = 0  # what a cell's age says
    same.load_state_dict(weights)
    now, then = "1100000 1122000 0022000 0000440 0000440 0000000", "1100000 1112000 0022000 0004440 0000440 0000000"
    x, y = (state(spec, rows, types="1202000", ages="3102000") for rows in (now, then))
    y[..., 3] += y[..., 0] > 0
    z = torch.randn(1, 7, LATENT, dtype=torch.float64)
    step = t.at(x)
    law = step.emission(z)
    expected = same.at(x[..., :2]).emission(z[:, :4]).log_prob(y[..., :1])
    torch.testing.assert_close(step.after_events(law, step.seen_events(y)).log_prob(y), expected, rtol=1e-11, atol=0.0)
    torch.testing.assert_close(law.log_prob(y), expected + step.events.log_prob(step.seen_events(y)), rtol=1e-11, atol=0.0)
    bound, known = elbo_step(t.at(x), y, torch.zeros_like), elbo_step(same.at(x[..., :2]), y[..., :2], torch.zeros_like)
    torch.testing.assert_close(bound.kl[:, :4], known.kl, rtol=1e-11, atol=1e-14)
    assert (bound.kl[:, 4:] == 0).all()


def test_the_first_guess_of_the_chances_are_the_rates_of_the_data(grown):
    system, x = grown
    context = DataContext(system.spec, 1.0, {}, (24, 26), event_rates=(0.03, 0.11))
    t = CellsModelConfig.parse({"network": {"name": "windows", **SMALL["windows"]}}).build(context)
    scores = t.at(x[:, 0]).events.scores[t.at(x[:, 0]).events.names > 0].exp()
    torch.testing.assert_close(scores[:, DIES], torch.full((len(scores),), 0.03), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(scores[:, DIVIDES:].sum(-1), torch.full((len(scores),), 0.11), rtol=1e-4, atol=0.0)


# -- through Pyro and in forecasts -------------------------------------------------------------------------------------------


def test_stock_pyro_scores_and_forces_events(grown):
    system, x = grown
    t = transition(system.spec, (24, 26))
    z = torch.randn(4, 2, 30, LATENT, dtype=torch.float64)
    data = {f"z_{k + 1}": z[:, k] for k in range(2)}
    trace = poutine.trace(poutine.condition(EPNSModel(t), data=data)).get_trace(x[:, 0], x[:, 1:3])
    trace.compute_log_prob()
    total = sum(site["log_prob"] for name, site in trace.nodes.items() if name[:2] in ("x_", "z_", "e_"))
    torch.testing.assert_close(total, log_density(t, x[:, 0], x[:, 1:3], z), rtol=1e-11, atol=0.0)

    event = torch.zeros(4, 30, dtype=torch.int64)
    event[:, int(x[0, 0, ..., 0].max()) - 1] = 0
    labels = [int(row[row > 0].min()) for row in x[:, 0, ..., 0]]
    for row, label in enumerate(labels):
        event[row, label - 1] = DIVIDES
    drawn = Predictive(poutine.condition(EPNSModel(t), data={"e_1": event}), num_samples=2)(x[:, 0], horizon=1)
    assert drawn["x_1"].shape == (2, 4, 24, 26, 4)
    for row, label in enumerate(labels):
        born = drawn["x_1"][:, row][drawn["x_1"][:, row, ..., 2] == label]
        if (drawn["x_1"][:, row, ..., 2] == label).any() and not (x[row, 0, ..., 2] == label).any():
            assert (born[:, 3] == 0).all()


def test_names_are_not_used_twice_in_a_forecast(grown):
    system, x = grown
    t = transition(system.spec, (24, 26))
    carry, seen = t.start(x[:, 0]), [set(row.unique().tolist()) for row in x[:, 0, ..., 0]]
    gone = [set() for _ in seen]
    torch.manual_seed(0)
    for _ in range(4):
        step = t.step(carry)
        carry = step.advance(step.emission(step.prior.sample()).sample())
        for row, image in enumerate(carry.x[..., 0]):
            now = set(image.unique().tolist())
            assert not now & gone[row]
            gone[row] |= seen[row] - now - {0}
            seen[row] |= now
    assert any(gone)


def test_without_free_labels_cells_stay(caplog):
    spec = lineage_spec(3, 1, periodic=False)
    t = transition(spec, (4, 6))
    with torch.no_grad():
        t.event_net[-1].bias[2] = 9.0  # cells divide
    step = t.at(state(spec, "111000 111222 111222 000222", types="11100"))
    say_that_no_labels_are_left.cache_clear()
    with caplog.at_level(logging.WARNING):
        drawn = torch.cat([step.emission(step.prior.sample()).sample() for _ in range(2)])
    assert caplog.text.count("no labels are left") == 1
    assert set(drawn[..., 0].unique().tolist()) <= {0, 1, 2}


def test_bounds_of_paths_and_gradients_are_finite(grown):
    system, x = grown
    t = transition(system.spec, (24, 26), sweeps=1, interlacing=4, apart=4, pseudo_likelihood=True)
    bounds = path_bounds(t, x[:, 0], x[:, 1:4], num_samples=2)
    assert bounds.elbo.isfinite().all()
    bound = elbo_step(t.at(x[:, 0]), x[:, 1])
    (bound.log_likelihood - bound.kl.sum((-2, -1))).sum().backward()
    for name, parameter in t.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in t.event_net.parameters())
    assert isinstance(t, DividingTransition)
