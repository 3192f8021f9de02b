"""How large the parts of an evaluation are, where a state holds many bodies or is a recorded image.

Sizes made for a few bodies take hours with a thousand, or with a film of a million pixels. The work of a step is what the networks write
in it, in numbers: that is counted, and so does not depend on the machine. `EvaluationConfig.work` is the budget of the forecasts, members
x trajectories x steps x work of a step; the other parts get SHARES of it. Sizes that do not fit become smaller in the order in which that
costs least of what can be said: members to 19, then to 9 (exact intervals of 50% and 80%; the power of a rank test hardly depends on
more), trajectories to 50, then to 20, and last the steps. States of up to FEW bodies, and those of simulated cells, are evaluated as set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from epns_pyro.data import Store
from epns_pyro.evaluation.checks.innovations import FEW_DRAWS
from epns_pyro.evaluation.checks.stability import long_runs
from epns_pyro.evaluation.forecasters import FEW
from epns_pyro.evaluation.initial_state import FEWEST, GROUP, starts_of, steps_of
from epns_pyro.evaluation.trials import trials
from epns_pyro.inference.rollout import sample_step
from epns_pyro.models.transition import Transition
from epns_pyro.simulator import Simulator
from epns_pyro.training.run import EvaluationConfig

SHARES = {"one_step": 0.5, "initial": 0.4, "long": 0.2, "scored": 0.3, "innovations": 0.2}  # of the work of the forecasts
SAMPLE = 0.5  # work of one more sample of the latents, of that of a step
MANY_MEMBERS, MEMBERS = 19, 9
MANY_TRIALS, TRIALS = 50, 20
FRAMES, SAMPLES, TRANSITIONS, LONG = 30, 8, 50, 3  # the fewest frames, importance samples, scored transitions, long runs
IMAGES = 8  # the fewest frames and transitions of images: each holds many cells
INNOVATIONS = 24  # the fewest transitions whose innovations are compared
BLOCKS = 10  # parts that forecasts are made in: progress is shown, and an interrupted evaluation resumes, after each


@dataclass(frozen=True)
class Plan:
    """Sizes that fit the budget, and what was made smaller, in words; "" if nothing was."""

    settings: EvaluationConfig
    words: str


def plan(simulator: Simulator, store: Store, settings: EvaluationConfig) -> Plan:
    """Choose the sizes of an evaluation of states of many bodies, or of recorded images."""
    sites = store.sites("test")
    image = len(sites) == 2 and not store.system.can_simulate
    if settings.work is None or not (image or (len(sites) == 1 and sites[0] > FEW)):
        return Plan(settings, "")
    first = store.system.forecast_frame
    x = simulator.local(store.read("test", slice(0, 1), start=first, stop=first + 1)[:, 0])
    work, changes, words = settings.work / numbers_per_step(simulator.transition, x), dict[str, Any](), list[str]()

    held_out = trials(store, "test", settings)
    sizes = forecasts_within(work, len(held_out), settings.members, held_out.steps)
    if sizes != (len(held_out), settings.members, held_out.steps):
        count, members, steps = sizes
        changes |= {"trajectories": count, "members": members}
        if steps < held_out.steps:
            changes["stretch"] = steps
        if members < MANY_MEMBERS:
            changes["recalibrate"] = False  # its intervals need more members
        words.append(
            f"{count} forecasts of {members} members over {steps} steps ({len(held_out)}, {settings.members} and {held_out.steps} as set)"
        )
    members = changes.get("members", settings.members)
    changes["block"] = max(1, min(settings.block, math.ceil(sizes[0] / BLOCKS)))

    there = store.size("test") * held_out.steps if image else settings.likelihood_transitions
    frames, least = min(settings.frames, settings.likelihood_transitions, there), IMAGES if image else FRAMES
    if (fit := max(least, int(SHARES["one_step"] * work / (1 + SAMPLE * members)))) < frames:
        changes["frames"] = fit
        words.append(f"single steps after {fit} frames ({frames})")
    if GROUP in store.splits and (starts := starts_of(store)):
        runs, longest = min(settings.initial_members, max(map(len, starts))), steps_of(store, settings)
        fit_runs, steps = runs_within(SHARES["initial"] * work / len(starts), runs, longest, FEWEST)
        if (fit_runs, steps) != (runs, longest):
            changes |= {"initial_members": fit_runs, "initial_steps": steps}
            words.append(f"{fit_runs} runs of {steps} steps from one initial state ({runs}, {longest})")
    _, runs, longest, _ = long_runs(store, settings)
    fit_runs, steps = runs_within(SHARES["long"] * work, runs, longest, LONG)
    if (fit_runs, steps) != (runs, longest):
        changes |= {"long_trajectories": fit_runs, "long_steps": steps}
        words.append(f"{fit_runs} long runs of {steps} steps ({runs}, {longest})")
    transitions, samples = min(settings.likelihood_transitions, there), settings.importance_samples
    least = IMAGES if image else TRANSITIONS
    fit_transitions, fit_samples = scored_within(SHARES["scored"] * work / SAMPLE, transitions, samples, least)
    if (fit_transitions, fit_samples) != (transitions, samples):
        changes |= {"likelihood_transitions": fit_transitions, "importance_samples": fit_samples}
        words.append(f"{fit_transitions} scored transitions of {fit_samples} samples ({transitions}, {samples})")
    drawn = min(settings.guide_transitions, there)
    if image and (fit := max(IMAGES, int(SHARES["scored"] * work))) < drawn:
        changes["guide_transitions"] = fit
        words.append(f"the guide at {fit} transitions ({drawn})")
    compared = settings.innovations or transitions
    if (fit := max(INNOVATIONS, int(SHARES["innovations"] * work / (1 + SAMPLE * FEW_DRAWS)))) < compared:
        changes["innovations"] = fit
        words.append(f"innovations of {fit} transitions ({compared})")
    if not words:
        return Plan(settings, "")
    if image and sizes[2] < held_out.steps:
        words.append("more fits in smaller images: data import-labels --downscale")
    what = "images of " + " x ".join(map(str, sites)) + " pixels" if image else f"{sites[0]} bodies"
    return Plan(settings.override(changes), f"{what} within evaluation.work = {settings.work:.2g}: {'; '.join(words)}")


def forecasts_within(work: float, count: int, members: int, steps: int) -> tuple[int, int, int]:
    """Return numbers of trajectories, members and steps whose product is at most `work` steps, or one step of the fewest."""

    asked = count
    for most, fewest in ((MANY_MEMBERS, MANY_TRIALS), (MEMBERS, TRIALS)):
        if count * members * steps > work:
            members = min(members, most)
            count = min(asked, max(fewest, int(work / (members * steps))))
    if count * members * steps > work:
        steps = max(1, int(work / (count * members)))
    return count, members, steps


def runs_within(work: float, count: int, steps: int, fewest: int) -> tuple[int, int]:
    """Return numbers of runs and steps whose product is at most `work` steps, or one step of the fewest runs."""
    if count * steps > work:
        count = min(count, max(fewest, int(work / steps)))
    if count * steps > work:
        steps = max(1, int(work / count))
    return count, steps


def scored_within(work: float, transitions: int, samples: int, fewest: int = TRANSITIONS) -> tuple[int, int]:
    """Return numbers of transitions and samples whose product is at most `work`, or the fewest."""
    if transitions * samples > work:
        samples = min(samples, max(SAMPLES, int(work / transitions)))
    if transitions * samples > work:
        transitions = min(transitions, max(fewest, int(work / samples)))
    return transitions, samples


@torch.no_grad()
def numbers_per_step(transition: Transition, x: Tensor) -> int:
    """Count the numbers that sampling a step from one state x (1, *site, channel) writes."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        sample_step(transition, transition.start(x))  # the first makes tables that are kept
        with _Counted() as counted:
            sample_step(transition, transition.start(x))
    return counted.numbers


class _Counted(TorchDispatchMode):
    """Counts the numbers that operators write; views write none."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, Tensor) and not one._is_view():
                self.numbers += one.numel()
        return out
