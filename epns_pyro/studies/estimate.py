"""How long the runs of a study take on this computer: every model is tried for a few steps, and the clock runs on from there.

OUT/timing.json keeps the trials, so that a study that goes on does not repeat them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from epns_pyro.data import Store, generate
from epns_pyro.plain import read_json
from epns_pyro.studies.contenders import Contender, contender
from epns_pyro.studies.judging import PATHS
from epns_pyro.studies.plan import Job, Plan
from epns_pyro.studies.work import FAILURES, Event, is_finished
from epns_pyro.systems import SystemConfig
from epns_pyro.training.run import EvaluationConfig, RunFolder
from epns_pyro.training.validation import as_tensor

TRIED = 8  # steps of training in a trial
FEW, MANY = 4, 40  # states at once in the two timed rollouts
ROLLOUT = 2  # their steps
PREVIEW = {"train": 8, "val": 2, "test": 4}  # trajectories of the data of trials
LEARNT_AFTER = 20.0  # seconds after which the clock trusts its own speed


@dataclass(frozen=True)
class Cost:
    """Seconds that one run takes: training, and being judged on all parts or on the likelihood alone."""

    training: float
    judging: float
    likelihood: float

    def of(self, job: Job) -> tuple[float, float]:
        """Return the seconds of training and of judging of a whole run."""
        return self.training, self.judging + self.likelihood if job.whole else self.likelihood


def estimate(plan: Plan, progress: Callable[[str, int, int], None] = lambda what, done, total: None) -> dict[str, Cost]:
    """Return the costs of the models of a plan by name, timed now or read from OUT/timing.json."""
    kept = plan.out / "timing.json"
    costs = {name: Cost(**cost) for name, cost in read_json(kept).items()} if kept.is_file() else {}
    missing = list({job.name: job for job in plan.jobs if job.whole and job.name not in costs}.values())
    if not missing:
        return costs
    with tempfile.TemporaryDirectory() as scratch:
        store = generate(_preview(missing[0].config.system), Path(scratch) / "preview.zarr")
        for number, job in enumerate(missing):
            progress("timing the models", number, len(missing))
            costs[job.name] = _timed(job, store, Path(scratch))
        progress("timing the models", len(missing), len(missing))
    if plan.out.is_dir():
        kept.write_text(json.dumps({name: asdict(cost) for name, cost in costs.items()}, indent=1))
    return costs


def _preview(system: SystemConfig) -> SystemConfig:
    sets = {name: system.sets[name].override({"trajectories": min(n, system.sets[name].trajectories)}) for name, n in PREVIEW.items()}
    return system.override({"sets": {name: one.model_dump() for name, one in sets.items()}})


def _timed(job: Job, store: Store, scratch: Path) -> Cost:
    """Train a model for a few steps, which are spread over its schedule, roll it out, and scale up."""
    steps = job.config.training.steps
    few = {f"training.{name}": TRIED for name in ("steps", "validate_every", "checkpoint_every", "log_every")}
    config = job.config.override(few | {"training.validation_transitions": 8})
    folder = RunFolder(scratch / job.name)
    folder.path.mkdir()
    trial = replace(job, config=config, folder=folder, data=Path(store.path), held_out=Path(store.path))
    try:
        tried = contender(trial)
        rest = _rollouts(tried, store, job.config.evaluation, job.config.system)
        return Cost(tried.seconds / TRIED * steps, rest, _scores(tried, store, job.config.evaluation))
    except FAILURES:  # the run will fail too, and say why
        return Cost(0.0, 0.0, 0.0)


def _scores(tried: Contender, store: Store, settings: EvaluationConfig) -> float:
    """Return the seconds of scoring test transitions and whole paths."""
    x = as_tensor(store.read("test", slice(0, 1)))[0]
    samples = min(2, settings.importance_samples)
    tried.score(x[:1], x[1:2, None], samples)  # what is done once, such as compiling, is not timed
    started = time.perf_counter()
    tried.score(x[:-1], x[1:, None], samples)
    each = (time.perf_counter() - started) / ((len(x) - 1) * samples)
    paths = min(PATHS, settings.trajectories) * (len(x) - 1)
    return each * settings.importance_samples * (settings.likelihood_transitions + paths)


def _rollouts(tried: Contender, store: Store, settings: EvaluationConfig, system: SystemConfig) -> float:
    """Return the seconds of all rollouts: a time per step, and one per step and state."""
    x0, seconds = store.read("test", slice(0, 1), stop=1)[:, 0], []
    tried.forecaster.sample(x0, 1, 1, 0)  # what is done once, such as compiling, is not timed
    for states in (FEW, MANY):
        started = time.perf_counter()
        tried.forecaster.sample(x0, ROLLOUT, states, 0)
        seconds.append((time.perf_counter() - started) / ROLLOUT)
    each = max(0.0, seconds[1] - seconds[0]) / (MANY - FEW)
    call = max(0.0, seconds[0] - FEW * each)
    length, same = system.sets["test"].steps, system.sets.get("same_init")
    blocks = [(length, min(settings.block, settings.trajectories) * settings.members)] * -(-settings.trajectories // settings.block)
    blocks += [(same.steps, settings.initial_members)] * (same.initial_states or 1) if same else []
    blocks += [(10 * system.sets["train"].steps, settings.long_trajectories)]
    return sum(steps * (call + states * each) for steps, states in blocks)


class Clock:
    """How much of a study is done, and how long the rest takes.

    Parameters
    ----------
    plan : Plan
    costs : dict of str to Cost
    jobs : int
        Runs at a time.
    """

    def __init__(self, plan: Plan, costs: dict[str, Cost], jobs: int) -> None:
        self._jobs, self._at_once = plan.jobs, jobs
        self._cost = [costs[job.name].of(job) for job in plan.jobs]
        self._done = [self.total_of(n) if is_finished(job) else 0.0 for n, job in enumerate(plan.jobs)]
        self._before, self._started = sum(self._done), time.monotonic()

    def total_of(self, number: int) -> float:
        """Return the estimated seconds of one run."""
        return sum(self._cost[number])

    @property
    def total(self) -> float:
        """Estimated seconds of all runs, one after the other."""
        return sum(map(self.total_of, range(len(self._jobs))))

    @property
    def done(self) -> float:
        """Estimated seconds of what is done."""
        return sum(self._done)

    def see(self, event: Event) -> None:
        """Move on."""
        training, judging = self._cost[event.job]
        share = event.done / max(1, event.total)
        at = {"training": training * share, "judging": training + judging * share, "finished": training + judging}[event.phase]
        self._done[event.job] = max(self._done[event.job], at)

    def left(self) -> float:
        """Return the seconds that are left: by the estimates, corrected by how fast they came true so far."""
        elapsed, done = time.monotonic() - self._started, self.done - self._before
        speed = done / elapsed if elapsed > LEARNT_AFTER and done > 0 else float(self._at_once)
        return (self.total - self.done) / speed


def words(seconds: float) -> str:
    """Write a duration in words, roughly."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"about {minutes} min" if minutes < 100 else f"about {minutes // 60} h {minutes % 60:02} min"


def finished(plan: Plan) -> int:
    """Return how many runs of a plan are finished."""
    return sum(is_finished(job) for job in plan.jobs)
