"""Squares of large label images: where they are, what they hold, and who can be cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from epns_pyro.cli import main
from epns_pyro.data import Store, Windows, import_labels
from epns_pyro.data.crops import check_crop, cropped
from epns_pyro.errors import ConfigError
from epns_pyro.systems import CellsConfig, NBodyConfig, RecordedCellsConfig
from epns_pyro.training.presets import preset

SIDE = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six films of 120 x 60 pixels with nine discs that move down by a pixel in every frame."""
    import tifffile

    folder = tmp_path_factory.mktemp("films")
    y, x = np.mgrid[:120, :60]
    for film in range(6):
        frames = np.zeros((4, 120, 60), np.uint8)
        for t, cell in np.ndindex(4, 9):
            frames[t][(y - 15 - 11 * cell - t) ** 2 + (x - 12 - 35 * (cell % 2)) ** 2 < 25] = cell + 1
        tifffile.imwrite(folder / f"{film}.tif", frames, photometric="minisblack")
    return import_labels(folder, folder / "out.zarr")


def test_a_square_is_part_of_the_images_at_both_times_and_holds_a_cell(store: Store) -> None:
    whole = torch.as_tensor(store.read("train", slice(0, 2)))
    parts = cropped(store.spec, whole, SIDE, np.array([[0.0, 0.0, 0.0], [0.999, 0.999, 0.999]]))
    assert parts.shape == (2, 4, SIDE, SIDE, 2)
    assert (store.spec.get(parts[:, 0], "cell") > 0).flatten(1).any(-1).all()
    for part, film in zip(parts, whole, strict=True):
        places = [(t, u) for t in range(120 - SIDE + 1) for u in range(60 - SIDE + 1) if film[:, t : t + SIDE, u : u + SIDE].equal(part)]
        assert len(places) == 1
    first = (whole[0, 0, ..., 0] > 0).nonzero()[0]
    assert parts[0].equal(whole[0, :, first[0] : first[0] + SIDE, first[1] : first[1] + SIDE])
    corner = ((whole[1, 0, ..., 0] > 0).nonzero()[-1] - SIDE + 1).clamp(min=0)
    assert parts[1].equal(whole[1, :, corner[0] : corner[0] + SIDE, corner[1] : corner[1] + SIDE])


def test_an_image_that_is_smaller_than_the_square_is_kept_whole_along_that_axis(store: Store) -> None:
    windows = Windows(store, "train", 2, 3, crop=90)
    assert windows.draw().path.shape == (3, 2, 90, 60, 2)


def test_two_processes_see_the_squares_that_one_sees(store: Store) -> None:
    alone = Windows(store, "train", 1, 4, crop=SIDE)
    both = [Windows(store, "train", 1, 4, crop=SIDE, rank=rank, world_size=2) for rank in (0, 1)]
    for _ in range(3):
        assert torch.cat([windows.draw().x0 for windows in both]).equal(alone.draw().x0)


@pytest.mark.parametrize("system", [NBodyConfig(), CellsConfig.small().override({"boundary": "periodic"})])
def test_only_images_whose_parts_are_images_again_are_cut(system) -> None:
    with pytest.raises(ConfigError, match=r"training\.crop is for label images that are not periodic"):
        check_crop(system.build().spec)


@pytest.mark.parametrize(
    ("lattice", "area", "crop"),
    [((700, 1100), (0, 1100), 150), ((175, 275), (0, 80), 128), ((150, 150), (0, 80), None), ((700, 1100), (0, 400_000), None)],
)
def test_presets_cut_large_images_into_squares_of_some_cells(lattice, area, crop) -> None:
    training = preset("cells", "quick", RecordedCellsConfig(lattice=lattice, cells=200, area=area)).training
    assert training.crop == crop
    assert preset("cells", "quick", RecordedCellsConfig(lattice=lattice, cells=200, area=area, periodic=True)).training.crop is None
    assert training.batch == 1


def test_training_on_squares_says_so_and_can_be_resumed(store: Store, tmp_path) -> None:
    settings = ["training.batch=2", "training.validation_transitions=4", "model.network.width=8", f"training.crop={SIDE}"]
    command = ["train", "cells", "--data", str(store.path), "--out", str(tmp_path / "run"), "--steps", "2", "--no-evaluate"]
    found = CliRunner().invoke(main, [*command, *(part for key in settings for part in ("--set", key))])
    assert found.exit_code == 0, found.output
    assert "training sees 24 x 24 of 120 x 60 pixels at a time, around a random cell (training.crop)" in found.output
    again = ["train", "cells", "--out", str(tmp_path / "run"), "--no-evaluate", "--resume"]
    assert CliRunner().invoke(main, again).exit_code == 0


def test_the_import_of_a_large_film_says_what_makes_it_fit(tmp_path) -> None:
    import tifffile

    y, x = np.mgrid[:300, :300]
    film = np.stack([(y - 100 - t) ** 2 + (x - 100) ** 2 < 20**2 for t in range(30)]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "big.tif", film, photometric="minisblack")

    def said(name: str, *options: str) -> str:
        found = CliRunner().invoke(main, ["data", "import-labels", str(tmp_path / "big.tif"), "--out", str(tmp_path / name), *options])
        assert found.exit_code == 0, found.output
        return found.output

    assert "too few frames to validate and test a model" in said("short.zarr", "--segment", "20")
    whole = said("whole.zarr")
    assert "cut into trajectories of 4 frames, so that every set has some: --segment N cuts others" in whole
    assert "dropped 2 frames at the end of a film, less than a trajectory of 4" in whole
    assert "dropped 2 trajectories closer than 4 frames to another set" in whole
    assert "the largest cell has 1245 pixels: with --downscale 4 it has 77" in whole
    fits = said("fits.zarr", "--segment", "3", "--downscale", "4")
    assert "too few frames" not in fits
    assert "the largest cell" not in fits
