"""Fitting the noise about an equation of motion: it is narrow where the law is right, and wide where nothing is foreseen."""

from __future__ import annotations

import math

import pytest
import torch
from charges import charged

import epns_pyro
from epns_pyro.data import generate
from epns_pyro.systems import ChargedConfig, SetConfig, SpringsConfig
from epns_pyro.training.motion import fit_law
from epns_pyro.training.noise import fit_noise
from epns_pyro.training.presets import preset

SETS = {"train": SetConfig(trajectories=60, steps=8), "val": SetConfig(trajectories=40, steps=8)}


def fitted(system, path):
    store = generate(system, path / "store.zarr")
    context = store.context()
    torch.manual_seed(0)
    transition = preset(system.name).model.build(context)
    fit_law(transition, store, context, 120, seed=0)
    return store, context, transition, fit_noise(transition, store, context, 100, seed=1)


def test_kicks_of_a_known_size_are_found_in_held_out_frames(tmp_path):
    """A kick sigma sqrt(dt) W to velocities during a frame changes their mean over the next two: variance 2/3 sigma^2 dt per axis.

    Those of two frames share a kick: a moving average of order one, with a correlation of 1/4.
    """
    sigma = 0.02
    store, context, transition, density = fitted(SpringsConfig(noise=sigma, sets=SETS), tmp_path)
    x = torch.as_tensor(store.read("val")).float()
    with torch.no_grad():
        step = transition.step(transition.carries(x[:, 0], x[:, 1:]))
        value = step.bodies.to_free(context.spec.dynamic(x[:, 1:].flatten(0, 1)))
        score, without = (step._law(mean, step._noise).log_prob(value).mean() / x.shape[-2] for mean in (step._guess_mean, step.foreseen))
    variance = 2 / 3 * sigma**2 * context.frame_dt  # of the difference of two mean velocities that follow each other
    theta = 2 - math.sqrt(3)
    exact = -1.5 * (math.log(2 * math.pi * variance / (1 + theta**2)) + 1)
    usual = step._noise_unit.flatten(0, -2).median(0).values
    assert transition.echo.theta(usual)[0].item() == pytest.approx(theta, abs=0.05)
    assert score > without + 0.05
    assert transition.bodies.free.names == ("velocity",)
    assert abs(density - float(score)) < 0.3
    assert abs(float(score) - exact) < 0.3


def test_noise_is_narrow_but_where_bodies_meet(tmp_path):
    store = generate(ChargedConfig(bodies=3, sets=SETS), tmp_path / "store.zarr")
    transition = charged(store.context())
    fit_noise(transition, store, store.context(), 40, seed=1)
    x = torch.as_tensor(store.read("val")).float()
    with torch.no_grad():
        step = transition.step(transition.carries(x[:, 0], x[:, 1:]))
        law = step._law(step.foreseen, step._noise)
        width = transition.config.emission.usual_scale(law)[..., 0] / transition.step_scales[0]
    kick = step.motion.log_max_kick[..., 0]
    assert width[kick < 0.1].median() < 1e-4
    assert width[kick > 1].median() > 10 * width[kick < 0.1].median()


def test_widths_that_no_row_was_drawn_with_are_left_out(tmp_path):
    """A draw of the widest is an accident: springs are foreseen to the last digits, and a long forecast would meet it."""
    store, _, transition, _ = fitted(SpringsConfig(sets=SETS), tmp_path)
    x = torch.as_tensor(store.read("val")).float()
    with torch.no_grad():
        step = transition.step(transition.carries(x[:, 0], x[:, 1:]))
        mixture = step._law(step.foreseen, step._noise).base_dist
    weights = mixture.log_weights.exp()
    assert mixture.log_scales[-1] == mixture.log_scales.max()
    assert weights[..., -1].max() < 1e-9
    assert weights.amax(-1).min() > 0.1


def test_noise_is_fitted_once_more_at_the_end_of_training(tmp_path, monkeypatch):
    """Also where the weights that are kept are an average of those of the steps."""
    store, fits = generate(ChargedConfig(bodies=3, sets=SETS), tmp_path / "store.zarr"), []

    def fit(transition, *_, **__):
        fits.append(transition)
        with torch.no_grad():
            transition.guess_scalars[-1].bias.fill_(float(len(fits)))

    monkeypatch.setattr("epns_pyro.training.trainer.fit_noise", fit)
    config = preset("charged").override({"training.steps": 3, "training.motion_windows": 20, "training.validation_transitions": 20})
    epns_pyro.train(config, store, tmp_path / "run")
    assert len(fits) == 2
    assert (epns_pyro.load(tmp_path / "run", which="last").transition.guess_scalars[-1].bias == 2.0).all()


@pytest.mark.parametrize(("bodies", "windows"), [(5, 800), (64, 62)])
def test_of_many_bodies_fewer_windows_are_used(bodies, windows, tmp_path, monkeypatch):
    """As many steps of bodies at most as 800 windows of five have."""

    def draw(store, split, length, count, **_):
        assert (length, count) == (10, windows)
        raise InterruptedError

    store = generate(ChargedConfig(bodies=bodies, sets={"train": SetConfig(trajectories=2, steps=12)}), tmp_path / "store.zarr")
    transition = preset("charged").model.build(store.context())
    monkeypatch.setattr("epns_pyro.training.noise.Windows", draw)
    with pytest.raises(InterruptedError):
        fit_noise(transition, store, store.context(), 400, seed=1)
