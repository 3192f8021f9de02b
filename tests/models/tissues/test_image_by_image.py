"""Images drawn one by one, in compiled code, are those that the laws of their pixels say: group by group, in tensors, slow and obvious."""

from __future__ import annotations

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from label_tissues import label_spec, law, tissues, transition
from torch import Tensor

from epns_pyro.models.tissues import compiled_draws, sweeps
from epns_pyro.models.tissues.image_by_image import ImageByImage
from epns_pyro.models.tissues.pixel_laws import PixelLaws

LATTICE = (11, 14)
SWEPT = {"sweeps": 2, "revisions": ()}
LAWS = {
    "independent": {"interlacing": 1},
    "4 classes": {},
    "16 classes": {"interlacing": 4, "revisions": (1, 6)},
    "distances": {"interlacing": 4, "revisions": (), "distances": True},
    "swept": SWEPT | {"interlacing": 4, "distances": True},
    "swept by weights of their own": SWEPT | {"interlacing": 8, "pseudo_likelihood": True, "apart": 8, "distances": True},
    "swept in groups of classes": SWEPT | {"interlacing": 8, "pseudo_likelihood": True, "apart": 4, "neighbourhood": 3},
}


class Inversion:
    """Draws by inversion with given uniform numbers per pixel of the batch, in place of Gumbel noise."""

    def __init__(self, tables: list[Tensor]) -> None:
        self.tables = tables  # by turn: (pixel,)
        self.drawn = torch.zeros(len(tables[0]), dtype=torch.int64)  # how often each pixel was drawn

    def draw(self, laws: PixelLaws) -> Tensor:
        field, pixels, new = laws.field, laws.pixels, []
        for i, pixel in enumerate(pixels.pixel.tolist()):
            rows = (pixels.pixel_of_candidate == i).nonzero()[:, 0]
            scores = torch.cat([laws.medium[i : i + 1], laws.outside[i : i + 1], laws.cells[rows]]).double()
            names = [0, int(field.labels[pixel]), *field.candidates.name[pixels.rows][rows].tolist()]
            below = scores.softmax(0).cumsum(0)
            uniform = self.tables[int(self.drawn[pixel])][pixel]
            new.append(names[int((below <= uniform).sum().clamp_max(len(names) - 1))])
            self.drawn[pixel] += 1
        return torch.tensor(new)


@pytest.mark.parametrize("settings", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("periodic", [False, True], ids=["walls", "periodic"])
def test_images_are_those_of_the_reference(settings, periodic, monkeypatch):
    spec = label_spec(7, periodic=periodic)
    x = tissues(spec, LATTICE, 3, 1, seed=4)[:, 0]
    x[0] = torch.where(x[0, ..., :1] == 3, 0, x[0])  # a cell that is not there
    emission = law(transition(spec, LATTICE, **settings), x)
    draw, names = compiled_draws.draw, inspect.signature(compiled_draws.draw.py_func).parameters

    def recorded(*arguments):
        labels, uniform, _, pixels, *_ = arguments
        image = np.repeat(np.arange(len(labels)), pixels.bounds[:, -1] - pixels.bounds[:, 0])
        by_pixel = np.full((len(uniform), labels.size), math.nan)
        by_pixel[:, image * labels.shape[1] + pixels.pixel] = uniform
        (turns if dict(zip(names, arguments, strict=True))["again"] else stages).extend(torch.from_numpy(by_pixel))
        draw(*arguments)

    stages: list[Tensor] = []
    turns: list[Tensor] = []
    monkeypatch.setattr(compiled_draws, "draw", recorded)
    lost = torch.where(torch.rand(3, 3 * 11 * 14) < 0.05, torch.randint(0, 8, (3, 3 * 11 * 14)), -1)  # as if the uniform part weighed 5%
    following = itertools.cycle(lost[: 1 + emission.scores.sweeps])
    monkeypatch.setattr(sweeps.Lost, "labels", lambda _: next(following))
    found = emission.sample()[..., 0].flatten()

    field, _ = emission._flat(emission.batch_shape)
    starts = [classes.start for classes, _ in emission.scores.stages]
    table = stages[0]
    for begin, of_stage in zip(starts, stages, strict=True):
        table = torch.where(field.classes < begin, table, of_stage)
    inversion = Inversion([table, *turns])
    monkeypatch.setattr(PixelLaws, "draw", lambda laws, _=None: inversion.draw(laws))
    emission.compiled = False
    expected = emission.sample()[..., 0].flatten()
    assert (found != x[..., 0].flatten()).float().mean() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_images_do_not_depend_on_what_is_drawn_beside_them():
    """Every image of a batch follows its own law: that of a batch of one."""
    spec = label_spec(4)
    t, x = transition(spec, LATTICE, interlacing=4, distances=True, sweeps=1, revisions=()), tissues(spec, LATTICE, 2, 1, seed=1)[:, 0]
    counts = []
    for images in (x, x[:1]):
        torch.manual_seed(3)
        counts.append((law(t, images).sample(torch.Size((4000,)))[:, 0, ..., 0] == x[0, ..., 0]).double().mean(0))
    torch.testing.assert_close(*counts, rtol=0, atol=0.05)  # five standard errors of a difference


def test_the_rational_sigmoid_is_exact_in_single_precision():
    values = np.linspace(-30, 30, 5001, dtype=np.float32)
    found = np.array([compiled_draws._silu(value) for value in values])
    np.testing.assert_allclose(found, torch.nn.functional.silu(torch.tensor(values)), atol=2e-6)


def test_it_is_used_on_a_cpu(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(ImageByImage, "classes", refuse)
    spec = label_spec(3)
    with pytest.raises(AssertionError):
        law(transition(spec, LATTICE), tissues(spec, LATTICE, 1, 1)[:, 0]).sample()
