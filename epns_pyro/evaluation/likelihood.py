"""Log-likelihood of held-out transitions under the model and its references: nats per transition of the whole system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from epns_pyro.calibration import sbc
from epns_pyro.calibration.scores import mean_estimate
from epns_pyro.data import Store
from epns_pyro.evaluation.ensembles import blocks, lead_frames
from epns_pyro.evaluation.forecasters import Forecaster
from epns_pyro.evaluation.label_forecasters import label_of, of_new_cells
from epns_pyro.evaluation.record import Likelihood, LikelihoodRow
from epns_pyro.evaluation.trials import trials
from epns_pyro.simulator import Simulator
from epns_pyro.training.run import EvaluationConfig


@dataclass(frozen=True)
class Scored:
    """The likelihood table, and the values behind it.

    `log_likelihood` (trajectory, time): one-step log-likelihoods, nats, by key; `time` is the time of the state after the step.
    """

    table: Likelihood
    log_likelihood: xr.Dataset


def score(simulator: Simulator, store: Store, settings: EvaluationConfig, references: dict[str, Forecaster]) -> Scored:
    """Score test transitions under the model and its references; standard errors are computed over trajectories.

    The transitions are those that end at the lead times of the forecasts, plus others of the same trajectories, evenly spread over time, up
    to `settings.likelihood_transitions`.
    """
    system, samples = store.system, settings.importance_samples
    frames, x, x_next = _transitions(store, settings)
    trajectories = len(x) // len(frames)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        bounds = simulator.bounds(x, x_next[:, None], num_samples=samples)
    rows: list[LikelihoodRow] = []
    scores: dict[str, np.ndarray] = {}

    def by_trajectory(values: Any) -> np.ndarray:
        return np.asarray(values, float).reshape(trajectories, len(frames))

    def add(key: str, name: str, values: Any, note: str = "") -> None:
        scores[key] = by_trajectory(values)
        estimate, ahead = (mean_estimate(values.mean(1)) for values in (scores[key], scores["elbo"] - scores[key]))
        score = {"value": float(estimate.value), "error": float(estimate.error)}
        paired = {"difference": float(ahead.value), "difference_error": float(ahead.error)} if key != "elbo" else {}
        rows.append(LikelihoodRow(key=key, name=name, note=note, **score, **paired))

    add("elbo", "model, ELBO", bounds.elbo.cpu(), "lower bound: reconstruction minus KL, without annealing")
    add("iwae", f"model, IWAE bound (K = {samples})", bounds.iwae.cpu(), "tighter lower bound of the model's log-likelihood")
    for name, reference in references.items():
        if reference.has_density:
            add(name, reference.label, reference.log_prob(x, x_next), "reference that needs no learning")
    if system.has_diagonal_law:
        diagonal = system.diagonal_log_prob(x, x_next)
        add("diagonal", "best diagonal Normal", diagonal, "upper limit for models with independent Normal channels and no latents")
    if system.has_oracle:
        add("oracle", "oracle", system.transition_log_prob(x, x_next), "true transition density: no model can be better on average")
    table = Likelihood(
        transitions=len(x),
        trajectories=trajectories,
        rows=tuple(rows),
        reconstruction=float(bounds.log_likelihood.mean()),
        kl=float(bounds.kl.mean()),
        gap_sentence=sbc.bound_gap(scores["elbo"].mean(1), scores["iwae"].mean(1), transitions=1, samples=samples).sentence(),
        left_out_sentence=_left_out(store, x, x_next),
    )
    time = ("time", system.frame_dt * frames, {"units": system.time_unit})
    return Scored(table, xr.Dataset({key: (("trajectory", "time"), value) for key, value in scores.items()}, {"time": time}))


def _left_out(store: Store, x: np.ndarray, x_next: np.ndarray) -> str:
    """Say how many pixels of label images are not scored; "" if all are."""
    spec = store.spec
    if not any(f.kind == "label" for f in spec.dynamic_fields):
        return ""
    label = label_of(spec)
    new = of_new_cells(spec.get(x, label), spec.get(x_next, label), spec[label].size)
    if not new.any():
        return ""
    return f"{new.sum()} of {new.size} pixels of these frames belong to cells that appear in them, which no model forecasts: not scored"


def _transitions(store: Store, settings: EvaluationConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the frames (time,) at which test transitions end, and x and x' of these (trial * time, *site, channel), trial by trial."""
    held_out = trials(store, "test", settings)
    count, steps = len(held_out), held_out.steps
    spread = np.linspace(0, steps, min(steps, settings.likelihood_transitions // count) + 1)[1:]
    frames = np.union1d(lead_frames(steps), np.round(spread).astype(int))
    chosen = []
    for some in blocks(count, settings.block):
        states = held_out.read(some)
        chosen.append((states[:, frames - 1], states[:, frames]))
    before, after = (np.concatenate(part) for part in zip(*chosen, strict=True))
    return frames, before.reshape(-1, *before.shape[2:]), after.reshape(-1, *after.shape[2:])
