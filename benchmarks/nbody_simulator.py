"""How fast the celestial simulator and its oracle are, against plain NumPy that does the same work in the same run.

NumPy steps all trajectories at once, which is the fastest that it can do. Everything is timed on one thread after a warm-up; the
oracle is timed at several steps of its covariance, with what a coarser one does to the score.

    python benchmarks/nbody_simulator.py --trajectories 200 --bodies 5
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

from epns_pyro.systems import NBody, NBodyConfig, trajectory_seeds


def numpy_simulate(system: NBody, x0: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """The same process in plain NumPy, vectorised over trajectories and pairs: (n, frames + 1, body, channel)."""
    c = system.config
    m, r, v = (system.spec.get(x0, name) for name in ("mass", "position", "velocity"))

    def acceleration(r: np.ndarray) -> np.ndarray:
        d = r[:, None] - r[:, :, None]
        s2 = (d**2).sum(-1) + c.softening**2
        return c.gravitational_constant * np.einsum("nij,nijk->nik", m[:, None] / (s2 * np.sqrt(s2)), d)

    a, path = acceleration(r), [x0]
    for _ in range(frames):
        for _ in range(system.steps_per_frame):
            v = v + 0.5 * c.dt * a
            r = r + c.dt * v
            a = acceleration(r)
            v = v + 0.5 * c.dt * a + c.sigma * np.sqrt(c.dt) * rng.standard_normal(v.shape)
        path.append(system.spec.pack(mass=m, position=r, velocity=v))
    return np.stack(path, axis=1)


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


@click.command()
@click.option("--trajectories", default=200, show_default=True)
@click.option("--frames", default=100, show_default=True)
@click.option("--bodies", default=5, show_default=True)
def main(trajectories: int, frames: int, bodies: int) -> None:
    system = NBodyConfig(bodies=bodies).build()
    x0 = system.initial(trajectories, np.random.default_rng(0))
    seeds = trajectory_seeds(0, "benchmark", trajectories)

    start_up, _ = timed(system.simulate, x0[:1], 1, seeds[:1], workers=1)
    compiled, x = timed(system.simulate, x0, frames, seeds, workers=1)
    plain, there = timed(numpy_simulate, system, x0, frames, np.random.default_rng(0))
    assert x.shape == there.shape
    steps = trajectories * frames * system.steps_per_frame
    print(f"{trajectories} trajectories of {frames} frames, {bodies} bodies, one thread")
    print(f"first call      {start_up:8.2f} s")
    for name, seconds in (("compiled", compiled), ("plain NumPy", plain)):
        print(f"{name:12} {trajectories / seconds:11.1f} trajectories/s {1e6 * seconds / steps:9.3f} us per step and trajectory")
    print(f"speed-up     {plain / compiled:11.1f}")

    before, after = (part[:, ::10].reshape(-1, bodies, system.spec.channels) for part in (x[:, :-1], x[:, 1:]))
    reference = None
    print(f"\noracle on {len(before)} transitions, one thread\n  oracle_dt   ms/transition   nats/transition   mean move   largest move")
    for stride in (1, 2, 5, 10, 20):
        coarse = system.config.override({"oracle_dt": stride * system.config.dt}).build()
        coarse.transition_law(before[:1], workers=1)
        seconds, _ = timed(coarse.transition_law, before, workers=1)
        scores = coarse.transition_log_prob(before, after)
        reference = scores if reference is None else reference
        move = scores - reference
        print(
            f"  {coarse.config.oracle_dt:9.3f}   {1e3 * seconds / len(before):13.3f}   {scores.mean():15.3f}"
            f"   {move.mean():9.1e}   {np.abs(move).max():12.1e}"
        )
    for name, isotropic in (("diagonal", False), ("isotropic diagonal", True)):
        print(f"{name}: {system.diagonal_log_prob(before, after, isotropic=isotropic).mean():.3f} nats per transition")


if __name__ == "__main__":
    main()
