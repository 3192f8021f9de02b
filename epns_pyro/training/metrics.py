"""Logs of training: a CSV file that survives interruptions, TensorBoard, and optionally Weights & Biases."""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, TextIO

from torch.utils.tensorboard import SummaryWriter

from epns_pyro.errors import DataError
from epns_pyro.training.run import RunFolder
from epns_pyro.whole import whole

COLUMNS = ("step", "name", "value")


class MetricsLog:
    """Writes a row (step, name, value) per number.

    Rows beyond `start` were written after the last checkpoint of an interrupted run: they are dropped, because training repeats them.
    Weights & Biases is used if the environment names a project (WANDB_PROJECT) and the package is installed.
    """

    def __init__(self, folder: RunFolder, *, start: int = 0, enabled: bool = True) -> None:
        self._enabled = enabled
        self._folder, self._start = folder, start

    def __enter__(self) -> Self:
        if self._enabled:
            rows = [row for row in read_metrics(self._folder.metrics) if row[0] <= self._start] if self._start else []
            self._begin_with(rows)
            self._file = open(self._folder.metrics, "a", newline="")
            self._board = SummaryWriter(str(self._folder.tensorboard), purge_step=self._start + 1 if self._start else None)
            self._wandb = _wandb_run(self._folder.path)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._enabled:
            self._file.close()
            self._board.close()
            if self._wandb is not None:
                self._wandb.finish()

    def write(self, step: int, **values: float | None) -> None:
        """Log numbers of a step; None is left out."""
        if not self._enabled:
            return
        known = {name: float(value) for name, value in values.items() if value is not None}
        _write_rows(self._file, ((step, name, value) for name, value in known.items()))
        for name, value in known.items():
            self._board.add_scalar(name.replace("_", "/", 1), value, step)
        if self._wandb is not None:
            self._wandb.log(known, step=step)

    def _begin_with(self, rows: list[tuple[int, str, float]]) -> None:
        """Replace the file by one with these rows, atomically, so that a crash here loses nothing."""
        with whole(self._folder.metrics) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerow(COLUMNS)
            _write_rows(file, rows)


def _write_rows(file: TextIO, rows: Iterable[tuple[int, str, float]]) -> None:
    csv.writer(file).writerows((step, name, f"{value:.9g}") for step, name, value in rows)
    file.flush()


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """Read the rows (step, name, value) of a metrics file; empty if there is no file; an incomplete last row is left out.

    Raises
    ------
    DataError
        If it is not such a file.
    """
    if not path.is_file():
        return []
    rows: list[tuple[int, str, float]] = []
    try:
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        for number, row in enumerate(csv.reader(lines)):
            if number:
                step, name, value = row
                rows.append((int(step), name, float(value)))
            elif tuple(row) != COLUMNS:
                raise ValueError
    except (ValueError, csv.Error):
        raise DataError(
            f"{path}: line {len(rows) + 2 if rows else 1} is not step,name,value: the file is damaged or changed by hand; "
            "without it, only the curves of the report are missing"
        ) from None
    return rows


def _wandb_run(path: Path) -> Any:
    if not os.environ.get("WANDB_PROJECT") or importlib.util.find_spec("wandb") is None:
        return None
    import wandb

    return wandb.init(dir=str(path), name=path.name, resume="allow")
