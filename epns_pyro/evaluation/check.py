"""The base class of checks: a check measures one thing about a trained simulator and says what it found.

To add one, write one file like those in `epns_pyro.evaluation.checks`: a class derived from `Check`, and a record of what it measures.
Put an instance into the list CHECKS there; code from outside calls `add_check`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import xarray as xr

from epns_pyro.data import Store
from epns_pyro.evaluation import heldout, initial_state, likelihood
from epns_pyro.evaluation.archive import Archive
from epns_pyro.evaluation.evaluated import Evaluated, Subject
from epns_pyro.evaluation.forecasters import Forecaster, Model
from epns_pyro.evaluation.parts import Section
from epns_pyro.evaluation.record import EvaluationRecord, HeadlineLine, parse
from epns_pyro.simulator import Simulator
from epns_pyro.training.run import EvaluationConfig

R = TypeVar("R")


@dataclass
class Inputs:
    """What a check can use, and where it writes its files.

    What several checks need (forecasts of a set, one-step scores, runs from one initial state) is computed at the first request and kept.

    Parameters
    ----------
    simulator : Simulator
    store : Store
    settings : EvaluationConfig
    references : mapping of Forecaster
        Forecasters by name: the references that need no learning, and the true process where it can be simulated.
    folder : Path
        RUN/evaluation/ while it is being written.
    progress : callable
        Called as ``progress(done, total)`` by checks that take long.
    archive : Archive, optional
        What an interrupted evaluation has left.
    """

    simulator: Simulator
    store: Store
    settings: EvaluationConfig
    references: Mapping[str, Forecaster]
    folder: Path
    progress: Callable[[int, int], None] = lambda done, total: None
    archive: Archive | None = None
    _forecasts: dict[str, heldout.HeldOut] = field(default_factory=dict, init=False)

    @cached_property
    def model(self) -> Forecaster:
        """Return the simulator as a forecaster."""
        return Model(self.simulator)

    @cached_property
    def scored(self) -> likelihood.Scored:
        """Return one-step scores of test transitions."""
        return likelihood.score(self.simulator, self.store, self.settings, dict(self.references))

    @cached_property
    def compared(self) -> initial_state.Compared | None:
        """Compare runs of model and truth from one initial state; None where the store has too few."""
        return initial_state.compare(self.model, self.store, self.settings, dict(self.references), archive=self.archive)

    def forecasts(self, split: str) -> heldout.HeldOut:
        """Forecast the held-out trajectories of a set and diagnose the forecasts; for the set `test` those of the references too."""
        if split not in self._forecasts:
            others = self.references if split == "test" else {}
            self._forecasts[split] = heldout.measure(
                self.model, self.store, split, self.settings, references=others, progress=self.progress, archive=self.archive
            )
        return self._forecasts[split]

    def save(self, name: str, data: xr.Dataset, *, group: str | None = None) -> None:
        """Write a file NAME.nc of the evaluation, or one group of it; `Evaluated.files` holds it under this name."""
        data.to_netcdf(self.folder / f"{name}.nc", group=group, mode="a" if group else "w", engine="h5netcdf")


class Severity(IntEnum):
    """How serious a fault is: the first sentence of a page names the most serious first."""

    BROKEN = 0  # a property that the model guarantees does not hold
    USELESS = 1  # no better than a reference that needs no learning
    UNSTABLE = 2
    MISCALIBRATED = 3
    DIFFERENT = 4  # from the true process, where many of its runs are known
    INCOMPLETE = 5  # the model or the state lacks something


@dataclass(frozen=True)
class Fault:
    """A fault, in words that follow "Use with care: "."""

    severity: Severity
    words: str


class Check(ABC, Generic[R]):
    """Measures one thing about a trained simulator. Its record R is stored in metrics.json and is all that the page needs.

    Attributes
    ----------
    key : str
        Name of its record in metrics.json.
    title : str
        Its name in progress bars.
    record : type
        R: a `Record`, or a tuple or mapping of records.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    record: ClassVar[Any]

    @abstractmethod
    def measure(self, inputs: Inputs) -> R | None:
        """Measure, and return the record; None if there is nothing to measure."""

    def sections(self, record: R | None, found: Evaluated) -> Iterator[Section]:
        """Yield the sections of the page; sections without items are left out. `record` is None if the evaluation has none."""
        yield from ()

    def about(self, record: R, subject: Subject | None) -> R | None:
        """Return the part of a record that is about one quantity, or with None the part that is about no single quantity."""
        return record if subject is None else None

    def headline(self, record: R) -> Iterator[HeadlineLine]:
        """Yield the lines for the summary."""
        yield from ()

    def faults(self, record: R) -> Iterator[Fault]:
        """Yield the faults that were found."""
        yield from ()

    def read(self, record: EvaluationRecord) -> R | None:
        """Return the record of this check; None if the evaluation has none.

        Raises
        ------
        DataError
            If the entry is not a record of this check.
        """
        raw = getattr(record, self.key, None)
        return parse(self.record, raw, where=f"{record.where}: {self.key}") if raw else None
