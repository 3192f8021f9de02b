"""Baselines that are no step-by-step models: Pyro programs of whole trajectories, trained with standard Pyro in a run folder of their own.

RUN/program.ckpt holds everything that training needs to continue.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import torch

from epns_pyro.config import Registry, one_of
from epns_pyro.data import Store, Windows
from epns_pyro.models.baselines.gp_ode import GPODEConfig
from epns_pyro.models.baselines.ode2vae import ODE2VAEConfig
from epns_pyro.models.program import PathProgram
from epns_pyro.training import stock_pyro
from epns_pyro.training.run import RunConfig, RunFolder

PROGRAMS = Registry("baseline")
PROGRAMS.register("gp-ode")(GPODEConfig)
PROGRAMS.register("ode2vae")(ODE2VAEConfig)


class ProgramRunConfig(RunConfig):
    """All settings of the run of a baseline; of the training `steps`, `batch`, `learning_rate`, `horizon` and the intervals count."""

    model: Annotated[GPODEConfig | ODE2VAEConfig, one_of(PROGRAMS)]  # type: ignore[assignment]

    @classmethod
    def of(cls, base: RunConfig, program: str) -> Self:
        """Return the settings of a run with a program in the place of the model, and otherwise its own defaults."""
        return cls.parse(dict(base) | {"model": PROGRAMS[program]()})


class Program(NamedTuple):
    """A trained program: model and guide, and the seconds of its training."""

    model: PathProgram
    guide: PathProgram
    seconds: float

    @property
    def parameters(self) -> int:
        return sum(p.numel() for program in (self.model, self.guide) for p in program.parameters())


def checkpoint(folder: RunFolder) -> Path:
    """Return the path of the state of training."""
    return folder.path / "program.ckpt"


def build(config: ProgramRunConfig, store: Store) -> tuple[PathProgram, PathProgram, Windows]:
    """Return model and guide before training, and the windows that they are trained on."""
    training = config.training
    torch.manual_seed(config.seed)
    model, guide = config.model.build(store.context(), transitions=store.size("train") * store.steps("train"))
    windows = Windows(store, "train", training.horizon.end, training.batch, seed=config.seed)
    if hasattr(model, "field"):  # inducing inputs of Gaussian processes lie where the data are
        model.field.place(windows.draw().x0, torch.Generator().manual_seed(config.seed))
    return model, guide, windows


def train(config: ProgramRunConfig, store: Store, folder: RunFolder, report: Callable[[int, int], None]) -> Program:
    """Train, or continue, and return the trained program.

    Raises
    ------
    TrainingError
        If the loss was not finite too often.
    KeyboardInterrupt
        On Ctrl-C or SIGTERM, after the state has been saved.
    """
    training = config.training
    with torch.random.fork_rng(devices=[]):
        model, guide, windows = build(config, store)
        saved = stock_pyro.Saved(checkpoint(folder), every=training.checkpoint_every)
        stock_pyro.fit(
            model,
            guide,
            windows,
            steps=training.steps,
            learning_rate=training.learning_rate,
            horizon=training.horizon,
            log_every=training.log_every,
            saved=saved,
            on_progress=report,
        )
    return Program(model.eval(), guide.eval(), saved.seconds)
