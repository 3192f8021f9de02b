"""Active matter: the compiled walk against its equations written out, its exact law, and what aligning particles do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from epns_pyro.errors import ConfigError
from epns_pyro.systems import Active, ActiveConfig


def make(**settings: object) -> Active:
    return ActiveConfig.parse(settings).build()


def plain_mean(system: Active, x: np.ndarray) -> np.ndarray:
    """The mean of the next velocity of a state (body, channel), by all pairs and all images that can be in reach."""
    c, (r, v) = system.config, (system.spec.get(x, name) for name in ("position", "velocity"))
    mean = np.empty_like(v)
    shifts = c.side * np.stack(np.meshgrid(*[(-1, 0, 1)] * c.space), -1).reshape(-1, c.space)
    for i in range(len(r)):
        distance = np.linalg.norm(r[:, None] + shifts - r[i], axis=-1).min(1)
        weight = np.where(distance < c.radius, (1 - (distance / c.radius) ** 2) ** 2, 0.0)
        around = weight @ v / weight.sum()
        mean[i] = v[i] + c.frame_dt * (max(c.drive * (1 - v[i] @ v[i] / c.speed**2), -1 / c.frame_dt) * v[i] + c.align * (around - v[i]))
    return mean


@pytest.mark.parametrize("settings", [{}, {"bodies": 20}, {"space": 3}, {"space": 3, "bodies": 400, "density": 2.0}, {"bodies": 1000}])
def test_the_mean_is_that_of_the_equations(settings: dict) -> None:
    """Few bodies are a box of less than three cells; with many, cells are far smaller than the box."""
    system = make(**settings)
    x = system.initial(2, np.random.default_rng(0))
    mean = system.transition_law(x)[0]
    for a, b in zip(mean, x, strict=True):
        np.testing.assert_allclose(system.spec.get_dynamic(a, "velocity"), plain_mean(system, b), rtol=1e-12, atol=1e-14)
        moved = system.spec.get(b, "position") + system.frame_dt * system.spec.get(b, "velocity")
        np.testing.assert_allclose(system.spec.get_dynamic(a, "position"), moved)


def test_simulated_steps_have_the_law_of_the_oracle() -> None:
    """Standardised steps of 100 bodies are independent standard Normals; the density is that of these."""
    system = make()
    x = system.simulate(system.initial(8, np.random.default_rng(1)), 20, np.arange(8, dtype=np.uint64))
    now, after = x[:, :-1], x[:, 1:]
    mean, deviation = system.transition_law(now)
    away = system.spec.dynamic(after) - mean
    away[..., :2] -= system.config.side * np.round(away[..., :2] / system.config.side)
    white = away / deviation
    for channel in np.moveaxis(white, -1, 0):
        assert stats.kstest(channel.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(white.reshape(-1, 4).T)
    assert np.abs(correlation - np.eye(4)).max() < 4 / np.sqrt(white.size / 4)
    expected = stats.norm.logpdf(white).sum((-2, -1)) - 100 * np.log(deviation).sum()
    np.testing.assert_allclose(system.transition_log_prob(now, after), expected)


def test_positions_stay_in_the_box() -> None:
    system = make(bodies=30)
    x = system.simulate(system.initial(2, np.random.default_rng(2)), 200, np.arange(2, dtype=np.uint64))
    position = system.spec.get(x, "position")
    assert position.min() >= 0
    assert position.max() < system.config.side


def test_alignment_makes_order_and_noise_destroys_it() -> None:
    def order(**settings: float) -> float:
        system = make(**settings)
        x = system.initial(4, np.random.default_rng(3))
        return float(system.observables(x[:, None])["polarisation"].values.mean())

    assert order(settled=300) > 0.7
    assert order(settled=300, align=0.0) < 0.3
    assert order(settled=300, noise=3.0) < 0.3


def test_the_box_grows_with_the_number_of_bodies() -> None:
    few, many = make(bodies=100), make(bodies=1000)
    assert many.config.side == pytest.approx(few.config.side * 10**0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"bodies": 10}, "at least two radii"), ({"diffusion": 10.0}, "jump by less than"), ({"space": 4}, "space")],
)
def test_settings_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ActiveConfig.parse(settings)
