"""What a picture shows: futures of a run, of a file that simulate wrote, and recorded trajectories, in numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from label_tissues import label_spec, tissues
from small_tracks import walkers

import epns_pyro
from epns_pyro.cli import main
from epns_pyro.data.importers.tracks import Options, import_tracks
from epns_pyro.errors import DataError
from epns_pyro.evaluation.figures.style import INK, MODEL
from epns_pyro.evaluation.parts import Panel
from epns_pyro.plots import panels, paper
from epns_pyro.plots.film import save_film
from epns_pyro.plots.futures import Futures, _of_the_same_bodies, is_futures, read_futures, recorded, sample_futures
from epns_pyro.presence import presence
from epns_pyro.simulator import Simulator
from epns_pyro.state import Field, StateSpec
from epns_pyro.systems.recorded_cells import RecordedCellsConfig


@pytest.fixture
def futures(sim, store) -> Futures:
    return sample_futures(sim, store, trajectory=2, members=7, steps=5)


def images(frames: int = 4) -> Futures:
    """Label images of three cells."""
    config = RecordedCellsConfig.parse({"name": "recorded_cells", "lattice": (12, 12), "cells": 3, "types": 2, "periodic": False})
    states = tissues(label_spec(3, 2), (12, 12), 2, frames).numpy()
    return Futures(config.build(), {"truth": states}, 1.0)


def test_members_start_where_the_truth_does_and_then_part(futures, store) -> None:
    truth, model = futures.states["truth"], futures.states["model"]
    np.testing.assert_array_equal(truth[0], store.read("test", 2, stop=6)[0])
    np.testing.assert_allclose(model[:, 0], np.broadcast_to(truth[:, 0], model[:, 0].shape), rtol=1e-6)
    assert model.shape == (7, *truth.shape[1:])
    assert len(np.unique(model[:, -1].reshape(7, -1), axis=0)) == 7


def test_all_recorded_futures_of_one_state_are_the_truth(sim, tmp_path) -> None:
    config = sim.system.config.override({"sets": {"same_init": {"trajectories": 6, "steps": 3, "initial_states": 2}}})
    from epns_pyro.data import generate

    found = sample_futures(sim, generate(config, tmp_path / "x.zarr", 0), trajectory=4, members=2, steps=3)
    assert found.states["truth"].shape[:2] == (3, 4)


@pytest.mark.parametrize(
    ("options", "changes", "first"),
    [({"history": 3}, {}, 2), ({"noise": 0.001}, {}, 9), ({"history": 1}, {"model.history": {"frames": 3}}, 2)],
    ids=["velocities", "hidden", "frames"],
)
def test_futures_start_where_all_is_known_that_a_model_may_know(options, changes, first, tmp_path) -> None:
    walkers(tracks=40, length=40, spread=120).to_csv(tmp_path / "walkers.csv", index=False)
    store = import_tracks([tmp_path / "walkers.csv"], tmp_path / "walkers.zarr", Options(frame_dt=0.5, segment=20, **options))
    config = epns_pyro.preset("particles", data=store.system.config).override(changes)
    context = store.context()
    sim = Simulator(config.model.build(context).eval(), store.system, context, config, store=str(store.path))
    found = sample_futures(sim, store, members=2, steps=4)
    assert found.start == first * 0.5
    expected = store.read("test", 0, start=first, stop=first + 1)[:, 0]
    there = presence(store.spec, expected)
    position = store.spec.get(expected, "position")
    np.testing.assert_allclose(store.spec.get(found.states["truth"][:, 0], "position")[there], position[there])
    drawn = store.spec.get(found.states["model"][:, 0], "position")
    np.testing.assert_allclose(drawn[:, there[0]], np.broadcast_to(position[there], (2, *position[there].shape)), atol=0.02)


def test_truth_and_futures_hold_the_same_bodies_where_they_come_and_go() -> None:
    spec = StateSpec((Field("position", "1o", translates=True),), space=2)
    truth, futures = np.zeros((1, 4, 3, 2)), np.ones((2, 6, 3, 2))
    truth[0, :2, 1], futures[:, :, 1] = np.nan, np.nan  # enters later, and is in no future
    truth[0, 2:, 2] = np.nan  # leaves
    found = _of_the_same_bodies(spec, truth, futures)
    np.testing.assert_array_equal(presence(spec, found[0])[0].T, [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(presence(spec, found[1])[0].T, [[1] * 6, [0] * 6, [1, 1, 0, 0, 0, 0]])


def test_quantiles_are_those_of_the_observable(futures) -> None:
    energy = futures.system.observables(futures.states["model"])["total_energy"].values
    found = futures.quantiles(["total_energy"]).value.sel(source="model", observable="total_energy")[0]
    np.testing.assert_allclose(found.sel(quantile=0.9), np.quantile(energy, 0.9, axis=0))
    with pytest.raises(DataError, match="no observable 'total': did you mean 'total_energy'"):
        futures.quantiles(["total"])


def test_a_file_of_simulate_is_read_back_as_what_it_is(run, sim, store, tmp_path) -> None:
    out = tmp_path / "futures.zarr"
    assert CliRunner().invoke(main, ["simulate", str(run), "--members", "3", "--steps", "4", "--out", str(out)]).exit_code == 0
    assert is_futures(out)
    assert not is_futures(store.path)
    found = read_futures(out, trajectory=1)
    expected = sim.rollout(store.read("test", stop=1)[:, 0], steps=4, members=3, seed=0).isel(trajectory=1)
    np.testing.assert_allclose(found.spec.get(found.states["model"], "position"), expected["position"], rtol=1e-6)
    np.testing.assert_allclose(found.time("model"), expected["time"])
    with pytest.raises(DataError, match="initial states 0 to 5, found 6"):
        read_futures(out, trajectory=6)


def test_what_is_recorded(store) -> None:
    assert recorded(store, first=1, steps=2).states["truth"].shape[:2] == (5, 3)
    with pytest.raises(DataError, match="trajectories 0 to 5, found 6"):
        recorded(store, first=6)
    with pytest.raises(DataError, match=rf"set 'test' has {store.steps('test')} steps, found 1000"):
        recorded(store, steps=1000)
    with pytest.raises(DataError, match="no set 'tset'"):
        recorded(store, split="tset")


def test_a_fan_and_paths_are_drawn_from_the_numbers(futures) -> None:
    (panel,) = panels.fans(futures, ["total_energy"])
    page = paper.draw([panel])
    medians = [line.get_ydata() for line in page.axes[0].lines if len(line.get_ydata()) == 6]
    expected = np.median(futures.system.observables(futures.states["model"])["total_energy"].values, axis=0)
    assert any(np.allclose(median, expected) for median in medians)
    shown = panels.paths(futures, runs=2)
    assert [panel.title for panel in shown] == ["y (L), truth", "y (L), member 1", "y (L), member 2"]
    drawn = paper.draw(shown).axes[1].lines[0].get_xydata()
    np.testing.assert_allclose(drawn, futures.spec.get(futures.states["model"][0], "position")[:, 0, :2])


def test_paper_has_the_colours_of_the_page_and_no_stand_in() -> None:
    def draw(axes) -> None:
        axes.plot([0, 1], color=MODEL)
        axes.fill_between([0, 1], [1, 2], color=INK, alpha=0.5)
        axes.scatter([0, 1], [0, 1], c=["#ff0000", MODEL])

    page = paper.draw([Panel(panels.SQUARE, draw, title="t", x="x")])
    (line,), (filled, dots) = page.axes[0].lines, page.axes[0].collections
    from matplotlib.colors import to_hex

    assert to_hex(line.get_color()) == paper.PALETTE[MODEL]
    assert to_hex(filled.get_facecolor()[0]) == paper.PALETTE[INK]
    assert filled.get_facecolor()[0][3] == 0.5
    assert [to_hex(c) for c in dots.get_facecolor()] == ["#ff0000", paper.PALETTE[MODEL]]
    style = (Path(paper.__file__).parents[1] / "report" / "templates" / "style.css").read_text()
    assert all(colour in style for colour in paper.PALETTE.values())


@pytest.mark.parametrize("suffix", paper.FORMATS)
def test_a_figure_is_a_file_of_its_kind(futures, tmp_path, suffix) -> None:
    out = paper.save(paper.draw(panels.fans(futures), "a title"), tmp_path / f"fan{suffix}")
    assert out.read_bytes().lstrip().startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    with pytest.raises(DataError, match=r"ends in .png, .svg or .pdf"):
        paper.save(paper.draw(panels.fans(futures)), tmp_path / "fan.jpg")


def test_label_images_are_shown_in_the_colours_of_their_types() -> None:
    futures = images()
    shown = panels.paths(futures, runs=1)
    assert [panel.title for panel in shown] == ["trajectory 1, 0", "trajectory 1, 1", "trajectory 1, 2", "trajectory 1, 3"]
    x = futures.states["truth"][0, 0]
    picture = panels.image(futures, x)
    assert picture.shape == (48, 48, 3)
    medium = np.argwhere(futures.spec.get(x, "cell") == 0)[0]
    assert (picture[4 * medium[0] + 2, 4 * medium[1] + 2] == 1).all()


def test_a_film_has_as_many_frames_as_the_trajectory(futures, tmp_path) -> None:
    from PIL import Image

    for k, film in enumerate((futures, images())):
        with Image.open(save_film(film, 2, tmp_path / f"{k}.gif")) as gif:
            assert gif.n_frames == max(x.shape[1] for x in film.states.values())
