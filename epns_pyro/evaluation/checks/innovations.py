"""Check: is the state sufficient? Given the state, the steps of a Markov process do not depend on the steps before.

Along held-out trajectories, every observed step is ranked among steps sampled from the model at the same observed state. The part of a
step that the state does not explain is its innovation. If innovations depend on earlier ones, the state lacks something (a velocity, a
hidden quantity), or the model has not learnt how a step depends on the state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from epns_pyro.calibration.power import FALSE_ALARM
from epns_pyro.calibration.verdicts import holm
from epns_pyro.calibration.wording import brief, listing, number, p_value, precision
from epns_pyro.data import Store
from epns_pyro.evaluation.check import Check, Fault, Inputs, Severity
from epns_pyro.evaluation.evaluated import Evaluated
from epns_pyro.evaluation.figures.style import BAD, GREY, LINE, MODEL
from epns_pyro.evaluation.forecasters import FEW
from epns_pyro.evaluation.parts import Figure, Key, Panel, PanelSize, Section, Table, Text
from epns_pyro.evaluation.record import Count, HeadlineLine, Real, Record
from epns_pyro.models import Transition
from epns_pyro.simulator import Simulator
from epns_pyro.state import StateSpec
from epns_pyro.training.run import EvaluationConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWS, FEW_DRAWS = 19, 9  # steps sampled from the model, among which an observed step is ranked; for states of many bodies
FEWEST_STEPS = 3  # of a trajectory: two innovations, after the first step, give one pair
FLIPS = 1999  # random sign changes: the smallest p-value is 1 / (FLIPS + 1)
SMALL = 0.2  # correlations up to this size may come from unfinished training; a missing velocity gives larger ones
POWER_Z = 2.8  # a correlation of this many standard errors is found in 80% of tests at 5%
COARSE = 0.3  # if only larger correlations would be found, there are too few data to say
ADVICE = "record velocities, declare them hidden, or use history"


class Memory(Record):
    """Rank correlation of the innovations of a field with those of the step before; `p_value` is corrected for the number of fields."""

    field: str
    correlation: Real
    error: Real
    p_value: Real

    @property
    def is_there(self) -> bool:
        """Return whether the correlation is more than chance."""
        return self.p_value < FALSE_ALARM

    @property
    def is_fault(self) -> bool:
        """Return whether the correlation is more than chance, and not small."""
        return self.is_there and abs(self.correlation) > SMALL


class Innovations(Record):
    """Dependence of steps on the step before, by field."""

    trajectories: Count
    steps: Count
    fields: tuple[Memory, ...]

    @property
    def faults(self) -> list[Memory]:
        """Return the fields whose dependence is a fault, strongest first."""
        return sorted((one for one in self.fields if one.is_fault), key=lambda one: -abs(one.correlation))

    @property
    def small(self) -> list[Memory]:
        """Return the fields with a small dependence."""
        return [one for one in self.fields if one.is_there and not one.is_fault]

    @property
    def coarsest(self) -> float:
        """Return the correlation that would have been found in 80% of cases in every field."""
        return max((POWER_Z * one.error for one in self.fields if math.isfinite(one.error)), default=math.inf)


class InnovationCheck(Check[Innovations]):
    key, title, record = "innovations", "dependence of steps", Innovations

    def measure(self, inputs: Inputs) -> Innovations | None:
        return innovations(inputs.simulator, inputs.store, inputs.settings)

    def sections(self, record: Innovations | None, found: Evaluated) -> Iterator[Section]:
        if record is None:
            return
        section = Section(
            "innovations",
            "Is the state enough?",
            "The part of a step that the state does not explain must not depend on the step before. Every observed step is ranked among "
            "steps "
            "sampled from the model at the same state; shown is the correlation of these ranks from one step to the next.",
        )
        rows = [(m.field, number(m.correlation, f"+.{precision(m.error)}f"), _error(m), p_value(m.p_value)) for m in record.fields]
        section.items.extend(
            [
                Figure(
                    [_panel(record)],
                    alt="Correlation of ranks from one step to the next: " + ", ".join(f"{row[0]} {row[1]}" for row in rows) + ".",
                    caption=f"{_words(record)} Whiskers: 1.96 standard errors.",
                    key=(Key("model", "model"), Key("bad", "dependent"), Key("floor", f"at most {SMALL:g}")),
                    size="medium",
                ),
                Table(("field", "correlation", "error", "p"), rows, frozenset({"correlation", "error", "p"})),
                Text(
                    f"{record.trajectories} trajectories of {record.steps} steps. A linear regression on the state is subtracted first. "
                    "p: exact "
                    "test by random sign changes, one per step for all bodies together, corrected for the number of fields (Holm): "
                    f"at most {FALSE_ALARM:.0%} false alarms."
                ),
            ]
        )
        yield section

    def headline(self, record: Innovations) -> Iterator[HeadlineLine]:
        if seen := record.faults or record.small:
            value, good = ("steps depend on the step before", False) if record.faults else ("nearly: a small dependence", None)
            note = ", ".join(f"{m.field} {number(m.correlation, '+.2f')}" for m in seen)
        else:
            value, good = ("too few data to say", None) if record.coarsest > COARSE else ("no dependence found", True)
            note = f"a correlation of {record.coarsest:.2f} would be found"
        yield HeadlineLine(label="is the state enough?", value=value, note=note, good=good)

    def faults(self, record: Innovations) -> Iterator[Fault]:
        if record.faults:
            what = listing(m.field for m in record.faults)
            words = f"steps depend on the step before, given the state, in {what} (the state lacks something, or training is not finished)"
            yield Fault(Severity.INCOMPLETE, words)


def _words(record: Innovations) -> str:
    if record.faults:
        what = listing(m.field for m in record.faults)
        return (
            f"Given the state, steps still depend on the step before in {what}: {ADVICE}. If nothing is missing in the state, the model "
            "has "
            "not yet learnt how a step depends on it: train longer."
        )
    if record.small:
        what = listing(m.field for m in record.small)
        return (
            f"Steps depend a little on the step before in {what}. This is common before training is finished: train longer and check again."
        )
    return f"No dependence was found; a correlation of {record.coarsest:.2f} would have been found in 80% of cases."


def _error(one: Memory) -> str:
    return number(one.error, f".{precision(one.error)}f")


def _panel(record: Innovations) -> Panel:
    def draw(axes: Axes) -> None:
        axes.axvspan(-SMALL, SMALL, color=GREY, alpha=0.3, linewidth=0)
        axes.axvline(0, color=LINE, linewidth=0.8)
        for y, one in enumerate(record.fields):
            if math.isfinite(one.correlation):
                error = 1.96 * one.error if math.isfinite(one.error) else 0.0
                axes.errorbar(one.correlation, y, xerr=error, fmt="o", color=BAD if one.is_fault else MODEL, markersize=4.5, elinewidth=1.1)
        axes.set(xlim=(-1, 1), ylim=(len(record.fields) - 0.4, -0.6))
        axes.set_yticks(range(len(record.fields)), [brief(one.field, 14) for one in record.fields])
        axes.tick_params(axis="y", length=0)

    return Panel(PanelSize(410, 26 * len(record.fields) + 60, left=88), draw, title="correlation of ranks, one step to the next")


# -- measuring -------------------------------------------------------------------------------------------------------------


def innovations(simulator: Simulator, store: Store, settings: EvaluationConfig) -> Innovations | None:
    """Measure whether steps of test trajectories depend on the step before; None for label images, hidden states, short trajectories."""
    spec, first = simulator.spec, store.system.forecast_frame
    longest = store.steps("test") - first
    if simulator.infers_states or any(f.kind != "real" for f in spec.dynamic_fields) or longest < FEWEST_STEPS:
        return None
    wanted = settings.innovations or settings.likelihood_transitions
    count = min(settings.trajectories, store.size("test"), max(1, wanted // FEWEST_STEPS))
    steps = max(FEWEST_STEPS, min(longest, wanted // count))
    paths = simulator.local(store.read("test", slice(0, count), start=first, stop=first + steps + 1))
    draws = FEW_DRAWS if paths.shape[-2] > FEW else DRAWS
    scores, rng = rank_scores(simulator.transition, paths, seed=settings.seed, draws=draws), np.random.default_rng((settings.seed, 7))
    states = _features(spec, paths[:, :-1].double().cpu().numpy())
    found = []
    for f in spec.dynamic_fields:
        of_field = scores[..., spec.slice(f.name, among_dynamic=True)]
        found.append(remembered(of_field, states, rng))
    adjusted = holm(np.array([p if math.isfinite(p) else 1.0 for _, _, p in found]))
    fields = tuple(
        Memory(field=f.name, correlation=correlation, error=error, p_value=float(p))
        for f, (correlation, error, _), p in zip(spec.dynamic_fields, found, adjusted, strict=True)
    )
    return Innovations(trajectories=count, steps=steps, fields=fields)


@torch.no_grad()
def rank_scores(transition: Transition, paths: torch.Tensor, *, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Rank observed steps among steps sampled from the model at the same observed states.

    Parameters
    ----------
    transition : Transition
    paths : Tensor, (trajectory, time, *site, channel)
    seed, draws : int

    Returns
    -------
    ndarray, (trajectory, step, *site, dynamic channel)
        From -1 (below all samples) to 1, ties broken at random; NaN where a body is absent before or after the step.
    """
    spec, (count, steps) = transition.spec, (len(paths), paths.shape[1] - 1)
    carries, following = transition.carries(paths[:, 0], paths[:, 1:]), paths[:, 1:].flatten(0, 1)
    size = max(1, transition.at_once(paths) // draws)
    parts = []
    with torch.random.fork_rng(devices=[paths.device] if paths.is_cuda else []):
        torch.manual_seed(seed)
        for carry, after in zip(carries.split(size), following.split(size), strict=True):
            step = transition.step(carry)
            law, value = step.observe(step.emission(step.prior.sample((draws,))), after)
            drawn = law.sample()
            below, equal = (drawn < value).sum(0), (drawn == value).sum(0)
            u = (below + torch.rand(value.shape, device=value.device, dtype=value.dtype) * (equal + 1)) / (draws + 1)
            known = (spec.dynamic(carry.x) + spec.dynamic(after)).isfinite()
            parts.append(torch.where(known, 2 * u - 1, torch.nan).double().cpu())
    return torch.cat(parts).unflatten(0, (count, steps)).numpy()


def remembered(scores: np.ndarray, states: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Correlate scores with those of the step before.

    Parameters
    ----------
    scores : ndarray, (trajectory, step, *site, component)
    states : ndarray, (trajectory, step, *site, feature)
        Features of the states that the steps start from; a linear regression on them is subtracted.
    rng : Generator

    Returns
    -------
    correlation, error, p_value : float
        p is two-sided: without dependence, the product of two consecutive innovations is positive or negative with equal probability,
        with one sign for all bodies of a step. That holds in stretches of one recording as in independent ones, and where the size of
        innovations changes slowly: no correction for dependence is needed. NaN if nothing varies.
    """
    a = _unexplained(scores, states)
    now, before = a[:, 1:], a[:, :-1]
    both = np.isfinite(now) & np.isfinite(before)
    now, before = np.where(both, now, 0), np.where(both, before, 0)
    inner = tuple(range(2, a.ndim))
    products, size = (now * before).sum(inner).ravel(), float(np.sqrt((now**2).sum() * (before**2).sum()))
    if not size:
        return math.nan, math.nan, math.nan
    total, error = products.sum(), float(np.sqrt((products**2).sum()))
    flipped = np.abs((2.0 * rng.integers(0, 2, (FLIPS, len(products))) - 1) @ products)
    p = (1 + (flipped >= abs(total) * (1 - 1e-12)).sum()) / (1 + FLIPS)
    return float(total) / size, error / size, float(p)


def _features(spec: StateSpec, x: np.ndarray) -> np.ndarray:
    """Return what a step may depend on, from states (trajectory, step, *site, channel): all fields, positions relative to their mean."""
    sites, parts = tuple(range(2, 2 + len(spec.sites))), []
    for f in spec.fields:
        value = x[..., spec.slice(f.name)]
        known = np.isfinite(value)
        mean = np.where(known, value, 0).sum(sites, keepdims=True) / np.maximum(known.sum(sites, keepdims=True), 1)
        parts.append(value - mean if f.translates else value)
    return np.concatenate(parts, -1)


def _unexplained(scores: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Return residuals of scores after a linear regression on the states, over all trajectories, steps and bodies."""
    flat, features = scores.reshape(-1, scores.shape[-1]), states.reshape(-1, states.shape[-1])
    known = np.isfinite(flat).all(1) & np.isfinite(features).all(1)
    out = np.full(flat.shape, np.nan)
    if known.sum() > features.shape[1] + 1:
        mean, spread = features[known].mean(0), features[known].std(0)
        centred = ((features[known] - mean) / np.where(spread > 0, spread, 1)).clip(-5, 5)  # limits the weight of outliers in the fit
        design = np.concatenate([np.ones((len(centred), 1)), centred], 1)
        out[known] = flat[known] - design @ np.linalg.lstsq(design, flat[known], rcond=None)[0]
    return out.reshape(scores.shape)
