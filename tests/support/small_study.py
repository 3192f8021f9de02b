"""A study so small that a test can do it: three bodies, a few steps, a few runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from epns_pyro.studies import Plan, Study, make_plan
from epns_pyro.studies.work import make_data

SETS = {"train": (14, 10), "val": (4, 10), "test": (5, 10), "same_init": (80, 10), "long": (3, 20)}
TINY: dict[str, Any] = {
    "system.bodies": 3,
    "system.dt": 0.01,
    "system.sets.same_init.initial_states": 1,
    "training.steps": 4,
    "training.batch": 4,
    "training.log_every": 1,
    "training.validate_every": 2,
    "training.checkpoint_every": 1,
    "training.validation_transitions": 8,
    "evaluation.members": 9,
    "evaluation.trajectories": 5,
    "evaluation.initial_members": 40,
    "evaluation.importance_samples": 2,
    "evaluation.likelihood_transitions": 12,
    "evaluation.long_trajectories": 3,
}
for _name, (_trajectories, _steps) in SETS.items():
    TINY |= {f"system.sets.{_name}.trajectories": _trajectories, f"system.sets.{_name}.steps": _steps}
MODELS = ("epns", "gp-ode")


def plan(out: Path, *, seeds: int = 2, models: tuple[str, ...] = MODELS, **changes: Any) -> Plan:
    """Plan the study, with some more changes: name__of__setting=value."""
    more = {key.replace("__", "."): value for key, value in changes.items()}
    return make_plan(Study.named("celestial"), out=out, seeds=seeds, models=models, changes=TINY | more)


def ready(out: Path, *, seeds: int = 2, models: tuple[str, ...] = MODELS, **changes: Any) -> Plan:
    """Plan the study and make its data."""
    made = plan(out, seeds=seeds, models=models, **changes)
    make_data(made, lambda what, done, total: None)
    return made


def options() -> list[str]:
    """Return the settings as options of the command line."""
    return [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
