"""Recordings as people bring them: each is imported, looked at, trained on and kept no worse than persistence, with nothing set by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import xarray as xr
from click.testing import CliRunner
from relaxing import moments
from small_tracks import walkers

from epns_pyro.cli import main
from epns_pyro.data import open_store
from epns_pyro.evaluation.linear_forecasters import Autoregression, Persistence
from epns_pyro.evaluation.record import EvaluationRecord
from epns_pyro.runs import load
from epns_pyro.training.metrics import read_metrics
from epns_pyro.training.validation import draw_transitions

SMALL = ["model.width=8", "model.hidden_vectors=3", "model.latent=2", "training.validation_transitions=60", "training.batch=4"]
SMALL += ["model.backbone.width=8", "model.backbone.vectors=4", "model.backbone.layers=1"]


def command(*words: object) -> str:
    """Run a command of epns-pyro; return what it prints."""
    run = CliRunner().invoke(main, list(map(str, words)), env={"COLUMNS": "200"})
    assert run.exit_code == 0, run.output
    return run.output


def trained(folder: Path, family: str = "particles", steps: int = 2, settings: list[str] = SMALL) -> tuple[float, float]:
    """Look at folder/store.zarr and train on it; return the validation ELBO of persistence, before the first step, and the best."""
    data = next(folder.glob("store.*[!l]"))
    assert "error" not in command("data", "info", data)
    sets = [word for setting in settings for word in ("--set", setting)]
    command("train", family, "--data", data, "--out", folder / "run", "--steps", steps, *sets)
    elbo = [value for _, name, value in read_metrics(folder / "run" / "metrics.csv") if name == "val_elbo"]
    return elbo[0], max(elbo)


def csv(folder: Path, table: pd.DataFrame) -> Path:
    table.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def pedestrians(folder: Path) -> None:
    command("data", "import-tracks", csv(folder, walkers(tracks=40, spread=160)), "--segment", 12, "--out", folder / "store.zarr")


def fish(folder: Path) -> None:
    """An idtracker array (frame, animal, axis) of which 5.8% are missing."""
    rng = np.random.default_rng(0)
    array = rng.uniform(0, 100, (1, 30, 2)) + rng.normal(0, 1, (160, 30, 2)).cumsum(0)
    array[rng.random((160, 30)) < 0.058] = np.nan
    np.save(folder / "fish.npy", array)
    command("data", "import-tracks", folder / "fish.npy", "--segment", 14, "--out", folder / "store.zarr")


def t_cells(folder: Path) -> None:
    """Tracks in three dimensions, of different length."""
    table = walkers(tracks=60, length=9, spread=100)
    table["z"] = np.random.default_rng(1).normal(size=len(table)).round(3)
    command("data", "import-tracks", csv(folder, table), "--segment", 10, "--out", folder / "store.zarr")


def forty_positions(folder: Path) -> None:
    """A store with positions alone and a YAML beside it."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 5, (12, 1, 40, 2)) + 0.1 * rng.normal(size=(12, 8, 40, 2)).cumsum(1)
    xr.Dataset({"position": (("trajectory", "time", "body", "space"), x)}).to_netcdf(folder / "store.nc", engine="h5netcdf")
    (folder / "store.yaml").write_text("fields: [{name: position, irreps: 1o, translates: true}]\nspace: 2\nframe_dt: 0.1\n")


def protein(folder: Path) -> None:
    """214 atoms, positions alone."""
    rng = np.random.default_rng(0)
    place = 3.8 * rng.normal(size=(214, 3)).cumsum(0) + 0.3 * rng.normal(size=(60, 214, 3))
    frame, body = np.divmod(np.arange(60 * 214), 214)
    table = pd.DataFrame({"frame": frame, "id": body} | dict(zip("xyz", place.reshape(-1, 3).T.round(3), strict=True)))
    command("data", "import-tracks", csv(folder, table), "--segment", 6, "--history", 0, "--out", folder / "store.zarr")


def one_film(folder: Path) -> None:
    """A single long recording."""
    rng = np.random.default_rng(0)
    place = rng.normal(size=(3000, 3, 2)).cumsum(0)
    frame, body = np.divmod(np.arange(9000), 3)
    table = pd.DataFrame({"frame": frame, "id": body} | dict(zip("xy", place.reshape(-1, 2).T.round(3), strict=True)))
    command("data", "import-tracks", csv(folder, table), "--segment", 100, "--margin", 0, "--history", 1, "--out", folder / "store.zarr")


