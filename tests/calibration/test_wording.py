"""Numbers in words: digits enough to see a difference, and no more than the error allows."""

from __future__ import annotations

import math

import pytest

from epns_pyro.calibration.wording import measured, number, p_value, precision


@pytest.mark.parametrize(
    ("value", "error", "written"),
    [
        (1.644, 0.024, "1.644 ± 0.024"),
        (1.647, 0.023, "1.647 ± 0.023"),
        (64.38, 1.4, "64.4 ± 1.4"),
        (-1234.5, 140, "−1234 ± 140"),
        (3.2e-9, 4.1e-10, "3.20e-09 ± 4.1e-10"),
        (0.0, 4.1e-10, "0.0e+00 ± 4.1e-10"),
        (0.5, 0.0, "0.50 ± 0.00"),
        (0.51234, math.nan, "0.512"),
        (math.nan, 0.1, "– ± 0.10"),
        (0.0999, 0.0999, "0.100 ± 0.100"),
    ],
)
def test_the_error_decides_the_digits(value: float, error: float, written: str) -> None:
    assert measured(value, error) == written


def test_two_numbers_that_differ_by_an_error_never_look_alike() -> None:
    for power in range(-12, 6):
        for error in (1.0, 1.5, 5.0, 9.9):
            error = error * 10.0**power
            for value in (0.0, 1.0, 123.456):
                assert measured(value * 10.0**power, error) != measured(value * 10.0**power + error, error)


def test_what_is_not_known_is_a_dash() -> None:
    assert number(math.nan) == number(None) == p_value(math.nan) == p_value(None) == "–"
    assert precision(None) == precision(math.nan) == precision(0.0) == precision(-1.0) == 2


def test_a_sign_is_shown_where_it_is_asked_for() -> None:
    assert measured(0.216, 0.23, sign=True) == "+0.22 ± 0.23"
    assert measured(-0.207, 0.05, sign=True) == "−0.207 ± 0.050"
