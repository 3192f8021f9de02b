"""What stays of the last miss: along paths as step after step, forgotten where a body is away, and drawn as it is scored."""

from __future__ import annotations

import pytest
import torch
from worlds import context, particles, trajectories

from epns_pyro.models.bodies.echo import Echo
from epns_pyro.models.bodies.particles import ParticlesConfig


def echo(*theta: float, slope: float = 0.0) -> Echo:
    made = Echo(torch.tensor([3] * len(theta)), torch.ones(len(theta))).double()
    with torch.no_grad():
        made.raw.copy_(torch.tensor(theta).atanh())
        made.slope.fill_(slope)
    return made


@torch.no_grad()
def test_along_a_path_is_step_after_step() -> None:
    torch.manual_seed(0)
    made, missed = echo(0.3, -0.6, slope=-0.4), torch.randn(2, 6, 4, 6, dtype=torch.float64)
    there, size = torch.rand(2, 6, 4) > 0.2, torch.rand(2, 6, 4, 6, dtype=torch.float64) + 0.1
    whole, memory = made.along(missed, size, there), made.start(missed[:, 0])
    for frame in range(6):
        torch.testing.assert_close(made.expected(memory, size[:, frame]), whole[:, frame], rtol=1e-12, atol=1e-12)
        memory = made.remember(memory, missed[:, frame], size[:, frame], there[:, frame])
        assert torch.equal(made.known(memory)[..., 0] == 1, there[:, frame])


@torch.no_grad()
def test_of_a_moving_average_only_what_is_new_is_left() -> None:
    torch.manual_seed(0)
    new = torch.randn(400, 30, 5, 3, dtype=torch.float64)
    missed = new.clone()
    missed[:, 1:] += 0.5 * new[:, :-1]
    expected = echo(0.5).along(missed, torch.ones_like(missed), torch.ones(400, 30, 5, dtype=torch.bool))
    left = missed - expected
    assert float(left[:, 10:].var()) == pytest.approx(1.0, abs=0.05)
    assert abs(float((left[:, 11:] * left[:, 10:-1]).mean())) < 0.03
    assert float((missed[:, 11:] * missed[:, 10:-1]).mean()) > 0.45


@torch.no_grad()
def test_accidents_do_not_stay_nor_do_small_misses_grow() -> None:
    made, one = echo(0.5), torch.ones(1, 3, dtype=torch.float64)
    usual, rare = (made.remember(made.start(one), miss * one, one) for miss in (1.0, 1000.0))
    torch.testing.assert_close(made.expected(usual, one), 0.5 * one, rtol=0.01, atol=0)
    torch.testing.assert_close(made.expected(usual, 100 * one), 0.5 * one, rtol=0.01, atol=0)
    torch.testing.assert_close(made.expected(usual, 0.01 * one), 0.005 * one, rtol=0.01, atol=0)
    assert made.expected(rare, one).max() < 1e-3


def test_large_misses_are_taken_back_where_small_ones_stay() -> None:
    """Where bodies meet a law errs in one sense on the way in and in the other on the way out: both shares are found together."""
    torch.manual_seed(0)
    size = torch.where(torch.rand(300, 1, 4, 1) < 0.5, 1.0, 1e-4).double().expand(300, 20, 4, 3)
    there, new = torch.ones(300, 20, 4, dtype=torch.bool), size * torch.randn(300, 20, 4, 3, dtype=torch.float64)
    missed = new.clone()
    missed[:, 1:] += torch.where(size[:, 1:] == 1.0, -0.5, 0.5) * new[:, :-1]
    made = echo(0.0)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        ((missed - made.along(missed, size, there)) / size).square().mean().backward()
        optimizer.step()
    for of, theta in ((1.0, -0.5), (1e-4, 0.5)):
        assert made.theta(torch.full((1, 3), of)).tolist()[0] == pytest.approx([theta] * 3, abs=0.05)


def test_runs_of_earlier_versions_have_one_share_for_all_sizes() -> None:
    made = echo(0.3, slope=-0.4)
    made.load_state_dict({"raw": torch.tensor([0.5])})
    assert not made.slope.any()
    torch.testing.assert_close(made.theta(torch.rand(2, 3)), torch.full((2, 3), 0.5).tanh(), check_dtype=False)


@torch.no_grad()
def test_a_step_goes_on_with_a_part_of_the_last_miss() -> None:
    about = context("celestial")
    (x0, path), model = trajectories(about), particles(about, guess_unit="noise", echo=True)
    before = model.step(model.start(x0))
    carry = before.advance(about.spec.dynamic(path[:, 0]), path[:, 0])
    first, plain = before._guess_mean, model.step(carry)._guess_mean
    model.echo.raw.fill_(0.5)
    shifted = model.step(carry)
    missed, way = about.spec.dynamic(path[:, 0]) - before.foreseen, shifted._guess_mean - plain
    assert float((way * missed).sum() / (way.norm() * missed.norm())) > 0.9
    assert not model.step(model.start(x0))._guess_mean.sub(first).any()  # at the start nothing is known


@pytest.mark.parametrize(
    ("settings", "words"),
    [({}, "set guess_unit to noise"), ({"guess_unit": "noise", "history": {"frames": 3}}, "set echo to false, or history.frames to 1")],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ParticlesConfig.parse({"echo": True} | settings)
