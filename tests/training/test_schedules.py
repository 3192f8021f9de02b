"""Schedules as tables: fraction of training -> value."""

from __future__ import annotations

import pytest

from epns_pyro.errors import ConfigError
from epns_pyro.training.run import TrainingConfig
from epns_pyro.training.schedules import HorizonSchedule, KLSchedule, RateSchedule


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        ({}, {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.7: 1.0, 1.0: 1.0}),
        ({"start": 0.2, "warmup": 0.5}, {0.0: 0.2, 0.25: 0.6, 0.5: 1.0, 1.0: 1.0}),
        ({"warmup": 0.0}, {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
        ({"warmup": 1.0}, {0.0: 0.0, 0.5: 0.5, 1.0: 1.0}),
        ({"warmup": 0.5, "cycles": 4}, {0.0: 0.0, 0.0625: 0.5, 0.125: 1.0, 0.2: 1.0, 0.25: 0.0, 0.3125: 0.5, 0.8125: 0.5, 1.0: 1.0}),
        ({"warmup": 0.5, "weight": 3.0}, {0.0: 0.0, 0.25: 1.5, 0.5: 3.0, 1.0: 3.0}),
    ],
)
def test_kl_weight(settings: dict, table: dict[float, float]) -> None:
    schedule = KLSchedule.parse(settings)
    assert {fraction: schedule.at(fraction) for fraction in table} == pytest.approx(table)


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        ({}, {0.0: 1, 0.5: 1, 1.0: 1}),
        ({"end": 4, "begin": 0.0}, {0.0: 1, 0.24: 1, 0.26: 2, 0.49: 2, 0.51: 3, 0.74: 3, 0.76: 4, 1.0: 4}),
        ({"end": 3, "begin": 0.5, "finish": 0.8}, {0.0: 1, 0.5: 1, 0.59: 1, 0.61: 2, 0.69: 2, 0.71: 3, 0.8: 3, 1.0: 3}),
        ({"start": 2, "end": 5, "begin": 0.5, "finish": 0.5}, {0.0: 2, 0.49: 2, 0.5: 5, 1.0: 5}),
        ({"start": 7, "end": 7}, {0.0: 7, 0.5: 7, 1.0: 7}),
    ],
)
def test_horizon(settings: dict, table: dict[float, int]) -> None:
    schedule = HorizonSchedule.parse(settings)
    assert {fraction: schedule.at(fraction) for fraction in table} == table


@pytest.mark.parametrize(
    ("settings", "table"),
    [
        ({"warmup": 0.0}, {0.0: 1.0, 0.5: 0.505, 1.0: 0.01}),
        ({"warmup": 0.2, "floor": 0.0}, {0.0: 1e-3, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 1.0: 0.0}),
        ({"kind": "constant", "warmup": 0.5}, {0.0: 1e-3, 0.25: 0.5, 0.5: 1.0, 0.9: 1.0, 1.0: 1.0}),
        ({"kind": "constant", "warmup": 0.0}, {0.0: 1.0, 1.0: 1.0}),
        ({"warmup": 1.0}, {0.0: 1e-3, 0.5: 0.5, 0.99: 0.99}),
    ],
)
def test_learning_rate(settings: dict, table: dict[float, float]) -> None:
    schedule = RateSchedule.parse(settings)
    assert {fraction: schedule.at(fraction) for fraction in table} == pytest.approx(table)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"horizon": {"start": 4, "end": 2}}, "a horizon grows"),
        ({"horizon": {"begin": 0.7, "finish": 0.5}}, "a horizon grows"),
        ({"horizon": {"end": 0}}, "greater than or equal to 1"),
        ({"kl": {"warmup": 1.5}}, "less than or equal to 1"),
        ({"kl": {"cycles": 0}}, "greater than or equal to 1"),
        ({"rate": {"kind": "cosin"}}, "'cosine' or 'constant'"),
        ({"rate": {"warmpu": 0.1}}, "did you mean 'warmup'"),
    ],
)
def test_impossible_schedules_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainingConfig.parse(settings)
