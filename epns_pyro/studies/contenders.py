"""Contenders: what the models of a study have in common when they are judged, however they came about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from epns_pyro.data import Store, open_store
from epns_pyro.errors import TrainingError
from epns_pyro.evaluation.forecasters import Forecaster, Model, Programs, Truth
from epns_pyro.evaluation.label_forecasters import LabelPersistence
from epns_pyro.evaluation.linear_forecasters import Persistence
from epns_pyro.models import Feedback
from epns_pyro.runs import load
from epns_pyro.simulator import Simulator
from epns_pyro.studies import programs
from epns_pyro.studies.plan import Job
from epns_pyro.training import stock_pyro
from epns_pyro.training.checkpoint import read_checkpoint

Report = Callable[[int, int], None]
FEEDBACK = {"sample": Feedback.ANCESTRAL, "mode": Feedback.PUSHFORWARD}


class PathScores(NamedTuple):
    """Bounds of log p(path | x0), which are equal where the density is known: each (batch,), nats."""

    elbo: Tensor
    iwae: Tensor


@dataclass(frozen=True)
class Contender:
    """A forecaster with a likelihood.

    Parameters
    ----------
    forecaster : Forecaster
    score : callable
        Initial states (batch, *site, channel), paths (batch, time, *site, channel) and a number of samples -> PathScores.
    parameters, steps : int
    seconds : float
        Of training.
    simulator : Simulator, optional
        None where the model is no step-by-step model of this package.
    """

    forecaster: Forecaster
    score: Callable[[Tensor, Tensor, int], PathScores]
    parameters: int = 0
    steps: int = 0
    seconds: float = 0.0
    simulator: Simulator | None = None


def contender(job: Job, report: Report = lambda done, total: None) -> Contender:
    """Train the model of a job as far as that is missing, and return it.

    Raises
    ------
    TrainingError
        If training failed.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after the state of the training has been saved.
    """
    if job.model.reference:
        return _reference(job.model.reference, open_store(job.held_out))
    if isinstance(job.config, programs.ProgramRunConfig):
        return _of_program(job, job.config, report)
    return _of_simulator(job, report)


def _of_simulator(job: Job, report: Report) -> Contender:
    from epns_pyro.training.trainer import Hardware, Trainer  # takes seconds to import

    folder, wanted = job.folder, job.config.training.steps
    if not folder.last.is_file() or read_checkpoint(folder.last)["counters"].step < wanted:
        resume = folder.last.is_file()
        trainer = Trainer(job.config, open_store(job.data), folder, Hardware("cpu"))
        trainer.fit(resume=resume, on_progress=lambda progress: report(progress.step, progress.steps))
    sim, counters = load(folder.path), read_checkpoint(folder.last)["counters"]
    if not np.isfinite(counters.validation.elbo):
        raise TrainingError(f"diverged: the validation ELBO after {counters.step} steps is not finite")

    def score(x0: Tensor, path: Tensor, samples: int) -> PathScores:
        bounds = sim.bounds(x0, path, num_samples=samples)
        return PathScores(bounds.elbo, bounds.iwae)

    weights = sum(p.numel() for p in sim.transition.parameters())
    return Contender(Model(sim, FEEDBACK[job.model.rollout]), score, weights, counters.step, counters.seconds, sim)


def _of_program(job: Job, config: programs.ProgramRunConfig, report: Report) -> Contender:
    program = programs.train(config, open_store(job.data), job.folder, report)

    def score(x0: Tensor, path: Tensor, samples: int) -> PathScores:
        bounds = stock_pyro.program_bounds(program.model, program.guide, x0, path, num_samples=samples)
        return PathScores(bounds.elbo, bounds.iwae)

    forecaster = Programs(program.model, program.guide)
    return Contender(forecaster, score, program.parameters, config.training.steps, program.seconds)


def _reference(which: str, store: Store) -> Contender:
    """Return a forecaster that needs no training: persistence with noise fitted to the data, or the true process."""
    system = store.system
    forecaster: Forecaster
    if which == "truth":
        forecaster, log_prob = Truth(system), system.transition_log_prob if system.has_oracle else None
    else:
        labels = any(field.kind == "label" for field in store.spec.dynamic_fields)
        forecaster = LabelPersistence.fit(store, by_distance=False) if labels else Persistence(store.context())
        log_prob = cast(Forecaster, forecaster).log_prob

    def score(x0: Tensor, path: Tensor, samples: int) -> PathScores:
        if log_prob is None:
            unknown = torch.full((len(x0),), torch.nan)
            return PathScores(unknown, unknown)
        joined = torch.cat([x0[:, None], path], 1)
        states = (joined.double() if joined.is_floating_point() else joined).numpy()
        nats = torch.as_tensor(log_prob(states[:, :-1], states[:, 1:]).sum(1))
        return PathScores(nats, nats)

    return Contender(forecaster, score)
