"""A trained simulator: sampling, likelihood and conditioning."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from epns_pyro.conditioning import filtering
from epns_pyro.conditioning.observations import Observations
from epns_pyro.conditioning.problem import Proposal, Start
from epns_pyro.context import DataContext
from epns_pyro.data import open_store, to_dataset
from epns_pyro.errors import ConfigError, ShapeError, require_positive, require_seed
from epns_pyro.inference import elbo, events
from epns_pyro.inference.compiled import compiled_sampler
from epns_pyro.inference.elbo import Bounds
from epns_pyro.inference.hidden import bound_parts, durations_alone, infer_last, recorded_blocks, recording_bounds
from epns_pyro.inference.pair_law import HELD_OUT, STRIDE, pair_law
from epns_pyro.inference.rollout import Block, Sampler, rollout_blocks
from epns_pyro.machine import require_memory
from epns_pyro.models import EPNSGuide, EPNSModel, Feedback, Transition
from epns_pyro.models.hidden.programs import HiddenGuide, HiddenModel
from epns_pyro.models.hidden.recording import recording_of
from epns_pyro.models.program import PathProgram
from epns_pyro.presence import as_states, check_past, check_states
from epns_pyro.state import StateSpec
from epns_pyro.systems import System
from epns_pyro.training.run import RunConfig

if TYPE_CHECKING:
    import xarray as xr

States = Tensor | np.ndarray


@dataclass(frozen=True)
class Simulator:
    """A trained EPNS with everything needed to use it; `epns_pyro.load` makes it.

    Parameters
    ----------
    transition : Transition
    system : System
        The system of the data: symmetry, observables, and the true process if it is known.
    context : DataContext
        Properties of the training data.
    config : RunConfig
        The user's settings.
    step : int
        Optimiser steps of these weights.
    store : str
        Path of the store it was trained on.
    versions : dict
        Versions of the code and libraries that wrote the checkpoint.
    sampler : callable, optional
        What samples a step; see `compile`.
    """

    transition: Transition
    system: System
    context: DataContext
    config: RunConfig
    step: int = 0
    store: str = ""
    versions: dict[str, str] | None = None
    sampler: Sampler | None = None

    @property
    def spec(self) -> StateSpec:
        return self.context.spec

    @cached_property
    def model(self) -> PathProgram:
        """The Pyro model; always the same one, so that what a script sets on it stays."""
        return (HiddenModel if self.infers_states else EPNSModel)(self.transition, context=self.context)

    @cached_property
    def guide(self) -> PathProgram:
        """The Pyro guide; always the same one."""
        return (HiddenGuide if self.infers_states else EPNSGuide)(self.transition, context=self.context)

    @property
    def infers_states(self) -> bool:
        """Whether recordings are not the state, so that frames are given in place of initial states."""
        return self.transition.recording is not None

    @property
    def noise(self) -> dict[str, float]:
        """Standard deviation of the error with which a field is recorded, in its unit, given or learned; empty where all are exact."""
        if not self.infers_states:
            return {}
        fields, noise = self.spec.dynamic_fields, recording_of(self.transition).noise.tolist()
        return {field.name: error for field, error in zip(fields, noise, strict=True) if field.noise}

    @property
    def device(self) -> torch.device:
        return next(self.transition.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.transition.parameters()).dtype

    def to(self, *args: Any) -> Simulator:
        """Move or cast the networks in place, like `torch.nn.Module.to`; return the simulator."""
        self.transition.to(*args)
        return self

    def compile(self) -> Simulator:
        """Return a simulator that samples the same futures by compiled steps; with a warning, by plain ones where that cannot be."""
        made = replace(self, sampler=compiled_sampler(self.transition))
        vars(made).update(model=self.model, guide=self.guide)  # the same ones: what a script sets on them stays
        return made

    # -- sampling ----------------------------------------------------------------------------------------------------------

    def rollout(
        self,
        x0: Tensor | np.ndarray,
        *,
        steps: int,
        members: int,
        seed: int = 0,
        feedback: Feedback = Feedback.ANCESTRAL,
        block_size: int | None = None,
        schedule: Tensor | np.ndarray | None = None,
        past: Tensor | np.ndarray | None = None,
    ) -> xr.Dataset:
        """Sample futures of initial states: Dataset (sample, trajectory, time, *site[, space]).

        Parameters
        ----------
        x0 : (trajectory, *site, channel)
            Full initial states, as `spec.pack` builds them. Where states are hidden: the frames given, (trajectory, time, *site, channel),
            and futures are what would be recorded after the last of them.
        steps, members, seed : int
            Random numbers are those of PyTorch, which all threads share: sample several ensembles at a time in processes, not in threads.
        feedback : Feedback
            ANCESTRAL: a sample of the model. PUSHFORWARD: the mean of the emission is fed back, as in the published code.
        block_size : int, optional
            States that pass through the networks at a time.
        schedule : (trajectory, time, *site, channel), optional
            Recorded states after x0, which say what is not forecast: bodies enter where they are first seen and leave when they leave
            there, and steps last as long as there. Without it the bodies of x0 stay, and all steps last as long as its own.
        past : (trajectory, time, *site, channel), optional
            Recorded states before x0, for a model with a history; without them a forecast starts from x0 alone.

        Returns
        -------
        xarray.Dataset
            One variable per field, dims (sample, trajectory, time, *site[, space]); `alive` (sample, trajectory, time) is False from
            the first implausible frame on. Time 0 is the initial state, in physical units. Where trajectories differ in their durations,
            `time` is that of even frames, and `elapsed` (trajectory, time) that of their own.
        """
        settings: dict[str, Any] = {"seed": seed, "feedback": feedback, "block_size": block_size, "schedule": schedule, "past": past}
        blocks = self.rollout_blocks(x0, steps=steps, members=members, **settings)
        size = 2 * members * (steps + 1) * self._given(x0).nbytes
        require_memory(size, f"{members} futures of {len(x0)} states over {steps} steps", "ask for fewer, or use rollout_blocks")
        first = next(blocks)
        paths = np.empty((members, len(x0), *first.states.shape[2:]), first.states.dtype)
        alive = np.empty(paths.shape[:3], bool)
        for block in chain([first], blocks):
            paths[block.samples, block.trajectories] = block.states
            alive[block.samples, block.trajectories] = self.system.alive(block.states)
        dataset = to_dataset(self.spec, paths, ("sample", "trajectory", "time"), frame_dt=self.context.frame_dt)
        return dataset.assign(alive=(("sample", "trajectory", "time"), alive))

    def rollout_blocks(
        self,
        x0: Tensor | np.ndarray,
        *,
        steps: int,
        members: int,
        seed: int = 0,
        feedback: Feedback = Feedback.ANCESTRAL,
        block_size: int | None = None,
        schedule: Tensor | np.ndarray | None = None,
        past: Tensor | np.ndarray | None = None,
        only: Container[int] | None = None,
        inferred: Tensor | None = None,
        span: int | None = None,
    ) -> Iterator[Block]:
        """Sample futures block by block, see `rollout`; `only` some, by number, `inferred` for all of them; in parts of `span` steps."""
        require_positive(steps=steps, members=members, block_size=1 if block_size is None else block_size)
        require_seed(seed)
        start = self._given(x0)[:, -1] if self.infers_states else self._given(x0)
        states = self.inferred(x0, members, seed) if inferred is None else inferred
        if schedule is not None:
            _, schedule = self._pair(x0[:, -1] if x0.ndim > start.dim() else x0, schedule)
            if schedule.shape[1] != steps:
                raise ShapeError(f"the schedule: expected {steps} steps after the initial states, found {schedule.shape[1]}")
            schedule = schedule if states is None else durations_alone(self.spec, states, schedule)
        held = min(block_size or self.transition.at_once(start), members * len(start)) * start[0].numel() * start.element_size()
        some = min(steps, span or steps) if states is None else steps
        require_memory(2 * held * (some + 1), f"a block of futures over {some} steps", "ask for fewer steps or a smaller block_size")
        more: dict[str, Any] = {"seed": seed, "feedback": feedback, "block_size": block_size, "schedule": schedule, "inferred": states}
        more |= {"past": self._past(past, x0), "sampler": self.sampler, "only": only, "span": some}
        blocks = rollout_blocks(self.transition, start, steps=steps, members=members, **more)
        blocks = blocks if states is None else recorded_blocks(self.transition, start, blocks, seed=seed)
        return (block._replace(states=self.context.to_global(block.states)) for block in blocks)

    # -- likelihood --------------------------------------------------------------------------------------------------------

    def elbo(self, x0: States, path: States, *, num_samples: int = 1, past: States | None = None) -> Tensor:
        """Return the teacher-forced ELBO of paths (batch, time, *site, channel) from x0 (batch, *site, channel): (batch,), nats."""
        return self.bounds(x0, path, num_samples=num_samples, past=past).elbo

    def iwae(self, x0: States, path: States, *, num_samples: int = 64, past: States | None = None) -> Tensor:
        """Return the importance-weighted bound of paths, tighter than the ELBO: (batch,), nats."""
        return self.bounds(x0, path, num_samples=num_samples, past=past).iwae

    def bounds(self, x0: States, path: States, *, num_samples: int = 1, past: States | None = None) -> Bounds:
        """Return ELBO, IWAE bound and their parts, from the same samples; `past` is that of `rollout`."""
        if self.infers_states:
            return recording_bounds(self.transition, *self._pair(x0, path), num_samples=num_samples)
        return elbo.path_bounds(self.transition, *self._pair(x0, path), num_samples=num_samples, past=self._past(past, x0))

    def latent_kl(self, x0: Tensor | np.ndarray, path: Tensor | np.ndarray) -> Tensor:
        """Return the mean KL of every latent dimension along paths: (entity, latent), nats per transition."""
        x0, path = self._pair(x0, path)
        if self.infers_states:
            with torch.no_grad():
                return bound_parts(self.transition, x0, path)[1].mean(0)
        return elbo.latent_kl(self.transition, x0, path)

    def log_density(self, x0: Tensor, path: Tensor, z: Tensor) -> Tensor:
        """Return log p(x_{1:T}, z_{1:T} | x_0) of given latents z (batch, time, entity, latent): (batch,), nats."""
        x0, path = self._pair(x0, path)
        z = torch.as_tensor(z).to(self.device, self.dtype)
        if z.dim() != 4 or z.shape[:2] != path.shape[:2]:
            raise ShapeError(f"z: expected (batch, time, entity, latent) to go with a path {tuple(path.shape)}, found {tuple(z.shape)}")
        return elbo.log_density(self.transition, x0, path, z)

    # -- conditioning ------------------------------------------------------------------------------------------------------

    def filter(
        self,
        x0: Start,
        observations: Observations,
        *,
        particles: int = 500,
        seed: int = 0,
        proposal: Proposal = Proposal.AUTO,
        past: States | None = None,
    ) -> xr.Dataset:
        """Infer each state of a trajectory from the observations up to it: Dataset (sample, time, *site[, space]).

        Parameters
        ----------
        x0 : (*site, channel), (sample, *site, channel) or InitialNormal
            The initial state, an ensemble of possible ones, or a Normal distribution of it.
        observations : Observations
            They determine the number of steps; frames without observations are forecast.
        particles, seed : int
        proposal : Proposal
            AUTO: adapted to the observations if the emission is Normal; FORECAST: the bootstrap filter.
        past : (time, *site, channel), optional
            Known states before x0, for a model with a history.

        Returns
        -------
        xarray.Dataset
            One variable per field, dims (sample, time, *site[, space]), with `log_weight` (sample, time), normalised at every time: with
            these weights, the states of time t are a sample of p(x_t | y_{0:t}). Rows are not trajectories: `smooth` returns those. `ess`
            (time) is the smallest effective sample size since the frame before, `log_evidence` (time) is log p(y_{0:t}) in nats.
        """
        self._require_particles(particles)
        more: dict[str, Any] = {"particles": particles, "seed": seed, "past": self._past(past)}
        return filtering.filter_states(self.transition, self.context, x0, observations, proposal=proposal, **more)

    def smooth(
        self,
        x0: Start,
        observations: Observations | None = None,
        *,
        end: Tensor | np.ndarray | None = None,
        steps: int | None = None,
        particles: int = 500,
        seed: int = 0,
        sweeps: int = 2,
        past: States | None = None,
    ) -> xr.Dataset:
        """Infer whole trajectories from all observations, or between a known start and end (a bridge): Dataset (sample, time, ...).

        Parameters
        ----------
        x0 : (*site, channel), (sample, *site, channel) or InitialNormal
        observations : Observations, optional
        end : (*site, channel), optional
            The full state of the last frame, if it is known exactly.
        steps : int, optional
            Number of steps; needed only without observations.
        particles, seed, sweeps : int
            A sweep over the trajectory improves the look-ahead of the next.
        past : (time, *site, channel), optional
            As for `filter`.

        Returns
        -------
        xarray.Dataset
            One variable per field, dims (sample, time, *site[, space]), with `log_weight` (sample,), normalised: with these weights, the
            rows are a sample of p(x_{0:T} | y_{0:T}). `ess` (time), `log_evidence` (), and `distinct` (time): the number of different
            states among the rows; if it is small, use more particles.
        """
        self._require_particles(particles)
        more: dict[str, Any] = {"particles": particles, "seed": seed, "past": self._past(past)}
        return filtering.smooth_paths(self.transition, self.context, x0, observations, end=end, steps=steps, sweeps=sweeps, **more)

    def probability(
        self, event: events.Event, x0: States, *, steps: int, members: int, seed: int = 0, past: States | None = None
    ) -> events.Probability:
        """Estimate P(event | x0) from independent futures, with its Monte Carlo error.

        Parameters
        ----------
        event : callable
            Futures (sample, time, *site, channel), time 0 is x0 -> booleans (sample,); `Exceeds(sim.system, "total_energy", -10.0,
            step=50)` is one.
        x0 : (*site, channel)
        steps, members, seed, past : as for `rollout`

        Examples
        --------
        >>> str(sim.probability(Exceeds(sim.system, "furthest_body", 8.0, step=100), x0, steps=100, members=1000))  # doctest: +SKIP
        '0.012 ± 0.0034 (95% interval 0.0062 to 0.021; 12 of 1000 futures)'
        """
        if (x0 := as_states(x0, what="the initial state")).ndim == 1 + len(self.spec.sites) + self.infers_states:
            x0, past = x0[None], None if past is None else torch.as_tensor(past)[None]
        if len(x0) != 1:
            raise ShapeError(f"the initial state of a probability: expected one, found {len(x0)}")
        blocks = self.rollout_blocks(x0, steps=steps, members=members, seed=seed, past=past)
        return events.probability(event, self.system, blocks)

    def pair_law(self, x: States | None = None, *, per: str = "", times: str = "", bins: int = 24) -> xr.Dataset:
        """Read off how the learned motion makes two bodies act on each other, by distance; see `epns_pyro.inference.pair_law.pair_law`."""
        states = open_store(self.store).read("test", slice(0, HELD_OUT))[:, ::STRIDE] if x is None else x
        return pair_law(self.transition, self.system, self.context, states, per=per, times=times, bins=bins)

    def _require_particles(self, particles: int) -> None:
        require_memory(8 * particles * int(np.prod(self.context.sites)) * self.spec.channels, f"{particles} particles", "use fewer")

    def _past(self, past: States | None, x0: States | None = None) -> Tensor | None:
        if past is not None:
            check_past(self.spec, past, x0)
        return None if past is None else self.local(past)

    def _pair(self, x0: Tensor | np.ndarray, path: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
        x0, path = self._states(x0), self._states(path, "the path", ("batch", "time"))
        if path[:, 0].shape != (start := tuple(x0.shape)):
            raise ShapeError(f"the path: expected (batch, time, ...) to go with initial states {start}, found {tuple(path.shape)}")
        return x0, path

    def infer(self, frames: Tensor | np.ndarray, *, members: int, seed: int = 0) -> Tensor:
        """Draw the state that bodies have in the last of the frames given, where states are hidden.

        Parameters
        ----------
        frames : (trajectory, time, *site, channel)
            What was recorded: NaN in the dynamic fields of bodies that were not detected, anything in hidden fields.
        members, seed : int

        Returns
        -------
        Tensor, (member, trajectory, *site, channel)
            In the coordinates of the data. The states of one trajectory are an ensemble that `filter` and `smooth` can start from.
        """
        if not self.infers_states:
            raise ConfigError("states are recorded, not hidden: there is nothing to infer, use the last frame")
        self._states(frames, "the frames given", ("trajectory", "time"))  # not those of a single trajectory
        return self.context.to_global(self.inferred(frames, members, seed))

    def inferred(self, x0: Tensor | np.ndarray, members: int, seed: int) -> Tensor | None:
        """Draw the same in the coordinates of the model, as `rollout_blocks` takes it; None where states are not hidden."""
        if not self.infers_states:
            return None
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            return infer_last(self.transition, self._given(x0), members)

    def _given(self, x0: Tensor | np.ndarray) -> Tensor:
        """Check what a rollout is given: states (trajectory, *site, channel), or frames (trajectory, time, *site, channel)."""
        if not self.infers_states:
            return self._states(x0)
        return self._states(x0[:, None] if x0.ndim == 2 + len(self.spec.sites) else x0, "the frames given", ("trajectory", "time"))

    def _states(self, x: Tensor | np.ndarray, what: str = "the initial states", leading: tuple[str, ...] = ("batch",)) -> Tensor:
        x = as_states(x, what=what)
        check_states(self.spec, x, absences=self.context.absences, what=what, leading=leading)
        return self.local(x)

    def local(self, x: Tensor | np.ndarray) -> Tensor:
        """Convert full states (*batch, *site, channel) to the input of the networks: relative to the origin of the context, their dtype."""
        local = self.context.to_local(torch.as_tensor(x))
        return local.to(self.device, self.dtype if local.dtype.is_floating_point else torch.int64)
