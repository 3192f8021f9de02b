"""What people who track look at, against loops over one body at a time and against closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from epns_pyro.evaluation.ensembles import observe
from epns_pyro.systems import RecordedConfig, System
from epns_pyro.systems.track_observables import MANY

POSITION = {"name": "position", "irreps": "1o", "translates": True}
VELOCITY = {"name": "velocity", "irreps": "1o", "rate_of": "position"}
OF_MOVES = ("displacement", "turning_angle", "velocity_autocorrelation", "polarisation", "step_length")
OVER_TIME = ("msd_over_half", "velocity_autocorrelation_over_half", "straightness", "displacement_spread")


def recorded(space: int = 2, box: tuple[float, ...] = (), velocity: bool = False) -> System:
    spec = {"fields": [POSITION, VELOCITY] if velocity else [POSITION], "space": space, "box": list(box)}
    return RecordedConfig(spec=spec, frame_dt=0.5).build()


def values(system: System, x: np.ndarray) -> dict[str, np.ndarray]:
    return {name: observable.values for name, observable in system.observables(x).items()}


# -- the reference: one trajectory, one frame, one body at a time --------------------------------------------------------------


def length(a) -> float:
    return math.sqrt(sum(float(v) ** 2 for v in a))


def nearest_image(way, box) -> list[float]:
    return [float(w) - side * round(float(w) / side) for w, side in zip(way, box, strict=True)] if box else [float(w) for w in way]


def angle(a, b) -> float:
    if length(a) == 0 or length(b) == 0:
        return 0.0
    return math.acos(max(-1.0, min(1.0, sum(a * b for a, b in zip(a, b, strict=True)) / length(a) / length(b))))


def average(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan


def reference(place: np.ndarray, pace: np.ndarray | None, box) -> dict[str, list[float]]:
    """Observables of one trajectory: place and pace (time, body, space), NaN for absent bodies."""
    frames, bodies = place.shape[:2]
    there = [{b for b in range(bodies) if not np.isnan(place[t, b]).any()} for t in range(frames)]

    def step(t: int, b: int):
        t = max(t, 1)
        return nearest_image(place[t, b] - place[t - 1, b], box) if b in there[t] & there[t - 1] else None

    def move(t: int, b: int):
        if pace is None:
            return step(t, b)
        return [float(v) for v in pace[t, b]] if b in there[t] else None

    def way(t: int, b: int):
        seen = [u for u in range(t + 1) if b in there[u]]
        parts = [nearest_image(place[j, b] - place[i, b], box) for i, j in itertools.pairwise(seen)]
        return [sum(axis) for axis in zip(*parts, strict=True)] if parts else [0.0] * place.shape[-1]

    out: dict[str, list[float]] = {name: [] for name in ("least_pair_distance", "nearest_neighbour_distance", *OF_MOVES, *OVER_TIME)}
    for t in range(frames):
        moves = {b: move(t, b) for b in range(bodies) if move(t, b) is not None}
        apart = {b: [length(nearest_image(place[t, c] - place[t, b], box)) for c in there[t] - {b}] for b in there[t]}
        nearest = [min(distances) for distances in apart.values() if distances]
        out["least_pair_distance"].append(min(nearest, default=math.nan))
        out["nearest_neighbour_distance"].append(average(nearest))
        out["displacement"].append(math.sqrt(average([length(way(t, b)) ** 2 for b in there[t] & there[0]])))
        out["step_length"].append(average([length(step(t, b)) for b in range(bodies) if step(t, b) is not None]))
        known = [b for b in moves if move(max(t - 1, 0), b) is not None]
        out["turning_angle"].append(average([angle(moves[b], move(max(t - 1, 0), b)) for b in known]))
        both = [b for b in moves if move(0, b) is not None]
        along = [sum(v * w for v, w in zip(moves[b], move(0, b), strict=True)) for b in both]
        square = sum(length(move(0, b)) ** 2 for b in both)
        out["velocity_autocorrelation"].append((sum(along) / square if square else 0.0) if both else math.nan)
        units = [[v / length(m) if length(m) else 0.0 for v in m] for m in moves.values()]
        squares, products, weights, lag = [], [], [], (t + 1) // 2
        for s, b in itertools.product(range(t - lag + 1), range(bodies)):
            if b in there[s] & there[s + lag] and (not box or b in there[0]):
                far = [v - w for v, w in zip(way(s + lag, b), way(s, b), strict=True)] if box else place[s + lag, b] - place[s, b]
                squares.append(length(far) ** 2)
            if (before := move(s, b)) is not None and (after := move(s + lag, b)) is not None:
                products.append(sum(v * w for v, w in zip(before, after, strict=True)))
                weights.append(length(before) ** 2)
        out["msd_over_half"].append(average(squares))
        correlated = sum(products) / sum(weights) if sum(weights) else 0.0
        out["velocity_autocorrelation_over_half"].append((1.0 if t == 0 else correlated) if products else math.nan)
        always = [b for b in range(bodies) if all(b in there[u] for u in range(t + 1))]
        paths = {b: sum(length(step(u, b)) for u in range(1, t + 1)) for b in always}
        out["straightness"].append(average([length(way(t, b)) / paths[b] if paths[b] else 1.0 for b in always]))
        lengths = [length(way(t, b)) for b in there[t] & there[0]]
        spread = math.sqrt(average([(v - average(lengths)) ** 2 for v in lengths])) if len(lengths) > 1 else math.nan
        out["displacement_spread"].append(spread)
        out["polarisation"].append(length([average(list(axis)) for axis in zip(*units, strict=True)]) if units else math.nan)
    return out


@pytest.mark.parametrize("box", [False, True], ids=["open", "box"])
@pytest.mark.parametrize("velocity", [False, True], ids=["steps", "velocities"])
@pytest.mark.parametrize("space", [1, 2, 3])
@pytest.mark.parametrize("absent", [0.0, 0.3])
def test_the_loops_say_the_same(space, velocity, box, absent):
    sides = (1.0, 1.5, 2.0)[:space] if box else ()
    system, rng = recorded(space, sides, velocity), np.random.default_rng(space)
    x = rng.uniform(0, 2, (3, 7, 5, system.spec.channels))
    x[0, 2:4, 1] = x[0, 2, 1]  # at rest for a step
    x[rng.random(x.shape[:3]) < absent] = np.nan
    if absent:
        x[1, 4, 1:] = np.nan  # one alone
        x[2, 5] = np.nan  # nobody
    found = values(system, x)
    place, pace = x[..., :space], x[..., space:] if velocity else None
    for i in range(3):
        expected = reference(place[i], None if pace is None else pace[i], sides)
        for name in expected.keys() & found.keys():
            np.testing.assert_allclose(found[name][i], expected[name], rtol=1e-9, atol=1e-7, err_msg=f"{name} of {i}")  # of an arc cosine
    assert not absent or np.isnan(found["displacement"]).any()


@pytest.mark.parametrize("bodies", [MANY, MANY + 1])
@pytest.mark.parametrize("sides", [(), (1.0, 1.5)])
def test_neighbours_in_a_crowd(bodies, sides):
    system, rng = recorded(2, sides), np.random.default_rng(bodies)
    x = rng.uniform(-1, 2, (1, 4, bodies, 2))
    x[0, 0, 0], x[0, 0, 1:3] = -1e-17, [[0.01, 0.0], [0.99, 1.5]]  # on the seam
    x[0, 1, rng.random(bodies) < 0.3] = np.nan
    x[0, 2, 1:] = np.nan
    x[0, 3] = np.nan
    found = values(system, x)
    for t in range(4):
        expected = reference(x[0, t : t + 1].repeat(2, 0), None, sides)
        for name in ("least_pair_distance", "nearest_neighbour_distance"):
            np.testing.assert_allclose(found[name][0, t], expected[name][0], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("velocity", [False, True])
def test_a_forecast_is_judged_by_its_past_alone(velocity):
    system = recorded(box=(1.0, 1.0), velocity=velocity)
    x = np.random.default_rng(0).random((2, 8, 4, system.spec.channels))
    whole, part = values(system, x), values(system, x[:, :4])
    for name, value in part.items():
        np.testing.assert_array_equal(whole[name][:, :4], value, err_msg=name)


@pytest.mark.parametrize("bodies", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("velocity", [False, True])
def test_numbers_are_finite_where_bodies_are_also_at_rest(bodies, frames, velocity):
    system = recorded(velocity=velocity)
    for x in (
        np.zeros((2, frames, bodies, system.spec.channels)),
        np.random.default_rng(0).random((2, frames, bodies, system.spec.channels)),
    ):
        for name, value in values(system, x).items():
            assert value.shape == (2, frames)
            assert np.isfinite(value).all(), name


# -- closed forms --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("bodies", [1, 3])
def test_ballistic_motion(box, bodies):
    system, rng = recorded(3, box), np.random.default_rng(0)
    v, t = rng.uniform(0.1, 0.4, (bodies, 3)), np.arange(9.0)
    x = rng.random((bodies, 3)) + t[:, None, None] * v
    found = values(system, system.spec.geometry.wrap(x))
    speed = np.linalg.norm(v, axis=-1)
    np.testing.assert_allclose(found["displacement"] ** 2, t**2 * (speed**2).mean(), rtol=1e-12)
    np.testing.assert_allclose(found["step_length"], speed.mean(), rtol=1e-12)
    np.testing.assert_allclose(found["velocity_autocorrelation"], 1, rtol=1e-12)
    np.testing.assert_allclose(found["turning_angle"], 0, atol=1e-12)
    np.testing.assert_allclose(found["msd_over_half"], np.ceil(t / 2) ** 2 * (speed**2).mean(), rtol=1e-12)
    np.testing.assert_allclose(found["velocity_autocorrelation_over_half"], 1, rtol=1e-12)
    np.testing.assert_allclose(found["straightness"], 1, rtol=1e-12)
    if bodies > 1:
        np.testing.assert_allclose(found["displacement_spread"], t * speed.std(), rtol=1e-9, atol=1e-12)
        polarisation = np.linalg.norm((v / speed[:, None]).mean(0))
        np.testing.assert_allclose(found["polarisation"], polarisation, rtol=1e-12)


@pytest.mark.parametrize("turn", [0.1, 2.0, np.pi])
def test_motion_on_a_circle_turns_by_the_same_angle(turn):
    system, t = recorded(), np.arange(6.0)
    steps = np.stack([np.cos(turn * t), np.sin(turn * t)], -1)
    x = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])[:, None]
    found = values(system, x)
    np.testing.assert_allclose(found["turning_angle"], [0, 0, *[turn] * 5], atol=1e-9)
    np.testing.assert_allclose(found["velocity_autocorrelation"], [1, *np.cos(turn * t)], atol=1e-9)


@pytest.mark.parametrize(("space", "box"), [(1, ()), (2, ()), (2, (8.0, 8.0)), (3, ())])
def test_brownian_motion(space, box):
    system, runs, scale = recorded(space, box), 4000, 0.7
    steps = scale * np.random.default_rng(space).standard_normal((runs, 6, 1, space))
    x = system.spec.geometry.wrap(np.concatenate([np.zeros((runs, 1, 1, space)), np.cumsum(steps, 1)], 1))
    found = values(system, x)
    length = scale * math.sqrt(2) * math.gamma((space + 1) / 2) / math.gamma(space / 2)

    def agrees(sample: np.ndarray, expected: float) -> None:
        assert abs(sample.mean() - expected) < 5 * sample.std() / math.sqrt(runs)

    for t in range(1, 7):
        agrees(found["displacement"][:, t] ** 2, space * scale**2 * t)
        agrees(found["step_length"][:, t], length)
        agrees(found["msd_over_half"][:, t], space * scale**2 * math.ceil(t / 2))
    for t in range(2, 7):
        if space > 1:
            agrees(found["turning_angle"][:, t], np.pi / 2)
        agrees((steps[:, t - 1] * steps[:, 0]).sum((-2, -1)), 0.0)
        weight = (steps[:, 0] ** 2).sum((-2, -1))  # a ratio: its numerator has mean 0
        agrees(found["velocity_autocorrelation"][:, t] * weight, 0.0)


def test_an_ornstein_uhlenbeck_velocity_forgets_exponentially():
    """C(lag) = exp(-rate lag) of stationary velocities; lag-averaged it is known better than from the start alone."""
    system, runs, kept = recorded(2, velocity=True), 3000, 0.8
    rng = np.random.default_rng(4)
    v = [rng.standard_normal((runs, 3, 2))]
    for _ in range(12):
        v.append(kept * v[-1] + math.sqrt(1 - kept**2) * rng.standard_normal(v[0].shape))
    v = np.stack(v, 1)
    found = values(system, np.concatenate([np.cumsum(v, 1), v], -1))
    lagged, first = (found[f"velocity_autocorrelation{end}"] for end in ("_over_half", ""))
    for t in range(2, 13):
        # a ratio of means: over all runs together it has little bias, over each run some
        assert abs(np.median(lagged[:, t]) - kept ** math.ceil(t / 2)) < 0.06
    assert lagged[:, 12].std() < 0.7 * first[:, 6].std()


def test_directions_of_many_bodies_at_random_have_little_polarisation():
    system, runs, bodies = recorded(), 4000, 10
    steps = np.random.default_rng(0).standard_normal((runs, 1, bodies, 2))
    square = values(system, np.concatenate([np.zeros_like(steps), steps], 1))["polarisation"][:, 1] ** 2
    assert abs(square.mean() - 1 / bodies) < 5 * square.std() / math.sqrt(runs)


# -- as an evaluation sees them ------------------------------------------------------------------------------------------------


def test_a_lone_particle_is_judged():
    system = RecordedConfig(spec={"fields": [{"name": "position", "irreps": "1o"}], "space": 2}, frame_dt=0.5).build()
    x = np.cumsum(np.random.default_rng(0).standard_normal((5, 3, 8, 1, 2)), 2)
    seen = observe(system, x)
    assert set(seen) - {"alive"} == {"rms_position", "displacement", "step_length", "turning_angle", "velocity_autocorrelation"} | {
        "msd_over_half",
        "velocity_autocorrelation_over_half",
        "straightness",
    }
    assert all(np.isfinite(seen[name]).all() for name in seen)
