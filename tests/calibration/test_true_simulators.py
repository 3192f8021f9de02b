"""The true simulators as forecasters of themselves are calibrated; with a wrong parameter they are not.

One observable in twenty of a true simulator may be faulted, and observables depend on each other: three quarters have to pass.
"""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from epns_pyro.calibration.categorical import label_diagnostics, label_values
from epns_pyro.calibration.diagnostics import diagnose, diagnose_fields
from epns_pyro.calibration.measurements import observable_dataset
from epns_pyro.calibration.verdicts import Verdict, Word, judge_fields, judge_labels, judge_observables
from epns_pyro.systems import CellsConfig, NBodyConfig, System, trajectory_seeds

TRAJECTORIES, MEMBERS = 50, 29


def runs(system: System, model: System, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Members of `model` (sample, trajectory, time, ...) and truths of `system` (trajectory, time, ...) from the same initial states."""
    x0 = system.initial(TRAJECTORIES, np.random.default_rng(0))
    truth = system.simulate(x0, steps, trajectory_seeds(0, "truth", TRAJECTORIES))
    repeated = np.tile(x0, (MEMBERS, *(1,) * (x0.ndim - 1)))
    members = model.simulate(repeated, steps, trajectory_seeds(0, "members", MEMBERS * TRAJECTORIES))
    return members.reshape(MEMBERS, *truth.shape), truth


def observable_verdicts(system: System, members: np.ndarray, truth: np.ndarray) -> list[Verdict]:
    time = np.arange(truth.shape[1]) * system.frame_dt
    forecast, observed = (observable_dataset(system.observables(x), time, time_unit=system.time_unit) for x in (members, truth))
    return judge_observables(diagnose(forecast, observed, rng=np.random.default_rng(1)))


def share(verdicts: list[Verdict], word: Word) -> float:
    return np.mean([v.word == word for v in verdicts])


@pytest.mark.parametrize(("sigma", "word"), [(0.1, Word.CALIBRATED), (0.05, Word.OVER_CONFIDENT), (0.2, Word.UNDER_CONFIDENT)])
def test_celestial(sigma, word):
    system = NBodyConfig().build()
    members, truth = runs(system, NBodyConfig(sigma=sigma).build(), steps=10)
    verdicts = observable_verdicts(system, members, truth)
    if word == Word.CALIBRATED:
        assert share(verdicts, word) >= 0.75
    else:
        assert share(verdicts, Word.CALIBRATED) == 0
        assert share(verdicts, word) >= 0.5  # others are biased: noise adds energy and moves the centre of mass

    def fields(x: np.ndarray, dims: tuple[str, ...]) -> xr.Dataset:
        data = {name: ((*dims, "body", "space"), system.spec.get(x, name)) for name in ("position", "velocity")}
        return xr.Dataset(data, coords={"time": np.arange(11) * system.frame_dt})

    forecast, observed = fields(members, ("sample", "trajectory", "time")), fields(truth, ("trajectory", "time"))
    verdicts = judge_fields(diagnose_fields(forecast, observed, rng=np.random.default_rng(1)))
    assert [v.word for v in verdicts] == [word, word]


@pytest.mark.parametrize(("temperature", "label_word"), [(10.0, Word.CALIBRATED), (3.0, Word.OVER_CONFIDENT), (30.0, Word.UNDER_CONFIDENT)])
def test_cellular(temperature, label_word):
    small = {"lattice": (26, 26), "blocks": (3, 3), "frame_mcs": 20}
    system = CellsConfig(**small).build()
    members, truth = runs(system, CellsConfig(**small, temperature=temperature).build(), steps=4)
    passed = share(observable_verdicts(system, members, truth), Word.CALIBRATED)
    assert passed >= 0.75 if label_word == Word.CALIBRATED else passed == 0

    def labels(x: np.ndarray, dims: tuple[str, ...]) -> xr.DataArray:
        image = system.spec.get(x, "cell").astype(np.int64)
        return xr.DataArray(image, dims=(*dims, "y", "x"), coords={"time": np.arange(5) * system.frame_dt})

    forecast, observed = labels(members, ("sample", "trajectory", "time")), labels(truth, ("trajectory", "time"))
    values = label_values(forecast, observed, rng=np.random.default_rng(1))
    assert judge_labels(label_diagnostics(values), "cell").word == label_word
