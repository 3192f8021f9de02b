"""A trained simulator in the hands of a script: precision, symmetry, likelihood, and what users get wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import epns_pyro
from epns_pyro.data import Store
from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.models import EPNSModel, Feedback
from epns_pyro.simulator import Simulator
from epns_pyro.symmetry import Euclidean, density_invariance_error

DESIGN = """
import epns_pyro
sim = epns_pyro.load("runs/nbody")
x0  = sim.spec.pack(mass=m, position=r, velocity=v)
sites = Predictive(sim.model, guide=sim.guide, num_samples=100, parallel=True)(x0, horizon=100)
ens = sim.rollout(x0, steps=100, members=100, seed=0)
elbo, iwae = sim.elbo(x0, path, num_samples=1), sim.iwae(x0, path, num_samples=64)
"""


def test_the_public_face_as_documented(run: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that scripts rely on, with NumPy arrays of float64, as a user has them, and with tensors."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "nbody").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    x = store.read("test")
    fields = {letter: store.spec.get(x[:, 0], name) for letter, name in (("m", "mass"), ("r", "position"), ("v", "velocity"))}
    lines = re.sub(r"\b100\b", "6", DESIGN)
    for convert in (lambda a: torch.as_tensor(a, dtype=torch.float32), torch.as_tensor):
        tensors = {name: convert(value) for name, value in fields.items()}
        names = tensors | {"path": convert(x[:, 1:]), "Predictive": __import__("pyro").infer.Predictive}
        if convert is torch.as_tensor:
            lines = lines.replace('nbody")', 'nbody").to(torch.float64)')
            names["torch"] = torch
        with torch.no_grad():
            exec(lines, names)
        assert set(names["sites"]) == {f"{kind}_{t}" for kind in "hxz" for t in range(1, 7)}
        assert names["sites"]["x_6"].shape == (6, 6, 3, 6)
        assert names["ens"]["position"].dims == ("sample", "trajectory", "time", "body", "space")
        assert names["ens"]["position"].shape == (6, 6, 7, 3, 3)
        assert names["elbo"].shape == names["iwae"].shape == (6,)
        lead = names["iwae"] - names["elbo"]  # of one sample each: the guide of so short a run is all but exact; see tests/inference
        assert lead.mean() > -3 * lead.std() / len(lead) ** 0.5
        sim = names["sim"]
        assert (sim.model.transition, sim.system.spec.names, sim.config.seed) == (sim.transition, sim.spec.names, 0)


def test_what_was_loaded(sim: Simulator, store: Store) -> None:
    assert isinstance(sim, epns_pyro.Simulator)
    assert (sim.step, sim.dtype, sim.device) == (30, torch.float32, torch.device("cpu"))
    assert sim.store == str(store.path)
    assert sim.context == store.context()
    assert sim.system.config == store.system.config
    assert not sim.transition.training


def test_double_precision(sim: Simulator, store: Store) -> None:
    x = store.read("test")
    single = sim.rollout(x[:, 0], steps=1, members=2)["position"]
    assert single.dtype == np.float32
    torch.manual_seed(0)
    kl = sim.bounds(x[:, 0], x[:, 1:]).kl
    sim.to(torch.float64)
    assert sim.dtype == torch.float64
    assert sim.rollout(x[:, 0], steps=1, members=2)["position"].dtype == np.float64
    torch.testing.assert_close(sim.bounds(x[:, 0], x[:, 1:]).kl, kl.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("translation", [0.0, 1.0, 1e3])
def test_the_trained_distribution_is_equivariant(sim: Simulator, store: Store, translation: float) -> None:
    """Random rotations, reflections, translations and permutations, from raw states, at 1e-9 of the log density."""
    sim.to(torch.float64)
    x = torch.as_tensor(store.read("test"))
    torch.manual_seed(0)
    z = torch.randn(len(x), x.shape[1] - 1, 3, 3, dtype=torch.float64)
    arguments = sim.spec, x[:, 0], x[:, 1:], z
    found = density_invariance_error(sim.log_density, *arguments, Euclidean(3, translation), samples=20)
    assert found.maximum <= 1e-9
    wrong = density_invariance_error(lambda a, b, z: sim.log_density(a, b, z.flip(-2)), *arguments, Euclidean(3, translation), samples=4)
    assert wrong.maximum > 1e-6


def test_single_precision_far_away_still_holds_to_rounding(sim: Simulator, store: Store) -> None:
    x = torch.as_tensor(store.read("test"), dtype=torch.float32)
    z = torch.zeros(len(x), x.shape[1] - 1, 3, 3)
    assert density_invariance_error(sim.log_density, sim.spec, x[:, 0], x[:, 1:], z, Euclidean(3, 1.0)).maximum < 0.01


def test_likelihoods_are_sums_over_the_path(sim: Simulator, store: Store) -> None:
    x = store.read("test")
    kl = sim.bounds(x[:, 0], x[:, 1:]).kl
    halves = sim.bounds(x[:, 0], x[:, 1:6]).kl + sim.bounds(x[:, 5], x[:, 6:]).kl
    torch.testing.assert_close(kl, halves, rtol=1e-4, atol=1e-4)
    latents = sim.latent_kl(x[:, 0], x[:, 1:])
    assert latents.shape == (3, 3)
    assert float(latents.sum()) * 10 == pytest.approx(float(kl.mean()), rel=1e-4)


# -- what users get wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[..., :5], "expected .* channels mass 1, position 3, velocity 3.* found .2, 3, 5."),
        (lambda x: x[0], r"expected \(batch, body, channel\).* found \(3, 7\)"),
        (lambda x: x[None], r"expected \(batch, body, channel\).* found \(1, 2, 3, 7\)"),
        (lambda x: x[:0], "none empty"),
        (lambda x: np.where(np.arange(7) == 2, np.nan, x), "NaN or infinite"),
        (lambda x: np.where(np.arange(7) == 2, np.inf, x), "NaN or infinite"),
        (lambda x: x.astype(int), "floating point numbers, found dtype"),
        (lambda x: x.astype(bool), "floating point numbers, found dtype"),
        (lambda x: x.astype(complex), "floating point numbers, found dtype"),
    ],
)
def test_states_that_do_not_fit(sim: Simulator, x0: np.ndarray, spoil: Callable, message: str) -> None:
    for call in (lambda x: sim.rollout(x, steps=2, members=2), lambda x: sim.elbo(x, np.zeros((2, 1, 3, 7)))):
        for convert in (np.asarray, torch.as_tensor):
            with pytest.raises(ShapeError, match=f"the initial states: .*{message}") as caught:
                call(convert(spoil(x0)))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path[:3], r"to go with initial states \(6, 3, 7\)"),
        (lambda path: path[:, :, :2], r"to go with initial states \(6, 3, 7\)"),
        (lambda path: path[:, 0], r"expected \(batch, time, body, channel\)"),
        (lambda path: path[:, :0], "none empty"),
        (lambda path: path[..., 1:], "channels mass 1, position 3, velocity 3"),
        (lambda path: path * np.nan, "NaN"),
    ],
)
def test_paths_that_do_not_fit(sim: Simulator, store: Store, spoil: Callable, message: str) -> None:
    x = store.read("test")
    for call in (sim.elbo, sim.iwae, sim.bounds, sim.latent_kl, lambda a, b: sim.log_density(a, b, np.zeros((6, 10, 3, 3)))):
        with pytest.raises(ShapeError, match=f"the path: .*{message}"):
            call(x[:, 0], spoil(x[:, 1:]))


@pytest.mark.parametrize("shape", [(6, 3, 3), (5, 10, 3, 3), (6, 9, 3, 3)])
def test_latents_that_do_not_fit(sim: Simulator, store: Store, shape: tuple[int, ...]) -> None:
    x = store.read("test")
    with pytest.raises(ShapeError, match=r"z: expected \(batch, time, entity, latent\)"):
        sim.log_density(x[:, 0], x[:, 1:], np.zeros(shape))


def test_a_feedback_has_a_name(sim: Simulator, x0: np.ndarray) -> None:
    mean, named, other = (
        sim.rollout(x0, steps=3, members=4, feedback=feedback)["position"].values
        for feedback in (Feedback.PUSHFORWARD, "pushforward", "ancestral")
    )
    np.testing.assert_array_equal(named, mean)
    np.testing.assert_array_equal(other, sim.rollout(x0, steps=3, members=4)["position"].values)
    assert np.abs(other - mean).max() > 1e-3
    for call in (lambda: sim.rollout(x0, steps=3, members=4, feedback="means"), lambda: EPNSModel(sim.transition, feedback="means")):
        with pytest.raises(ConfigError, match="expected one of 'teacher', 'pushforward', 'ancestral', found 'means'"):
            call()


def test_arrays_of_any_kind(sim: Simulator, x0: np.ndarray) -> None:
    ahead = np.ascontiguousarray(x0[:, ::-1])
    for same in (x0[:, ::-1], ahead.tolist()):
        found = sim.rollout(same, steps=2, members=2)
        xr.testing.assert_identical(found, sim.rollout(ahead, steps=2, members=2))
    for other in (xr.DataArray(x0), found):
        with pytest.raises(ShapeError, match=r"expected an array, found Data.*spec.pack"):
            sim.rollout(other, steps=2, members=2)


def test_programs_take_batches(sim: Simulator, x0: np.ndarray) -> None:
    for program in (sim.model, sim.guide):
        with pytest.raises(ShapeError, match=r"x0: expected \(batch, body, channel\), found \(3, 7\): x0\[None\] for one state"):
            program(x0[0], horizon=2)


def test_a_bound_needs_a_sample(sim: Simulator, store: Store) -> None:
    x = store.read("test")
    with pytest.raises(ConfigError, match="num_samples: expected at least 1, found 0"):
        sim.elbo(x[:, 0], x[:, 1:], num_samples=0)


def test_loading_a_run_imports_no_library_that_it_does_not_need() -> None:
    """What reads files, simulates, compiles and tests statistics is imported where it is first used; together it takes seconds."""
    code = "import sys, epns_pyro; sim = epns_pyro.load('pretrained:nbody'); "
    code += "print([name for name in ('scipy.stats', 'scipy.spatial', 'pandas', 'xarray', 'numba', 'zarr', 'h5netcdf', 'lightning_fabric') "
    code += "if name in sys.modules]); print(sim.rollout(sim.spec.pack(mass=[1.0, 0.1], position=[[0.0] * 3, [2.0, 0, 0]], "
    code += "velocity=[[0.0] * 3, [0, 0.7, 0]])[None], steps=1, members=2)['position'].shape)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "(2, 1, 2, 2, 3)"]
