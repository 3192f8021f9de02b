"""What a model of hidden velocities starts from: the error and the kicks of a recording, told apart by its second differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from epns_pyro.context import DataContext
from epns_pyro.data import open_store
from epns_pyro.models.bodies.emissions import CoupledConfig, DiagonalConfig
from epns_pyro.models.bodies.kicks import error_share, kicked_noise
from epns_pyro.models.hidden.recording import Recording
from epns_pyro.state import Field, StateSpec

DT, KICK, ERROR = 0.5, 0.3, 0.05
UNIT = KICK**2 * np.array([[DT**2 / 3, DT / 2], [DT / 2, 1.0]])  # the covariance of a step


def context(tmp_path, noise: float | str, force: float = 0.0) -> DataContext:
    """Bodies with a Brownian velocity under constant forces, recorded with an error, of which one detection in twenty is missing."""
    rng = np.random.default_rng(0)
    root, drift, x = np.linalg.cholesky(UNIT), np.array([[1.0, DT], [0.0, 1.0]]), [rng.standard_normal((300, 1, 2, 2))]
    for _ in range(19):
        x.append(drift @ x[-1] + root @ rng.standard_normal(x[-1].shape))
    y = np.stack(x, 1)[..., 0, :]
    y = y + 0.5 * force * rng.standard_normal((300, 1, 1, 2)) * (DT * np.arange(20)[:, None, None]) ** 2
    y = y + (ERROR if noise else 0.0) * rng.standard_normal(y.shape)
    y[rng.random(y.shape[:-1]) < 0.05] = np.nan
    xr.Dataset({"position": (("trajectory", "time", "body", "space"), y)}).to_zarr(tmp_path / "a.zarr")
    fields = [
        {"name": "position", "irreps": "1o", "translates": True, "noise": noise},
        {"name": "velocity", "irreps": "1o", "rate_of": "position", "hidden": True},
    ]
    (tmp_path / "a.zarr.yaml").write_text(yaml.safe_dump({"fields": fields, "space": 2, "frame_dt": DT}))
    return open_store(tmp_path / "a.zarr").context()


@pytest.mark.parametrize("force", [0.0, 1.5], ids=["free", "with forces"])
@pytest.mark.parametrize("noise", ["learn", ERROR, 0.0])
def test_errors_and_kicks_are_told_apart(tmp_path, noise, force):
    found = context(tmp_path, noise, force)
    error = float(Recording(found).noise[0].detach())
    assert error == pytest.approx(ERROR if noise else 0.0, rel=0.1)
    units = np.array([found.step_scales["position"], found.step_scales["velocity"]])
    covariance = kicked_noise(found)
    assert covariance is not None
    np.testing.assert_allclose(covariance.numpy() * np.outer(units, units), UNIT, rtol=0.2)


def test_without_hidden_velocities_or_with_older_weights_nothing_is_said():
    recorded = StateSpec((Field("position", "1o"), Field("velocity", "1o", rate_of="position")))
    scales = {"position": 1.0, "velocity": 1.0}
    assert kicked_noise(DataContext(recorded, DT, scales, (1,))) is None
    hidden = StateSpec((Field("position", "1o", noise="learn"), Field("velocity", "1o", rate_of="position", hidden=True)))
    assert kicked_noise(DataContext(hidden, DT, scales, (1,))) is None
    assert error_share(DataContext(hidden, DT, scales, (1,)), "position") == 1.0


@pytest.mark.parametrize("config", [CoupledConfig(), DiagonalConfig()])
def test_an_emission_starts_with_the_covariance(config):
    spec, unit = StateSpec((Field("position", "1o"), Field("velocity", "1o"))), torch.tensor([0.3, 2.0])
    wanted = torch.tensor([[0.2, 0.1], [0.1, 0.3]])
    law = config.build(spec, torch.zeros(1, 6), config.start(spec, wanted).expand(1, -1), unit)
    torch.testing.assert_close(law.variance[0, [0, 3]], wanted.diagonal() * unit**2, rtol=0.12, atol=0)  # scales are bent near their limits
    if isinstance(config, CoupledConfig):
        factor = law.base_dist.factor[0]
        torch.testing.assert_close(
            factor @ factor.mT, wanted * torch.outer(unit, unit), rtol=0.12, atol=0
        )  # scales are bent near their limits
