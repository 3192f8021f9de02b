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
from epns_pyro.fields import LEARN
from epns_pyro.lineage import has_lineage
from epns_pyro.presence import presence
from epns_pyro.simulator import Simulator
from epns_pyro.training.run import EvaluationConfig
from epns_pyro.training.validation import frames_before

MOST_PATHS = 16  # draws of whole paths of hidden states


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
    if simulator.infers_states:
        return _score_recordings(simulator, store, settings, references)
    system, samples = store.system, settings.importance_samples
    frames, past, x, x_next = _transitions(store, settings, simulator.transition.earlier_frames)
    trajectories = len(x) // len(frames)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        bounds = simulator.bounds(x, x_next[:, None], num_samples=samples, past=past if past.shape[1] else None)
    ladder = _Ladder(trajectories)
    add = ladder.add
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
        rows=tuple(ladder.rows),
        reconstruction=float(bounds.log_likelihood.mean()),
        kl=float(bounds.kl.mean()),
        gap_sentence=sbc.bound_gap(ladder.scores["elbo"].mean(1), ladder.scores["iwae"].mean(1), transitions=1, samples=samples).sentence(),
        left_out_sentence=_left_out(store, x, x_next),
    )
    return Scored(table, ladder.dataset(system.frame_dt * frames, system.time_unit))


class _Ladder:
    """The rows of the table, from scores (trajectory * time,), nats; the first is the model's."""

    def __init__(self, trajectories: int) -> None:
        self.trajectories, self.rows, self.scores = trajectories, list[LikelihoodRow](), dict[str, np.ndarray]()

    def add(self, key: str, name: str, values: Any, note: str = "") -> None:
        self.scores[key] = np.asarray(values, float).reshape(self.trajectories, -1)
        estimate, ahead = (mean_estimate(values.mean(1)) for values in (self.scores[key], self.scores["elbo"] - self.scores[key]))
        score = {"value": float(estimate.value), "error": float(estimate.error)}
        paired = {"difference": float(ahead.value), "difference_error": float(ahead.error)} if key != "elbo" else {}
        self.rows.append(LikelihoodRow(key=key, name=name, note=note, **score, **paired))

    def dataset(self, time: np.ndarray, unit: str) -> xr.Dataset:
        axis = ("time", time, {"units": unit})
        return xr.Dataset({key: (("trajectory", "time"), value) for key, value in self.scores.items()}, {"time": axis})


def _score_recordings(simulator: Simulator, store: Store, settings: EvaluationConfig, references: dict[str, Forecaster]) -> Scored:
    """Score recordings whose states are hidden: nats per transition of what was recorded after the frames given, given these.

    That is the bound of all frames less the bound of those given. References take differences of positions for velocities: their densities
    are converted to densities of positions.
    """
    system, spec = store.system, simulator.spec
    held_out, samples = trials(store, "test", settings), min(settings.importance_samples, MOST_PATHS)
    steps, given = max(1, min(held_out.steps, settings.likelihood_transitions // len(held_out))), system.frames_given
    before = np.concatenate([held_out.initial(some) for some in blocks(len(held_out), settings.block)])
    after = np.concatenate([held_out.read(some)[:, 1 : steps + 1] for some in blocks(len(held_out), settings.block)])
    path = np.concatenate([before, after], 1)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        whole, first = (simulator.bounds(path[:, 0], path[:, 1:stop], num_samples=samples) for stop in (None, given))
    parts = {name: (getattr(whole, name) - getattr(first, name)).cpu().numpy() / steps for name in whole._fields}
    ladder = _Ladder(len(path))
    ladder.add("elbo", "model, ELBO", parts["elbo"], f"of what is recorded, given {given} frames: difference of two bounds")
    ladder.add("iwae", f"model, IWAE bound (K = {samples})", parts["iwae"], "closer to the log-likelihood of the model")
    x, x_next = (part.reshape(-1, *path.shape[2:]) for part in (path[:, given - 1 : -1], path[:, given:]))
    hidden = sum(spec.width(f) for f in spec.fields if f.hidden)
    volume = hidden * np.log(store.frame_dt) * (presence(spec, x) & presence(spec, x_next)).sum(-1)
    for name, reference in references.items():
        if reference.has_density:
            nats = (reference.log_prob(x, x_next) - volume).reshape(len(path), steps).mean(1)
            ladder.add(name, reference.label, nats, "reference that needs no learning, with velocities as differences")
    table = Likelihood(
        transitions=len(path) * steps,
        trajectories=len(path),
        rows=tuple(ladder.rows),
        reconstruction=float(parts["log_likelihood"].mean()),
        kl=float(parts["kl"].mean()),
        gap_sentence="",
        recording_sentence=words_of_recording(simulator, given),
    )
    return Scored(table, ladder.dataset(np.array([system.frame_dt * steps]), system.time_unit))


def words_of_recording(simulator: Simulator, given: int) -> str:
    """Say what is hidden, with which error the rest is recorded, and what forecasts are given."""
    spec = simulator.spec
    hidden = [f"{f.name} is hidden" for f in spec.dynamic_fields if f.hidden]
    errors = [
        f"{name} is recorded with an error of {error:.3g} {spec[name].unit}".rstrip() + (" (learned)" if spec[name].noise == LEARN else "")
        for name, error in simulator.noise.items()
    ]
    return f"states are inferred: {'; '.join(hidden + errors)}; a forecast is given {given} frames"


def _left_out(store: Store, x: np.ndarray, x_next: np.ndarray) -> str:
    """Say how many pixels of label images are not scored; "" if all are."""
    spec = store.spec
    if not any(f.kind == "label" for f in spec.dynamic_fields):
        return ""
    label = label_of(spec)
    new = of_new_cells(spec.get(x, label), spec.get(x_next, label), spec[label].size)
    if not new.any():
        return ""
    if has_lineage(spec):
        born = (new & (spec.get(x_next, "mother") > 0)).sum()
        return (
            f"{born} of {new.size} pixels of these frames belong to cells that are born in them by divisions: scored by the model, not by "
            f"references; {new.sum() - born} belong to cells that appear otherwise: not scored"
        )
    return f"{new.sum()} of {new.size} pixels of these frames belong to cells that appear in them, which no model forecasts: not scored"


def _transitions(store: Store, settings: EvaluationConfig, earlier: int = 0) -> tuple[np.ndarray, ...]:
    """Return the frames (time,) at which test transitions end, and of each the past, x and x' (trial * time, ...), trial by trial.

    The past, (trial * time, earlier, *site, channel), are the states before x; NaN in all dynamic channels before the first frame.
    """
    held_out = trials(store, "test", settings)
    count, steps = len(held_out), held_out.steps
    spread = np.linspace(0, steps, min(steps, settings.likelihood_transitions // count) + 1)[1:]
    frames = np.union1d(lead_frames(steps), np.round(spread).astype(int))
    chosen = []
    for some in blocks(count, settings.block):
        states = held_out.read(some)
        long = states if not earlier else np.concatenate([held_out.past(some, earlier), states], 1)
        past = frames_before(store.spec, long, frames - 1 + earlier, earlier)
        chosen.append((past, states[:, frames - 1], states[:, frames]))
    parts = (np.concatenate(part) for part in zip(*chosen, strict=True))
    return frames, *(part.reshape(count * len(frames), *part.shape[2:]) for part in parts)