ROWS = {row.__name__: row for row in (pedestrians, fish, t_cells, forty_positions, protein, one_film)}


@pytest.mark.parametrize("row", [pytest.param(name, marks=pytest.mark.slow) if name == "protein" else name for name in ROWS])
def test_a_recording_is_trained_on(row, tmp_path):
    ROWS[row](tmp_path)
    small = [*SMALL, "training.validation_transitions=10", "training.batch=2"] if row == "protein" else SMALL
    before, best = trained(tmp_path, settings=small)
    assert np.isfinite(before)
    assert best >= before


@pytest.mark.parametrize("linear", [True, False])
def test_sixty_steps_never_end_below_the_start(tmp_path, linear):
    """Before training a model is a linear autoregression, or persistence, with the noise of the data; what is kept is never worse."""
    pedestrians(tmp_path)
    settings = ["model.emission=coupled", "training.validate_every=20", f"model.autoregression={linear}"]
    before, best = trained(tmp_path, steps=60, settings=[*SMALL, *settings])
    store, sim = open_store(tmp_path / "store.zarr"), load(tmp_path / "run")
    reference = Autoregression.fit(store, sim.context) if linear else Persistence(sim.context)
    expected = reference.log_prob(*draw_transitions(store, "val", 100)).mean()
    assert abs(before - expected) < 0.03 * abs(expected) + 0.3
    assert best >= before


def test_a_bead_in_a_trap_is_pulled_to_the_centre(tmp_path):
    """Times and places of one body, about a fixed centre: the model learns the trap, which persistence does not know."""
    rng, (kept, variance) = np.random.default_rng(0), moments(np.array(1.0))
    x = [np.zeros(2)]
    for _ in range(1500):
        x.append(kept * x[-1] + np.sqrt(variance) * rng.standard_normal(2))
    table = pd.DataFrame({"t": np.arange(1501) * 1.0, "x": np.stack(x)[:, 0], "y": np.stack(x)[:, 1]})
    options = ["--columns", "time=t,x=x,y=y", "--symmetry", "point", "--history", 0, "--segment", 50, "--margin", 0]
    command("data", "import-tracks", csv(tmp_path, table), *options, "--out", tmp_path / "store.zarr")
    assert open_store(tmp_path / "store.zarr").spec["position"].translates is False
    settings = ["model.emission=diagonal", "training.batch=64", "training.learning_rate=1e-2", "training.validation_transitions=300"]
    before, best = trained(tmp_path, steps=150, settings=[*SMALL, *settings])
    # The mean knows exp(-rate) of the way: persistence misses 2 x 0.5 log of the ratio of the variances, 0.28 nats
    assert best - before > 0.6 * np.log(2 * (1 - kept) / (1 - kept**2))


def test_one_long_recording_gets_verdicts(tmp_path):
    one_film(tmp_path)
    trained(tmp_path)
    sizes = ["members=19", "likelihood_transitions=50", "guide_transitions=10", "guide_draws=9", "importance_samples=2"]
    command("evaluate", tmp_path / "run", *(word for size in sizes for word in ("--set", size)))
    record = EvaluationRecord.read(tmp_path / "run" / "evaluation")
    words = {verdict.word for group in record.verdicts.values() for verdict in group}
    assert words - {"too few data to say"}


def test_tracked_cells_that_divide_are_trained_on(tmp_path):
    """The layout of the Cell Tracking Challenge: cell 3 divides in every trajectory, 8 comes and goes."""
    folder = tmp_path / "01_GT" / "TRA"
    folder.mkdir(parents=True)
    for t in range(30):
        image = np.zeros((24, 24), np.uint16)
        image[4:9, 4:9], image[9:14, 4:9] = (3, 3) if t % 10 < 4 else (7 + 2 * (t // 10), 8 + 2 * (t // 10))
        image[14:19, 14:19] = 5
        tifffile.imwrite(folder / f"man_track{t:03d}.tif", np.roll(image, t % 2, 1))
    command("data", "import-labels", folder, "--segment", 5, "--out", tmp_path / "store.zarr")
    settings = ["training.batch=2", "training.validation_transitions=4"]
    before, best = trained(tmp_path, "cells", steps=2, settings=settings)
    assert best >= before
