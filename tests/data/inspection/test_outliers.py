"""Values where no others are: planted ones are found, and lawful data are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from epns_pyro.data.inspection.findings import Inspector
from epns_pyro.data.inspection.numbers import ExactRate
from epns_pyro.data.inspection.outliers import LogHistogram, Outliers, Wrapped
from epns_pyro.state import Field, StateSpec
from epns_pyro.systems import NBodyConfig

POSITION, VELOCITY = Field("position", "1o", translates=True), Field("velocity", "1o", rate_of="position")
SPEC = StateSpec((POSITION, VELOCITY), space=2)
SHAPE = (20, 12, 4, 2)  # trajectory, frame, body, space


def said(inspector: Inspector, **arrays: np.ndarray) -> list[str]:
    """What an inspector says of arrays that pass by in four blocks."""
    for first in range(0, 20, 5):
        inspector.look({name: array[first : first + 5] for name, array in arrays.items()}, first)
    return [message for _, message in inspector.findings()]


def walk(rng: np.random.Generator, step: float = 0.3) -> np.ndarray:
    return rng.normal(size=(20, 1, 4, 2)) + step * rng.normal(size=SHAPE).cumsum(1)


# -- values far outside ----------------------------------------------------------------------------------------------------

LAWFUL = {
    "Normal": lambda rng: rng.normal(size=SHAPE),
    "Laplace": lambda rng: rng.laplace(size=SHAPE),
    "Student's t, 3 degrees of freedom": lambda rng: rng.standard_t(3, size=SHAPE),
    "a random walk": walk,
    "trajectories far apart": lambda rng: walk(rng) + 1000 * rng.normal(size=(20, 1, 1, 1)),
    "bodies at rest": lambda rng: np.zeros(SHAPE),
}


@pytest.mark.parametrize("law", LAWFUL)
def test_lawful_values_are_no_outliers(law):
    """At a false alarm rate of 1 in 1,000, 100 sets give more than 2 with a probability below 2e-4; the seed is fixed."""
    rng = np.random.default_rng(0)
    alarms = sum(bool(said(Outliers(SPEC, POSITION), position=LAWFUL[law](rng))) for _ in range(100))
    assert alarms <= (2 if "Student" in law else 0)


def test_encounters_of_celestial_bodies_are_no_outliers():
    system = NBodyConfig(dt=0.01).build()
    x0 = system.initial(20, np.random.default_rng(0))
    x = system.simulate(x0, 30, np.arange(20, dtype=np.uint64), workers=1)
    for name in ("position", "velocity"):
        assert said(Outliers(system.spec, system.spec[name]), **{name: system.spec.get(x, name)}) == []


@pytest.mark.parametrize(("value", "count"), [(0.0, 1), (0.0, 40), (-999.0, 3), (1e14, 1)])
def test_values_that_mean_not_seen_are_found_and_counted(value, count):
    x = walk(np.random.default_rng(0)) + 100
    x.reshape(-1, 2)[np.arange(count) * 7 + 600] = value
    trajectory, frame, body = np.unravel_index(600, SHAPE[:3])
    (message,) = said(Outliers(SPEC, POSITION), position=x)
    assert f"{count} of {np.prod(SHAPE[:3])} values lie far outside the rest" in message
    assert f"the first in trajectory {trajectory}, frame {frame}, body {body}" in message


def test_absent_bodies_do_not_count():
    x = walk(np.random.default_rng(0))
    x[::2, :, 1] = np.nan
    assert said(Outliers(SPEC, POSITION), position=x) == []


def test_sizes_are_counted_to_within_a_bin():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(size=(5, 4, 3)))
    histogram = LogHistogram(("trajectory", "frame", "body"))
    histogram.add(sizes, 10)
    assert histogram.counts.sum() == sizes.size
    assert abs(histogram.between(0.5, 2.0) - ((sizes > 0.5) & (sizes < 2)).sum()) <= 12
    largest = np.unravel_index(sizes.argmax(), sizes.shape)
    assert histogram.first(histogram.bin(sizes.max())) == f"trajectory {largest[0] + 10}, frame {largest[1]}, body {largest[2]}"


# -- boxes -----------------------------------------------------------------------------------------------------------------

UNWRAPPED = {
    "a walk": walk,
    "a walk of long steps": lambda rng: walk(rng, step=2.0),
    "anywhere at every frame": lambda rng: rng.random(SHAPE),
    "jumps between two wells": lambda rng: rng.choice([-1.0, 1.0], size=SHAPE) + 0.1 * rng.normal(size=SHAPE),
    "heavy tails": lambda rng: rng.standard_t(3, size=SHAPE),
}


@pytest.mark.parametrize("law", UNWRAPPED)
def test_free_bodies_are_in_no_box(law):
    rng = np.random.default_rng(0)
    assert not any(said(Wrapped(SPEC, POSITION), position=UNWRAPPED[law](rng)) for _ in range(20))


@pytest.mark.parametrize("moving", ["straight", "at random"])
def test_jumps_around_a_box_are_found_with_its_side(moving):
    rng = np.random.default_rng(0)
    steps = 0.8 * rng.normal(size=(20, 1, 4, 2)) if moving == "straight" else 0.8 * rng.normal(size=SHAPE)
    x = 10 * rng.random((20, 1, 4, 2)) + np.broadcast_to(steps, SHAPE).cumsum(1)
    wrapped = x % 10
    found = said(Wrapped(SPEC, POSITION), position=wrapped)
    assert ["axis 0" in found[0], "axis 1" in found[1]] == [True, True]
    side = float(found[0].partition("a box of side ")[2].partition("?")[0])
    assert side == pytest.approx(10, rel=0.01)
    jumps = (np.abs(np.diff(wrapped[..., 0], axis=1)) > 5).sum()
    assert abs(int(found[0].partition(": ")[2].partition(" ")[0]) - jumps) <= 0.05 * jumps
    assert said(Wrapped(SPEC, POSITION), position=x) == []


# -- velocities made from positions ----------------------------------------------------------------------------------------


def difference(kind: str, x: np.ndarray, dt: float) -> np.ndarray:
    if kind == "centred":
        return np.gradient(x, dt, axis=1)
    moved = np.diff(x, axis=1) / dt
    return np.concatenate([moved, moved[:, -1:]] if kind == "forward" else [moved[:, :1], moved], axis=1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", ["forward", "backward", "centred"])
def test_velocities_computed_from_positions_are_found(kind, dtype):
    x, dt = walk(np.random.default_rng(0)), 0.25
    v = difference(kind, x, dt)
    (message,) = said(ExactRate(SPEC, VELOCITY, dt), position=x.astype(dtype), velocity=v.astype(dtype))
    assert f"'velocity' is exactly the {kind} difference of 'position'" in message


def test_measured_velocities_are_left_alone():
    x, dt = walk(np.random.default_rng(0)), 0.25
    v = difference("forward", x, dt) + 1e-3 * np.random.default_rng(1).normal(size=SHAPE)
    assert said(ExactRate(SPEC, VELOCITY, dt), position=x, velocity=v) == []
    smooth = np.sin(0.05 * np.arange(12))[:, None, None] + np.zeros(SHAPE)
    rate = 0.05 / dt * np.cos(0.05 * np.arange(12))[:, None, None] + np.zeros(SHAPE)
    assert said(ExactRate(SPEC, VELOCITY, dt), position=smooth, velocity=rate) == []
