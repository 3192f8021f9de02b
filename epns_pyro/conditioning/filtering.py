"""Filtering, smoothing and bridging: conditioning of a simulator on observations.

    p(x_{0:T} | y_{0:T})  ∝  p(x_0) prod_t p(x_t | x_{t-1}) Normal(y_t; x_t, noise)

`filter_states` infers every x_t given the observations up to t, `smooth_paths` whole trajectories given all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyro
import torch
from torch import Tensor

from epns_pyro.conditioning.gaussian import LinearStep
from epns_pyro.conditioning.observations import Observations
from epns_pyro.conditioning.particles import ParticleSet, Plan, start, sweep, systematic
from epns_pyro.conditioning.problem import Problem, Proposal, Start, adapts, build_problem, complete
from epns_pyro.context import DataContext
from epns_pyro.data import to_dataset
from epns_pyro.errors import ConfigError
from epns_pyro.later import later
from epns_pyro.models import Transition

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = later("xarray")

REFRESH = 0.3  # if the effective fraction of particles is smaller, the filter repeats the whole trajectory with a better proposal
THRESHOLD = 0.5  # particles are resampled when their effective fraction is smaller


@torch.no_grad()
def filter_states(
    transition: Transition,
    context: DataContext,
    x0: Start,
    observations: Observations,
    *,
    particles: int,
    seed: int,
    proposal: Proposal = Proposal.AUTO,
    past: Tensor | None = None,
) -> xr.Dataset:
    """Filter a trajectory; see `Simulator.filter`. `past`, (time, *site, channel), is in the coordinates of the networks."""
    problem = build_problem(transition, context, x0, observations, particles, past=past)
    with _stream(seed, problem.x0):
        adapted = adapts(problem, proposal)
        history = _filter(problem, adapted=adapted).frames
    states = torch.stack([frame.x for frame in history], 1)
    return _labelled(context, states).assign(
        log_weight=(("sample", "time"), torch.stack([frame.log_weight for frame in history], 1).cpu().numpy()),
        ess=("time", [frame.ess for frame in history]),
        log_evidence=("time", [frame.log_evidence for frame in history], {"units": "nats"}),
    )


@torch.no_grad()
def smooth_paths(
    transition: Transition,
    context: DataContext,
    x0: Start,
    observations: Observations | None,
    *,
    end: Tensor | np.ndarray | None,
    steps: int | None,
    particles: int,
    seed: int,
    sweeps: int,
    past: Tensor | None = None,
) -> xr.Dataset:
    """Smooth a trajectory, or bridge between two states; see `Simulator.smooth`."""
    if sweeps < 1:
        raise ConfigError(f"smoothing needs at least one sweep, found {sweeps}")
    problem = build_problem(transition, context, x0, complete(transition, x0, observations, steps), particles, end, past)
    if not problem.looks_ahead:
        raise ConfigError(
            f"smoothing a state of {problem.law.mean.shape[-1]} numbers needs at least {2 * (problem.law.mean.shape[-1] + 1)} particles, "
            f"found {particles}"
        )
    with _stream(seed, problem.x0):
        is_normal = adapts(problem, Proposal.AUTO)
    if not is_normal:
        raise ConfigError(
            "smoothing and bridges need a Normal emission, and this model has another, as the mixture of recordings is: filter, or train "
            "with --set model.emission=coupled"
        )
    with _stream(seed, problem.x0):
        fits = _pilot(problem)
        for _ in range(sweeps):
            done = _pass(problem, Plan.backward(problem.targets, fits))
            fits = done.fits
    paths = done.paths()
    return _labelled(context, paths).assign(
        log_weight=("sample", done.particles.log_weight.cpu().numpy()),
        ess=("time", done.ess),
        distinct=("time", [len(frame.unique(dim=0)) for frame in paths.unbind(1)]),
        log_evidence=((), done.particles.log_evidence, {"units": "nats"}),
    )


def unweighted(posterior: xr.Dataset, *, seed: int = 0) -> xr.Dataset:
    """Resample a posterior to equal weights: the same dataset without `log_weight`, for scores and quantiles of ensembles.

    The states of a filter are resampled at each time separately, those of a smoother as whole trajectories.
    """
    torch_weight = torch.as_tensor(posterior["log_weight"].values).exp().reshape(posterior.sizes["sample"], -1)
    with _stream(seed, torch_weight):
        columns = [systematic(column) for column in torch_weight.T.contiguous()]
        columns = [column[torch.randperm(len(column))] for column in columns]
    index = torch.stack(columns, 1).numpy()
    rows = xr.DataArray(index, dims=("sample", "time")) if index.shape[1] > 1 else xr.DataArray(index[:, 0], dims="sample")
    moving = [name for name in posterior if "sample" in posterior[name].dims and name != "log_weight"]
    picked = {name: posterior[name].isel({"sample": rows, **({"time": _all_times(posterior)} if rows.ndim > 1 else {})}) for name in moving}
    return posterior.drop_vars("log_weight").assign({n: v.transpose(*posterior[n].dims) for n, v in picked.items()})


def _all_times(posterior: xr.Dataset) -> xr.DataArray:
    return xr.DataArray(np.arange(posterior.sizes["time"]), dims="time")


# -- filtering ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """The filtered particles of one frame; `ess` is the smallest effective sample size since the frame before."""

    x: Tensor
    log_weight: Tensor
    ess: float
    log_evidence: float

    @classmethod
    def of(cls, particles: ParticleSet, ess: float | None = None) -> Frame:
        return cls(particles.x, particles.log_weight, particles.ess if ess is None else ess, particles.log_evidence)


@dataclass(frozen=True)
class Filtered:
    """The filtered particles of frames 0 .. T, and linear fits of the steps between them (none without adapted proposals)."""

    frames: list[Frame]
    fits: list[LinearStep]


def _filter(problem: Problem, *, adapted: bool) -> Filtered:
    """Filter from one observed frame to the next; repeat the whole trajectory if too few particles have weight."""
    particles = start(problem.kernel, problem.x0, problem.law, problem.measured[0], problem.past)
    fits: list[LinearStep] = []
    frames = [Frame.of(particles)]
    for target in sorted(problem.observed - {0} | {problem.steps}):
        here = len(frames) - 1
        if not adapted:
            frames += _bootstrap_filter(problem, particles, here, target)
        elif target not in problem.observed:
            tail = _forecast(problem, particles, target - here)
            frames, fits = frames + [frame for frame, _ in tail], fits + [fit for _, fit in tail]
        elif not problem.looks_ahead:
            measured = problem.measured[here + 1 : target + 1]
            frames += [Frame.of(particles) for _ in sweep(problem.kernel, particles, Plan.myopic(measured), THRESHOLD, here + 1)]
        else:
            gap = _forecast(problem, particles.copy(), target - here)
            fits = fits + [fit for _, fit in gap]
            worst = _reach(problem, particles, fits[here:], here)
            if worst < REFRESH * len(particles.x):
                again = _pass(problem, Plan.backward(problem.measured[1 : target + 1], fits))
                if min(again.ess) > worst:
                    particles, worst, fits = again.particles, min(again.ess), again.fits
            frames += [frame for frame, _ in gap[:-1]]  # filtered, so without the next observation
            frames.append(Frame.of(particles, worst))
    return Filtered(frames, fits)


def _bootstrap_filter(problem: Problem, particles: ParticleSet, here: int, target: int) -> list[Frame]:
    """Run the bootstrap filter, which works for any emission."""
    frames = []
    for t in range(here + 1, target + 1):
        particles.resample(THRESHOLD)
        particles.carry = problem.kernel.sample(particles.carry)
        particles.weigh(problem.measured[t](problem.kernel.flat(particles.x)), f"step {t}")
        frames.append(Frame.of(particles))
    return frames


def _forecast(problem: Problem, particles: ParticleSet, steps: int) -> list[tuple[Frame, LinearStep]]:
    """Move the particles without an observation; return each frame, and a linear fit of the step to it."""
    frames = []
    for _ in range(steps):
        move = problem.kernel.move(particles.carry, particles.weight)
        particles.carry = move.carry
        frames.append((Frame.of(particles), move.fit))
    return frames


def _reach(problem: Problem, particles: ParticleSet, fits: list[LinearStep], here: int) -> float:
    """Move the particles to the next observed frame with look-ahead proposals; return the smallest effective sample size on the way."""
    target = here + len(fits)
    plan = Plan.backward(problem.measured[here + 1 : target + 1], fits)
    particles.weigh(plan.ahead[0](problem.kernel.flat(particles.x)), f"step {target}")
    return min([particles.ess, *(particles.ess for _ in sweep(problem.kernel, particles, plan, THRESHOLD, here + 1))])


# -- smoothing ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """A forward sweep with its history.

    Parameters
    ----------
    particles : ParticleSet
        The particles at its end.
    states : list of Tensor, (particle, *site, channel)
        Of frames 0 .. t.
    parents : list of Tensor or None
        Of frames 1 .. t: the index of each particle's parent in the frame before, None if each is its own.
    ess : list of float
        Of frames 0 .. t.
    fits : list of LinearStep
        The steps to 1 .. t.
    """

    particles: ParticleSet
    states: list[Tensor]
    parents: list[Tensor | None]
    ess: list[float]
    fits: list[LinearStep]

    def paths(self) -> Tensor:
        """Trace the last particles back to their initial states: (particle, time, *site, channel)."""
        line = torch.arange(len(self.particles.x), device=self.particles.x.device)
        path = [self.states[-1]]
        for states, parents in zip(self.states[-2::-1], self.parents[::-1], strict=True):
            line = line if parents is None else parents[line]
            path.append(states[line])
        return torch.stack(path[::-1], 1)


def _pass(problem: Problem, plan: Plan) -> Pass:
    """Sweep from the initial state to the end of the plan."""
    particles = start(problem.kernel, problem.x0, problem.law, problem.measured[0].times(plan.ahead[0]), problem.past)
    done = Pass(particles, [particles.x], [], [particles.ess], [])
    for stop in sweep(problem.kernel, particles, plan, THRESHOLD, 1):
        done.states.append(particles.x)
        done.parents.append(stop.parents)
        done.ess.append(particles.ess)
        done.fits.append(stop.fit)
    return done


def _pilot(problem: Problem) -> list[LinearStep]:
    """Return linear fits of the steps of filtered particles, which the first sweep uses for its look-ahead."""
    if problem.end is not None:  # a filter cannot reach an exactly known end
        problem = replace(problem, end=None, observed=problem.observed - {problem.steps})
    return _filter(problem, adapted=True).fits


# -- helpers ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _stream(seed: int, like: Tensor) -> Iterator[None]:
    """Use a separate random stream, and no validation: a particle that diverges gets no weight, but raises no error."""
    with pyro.validation_enabled(False), torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        torch.manual_seed(seed)
        yield


def _labelled(context: DataContext, states: Tensor) -> xr.Dataset:
    """Label states (particle, time, *site, channel)."""
    dims = ("sample", "trajectory", "time")
    return to_dataset(context.spec, context.to_global(states[:, None].cpu().numpy()), dims, frame_dt=context.frame_dt).isel(trajectory=0)
