"""States of cells that divide and die: reading what happened between two of them, and making it happen.

A division is seen in a next state where a cell of the present one is gone and exactly two new cells name it as their mother. Which half of
the mother each daughter had is seen by where her pixels are. Renaming cells renames these answers and changes nothing else, daughters
included: a tie is broken by places, never by names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from epns_pyro.backbones.tissues.tissue import Tissue
from epns_pyro.lineage import AGES, per_label, per_pixel
from epns_pyro.models.tissues.events import DIES, DIRECTIONS, DIVIDES, STAYS, UNKNOWN, Halves, from_point
from epns_pyro.state import StateSpec


@dataclass(frozen=True)
class CellTables:
    """Label images and the properties of their cells.

    Parameters
    ----------
    labels : Tensor, (batch, y, x)
    type, mother, age : Tensor, (batch, label)
        0 for labels without a cell.
    """

    labels: Tensor
    type: Tensor
    mother: Tensor
    age: Tensor

    @classmethod
    def read(cls, spec: StateSpec, x: Tensor) -> CellTables:
        """Read states with lineage, (batch, y, x, channel)."""
        labels = spec.get(x, "cell").long()
        tables = (per_label(labels, spec.get(x, name).long(), spec["cell"].size) for name in ("type", "mother", "age"))
        return cls(labels, *tables)

    def write(self, spec: StateSpec) -> Tensor:
        """Return states (batch, y, x, channel)."""
        values = {name: per_pixel(getattr(self, name), self.labels) for name in ("type", "mother", "age")}
        return spec.pack(cell=self.labels, **values)

    @property
    def present(self) -> Tensor:
        """Whether a label has a pixel: (batch, label), without the medium."""
        there = per_label(self.labels, torch.ones_like(self.labels), self.type.shape[-1]) > 0
        return there & (torch.arange(there.shape[-1], device=there.device) > 0)

    def used(self) -> Tensor:
        """Return which labels are those of cells or of their mothers, and label 0: (batch, label)."""
        used = self.present.scatter(-1, self.mother, value=True)
        return used.index_fill(-1, torch.zeros(1, dtype=torch.int64, device=used.device), value=True)

    def __getitem__(self, rows: Tensor) -> CellTables:
        return CellTables(self.labels[rows], self.type[rows], self.mother[rows], self.age[rows])


@dataclass(frozen=True)
class Numbering:
    """Numbers 1, 2, ... for the cells that are there, so that networks see no empty labels.

    Parameters
    ----------
    number : Tensor, (batch, label)
        Of every label; those of no cell have the last one, of which there is no pixel.
    name : Tensor, (batch, number - 1)
        The label of every number, 0 where there is no cell.
    """

    number: Tensor
    name: Tensor

    @classmethod
    def of(cls, cells: CellTables) -> Numbering:
        there = cells.present
        last = int(there.sum(-1).max()) + 1
        number = torch.where(there, there.cumsum(-1), last)
        number[:, 0] = 0
        label = torch.arange(there.shape[-1], device=there.device).expand_as(there)
        name = torch.zeros(len(there), last + 1, dtype=torch.int64, device=there.device).scatter(-1, number, torch.where(there, label, 0))
        return cls(number, name[:, 1:])

    def numbers(self, labels: Tensor) -> Tensor:
        """Turn images of labels (batch, y, x) into images of numbers."""
        return per_pixel(self.number, labels)

    def labels(self, numbers: Tensor) -> Tensor:
        """Turn images of numbers (batch, y, x) into images of labels."""
        return per_pixel(F.pad(self.name, (1, 0)), numbers)

    def of_cells(self, table: Tensor) -> Tensor:
        """Read a table (batch, label) by number: (batch, number - 1)."""
        return table.gather(-1, self.name)

    def __getitem__(self, rows: Tensor) -> Numbering:
        return Numbering(self.number[rows], self.name[rows])


@dataclass(frozen=True)
class Happened:
    """What happened to the cells of some states.

    Parameters
    ----------
    event : Tensor, (batch, label - 1)
        See `epns_pyro.models.tissues.events`.
    daughters : Tensor, (batch, label, 2)
        The labels of the daughters in the first and second half of a cell that divides; else 0.
    """

    event: Tensor
    daughters: Tensor


def read_events(before: CellTables, after: CellTables, numbering: Numbering, halves: Halves, known: Tensor | None = None) -> Happened:
    """Find what happened between two states, each (batch, ...); `halves` are those of the present cells by number.

    A cell that is gone without daughters died. One with more or fewer than two, or that lost a daughter at once, is `UNKNOWN`. Events that
    are `known` (batch, label - 1) say along which directions cells divided.
    """
    there, next_there = before.present, after.present
    new = next_there & ~there & (after.mother > 0)
    mother = torch.where(new, after.mother, 0)
    count = torch.zeros_like(mother).scatter_add(-1, mother, new.long())
    label = torch.arange(there.shape[-1], device=there.device).expand_as(there)
    largest = there.shape[-1]
    one = torch.full_like(mother, largest).scatter_reduce(-1, mother, torch.where(new, label, largest), "amin")
    other = torch.zeros_like(mother).scatter_reduce(-1, mother, torch.where(new, label, 0), "amax")
    gone = there & ~next_there
    parted = gone & (count == 2)
    pair = torch.stack([one, other], -1) * parted[..., None]
    direction, swapped, possible = _sides(before, after, pair, numbering, halves, known)
    parted = parted & possible
    daughters = torch.where(swapped[..., None], pair.flip(-1), pair) * parted[..., None]
    event = torch.where(gone, torch.where(count == 0, DIES, UNKNOWN), STAYS)
    return Happened(torch.where(parted, DIVIDES + direction, event)[:, 1:], daughters)


def _sides(
    before: CellTables, after: CellTables, pair: Tensor, numbering: Numbering, halves: Halves, known: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Find along which direction the daughters `pair` (batch, label, 2) of every label lie, and whether the first is in the second half.

    Returns
    -------
    direction, swapped, possible : Tensor, (batch, label)
        `possible` is False for a cell that no direction divides.
    """
    tissue, flat = halves.tissue, before.labels.flatten(-2)
    one, other = pair.gather(1, flat[..., None].expand(-1, -1, 2)).unbind(-1)
    seen = after.labels.flatten(-2)
    sign = ((seen == one).long() - (seen == other).long()) * ((flat > 0) & (one > 0))
    votes = sign[..., None] * (1 - 2 * halves.second.long())
    total = votes.new_zeros(len(votes), pair.shape[1], DIRECTIONS).scatter_add(1, flat[..., None].expand(votes.shape), votes)
    able = torch.zeros(len(votes), pair.shape[1], DIRECTIONS, dtype=torch.bool, device=votes.device)
    able = able.scatter(1, numbering.name[..., None].expand(-1, -1, DIRECTIONS), halves.possible)
    preferred = torch.arange(DIRECTIONS - 1, -1, -1, device=votes.device)  # of equals the first
    direction = torch.where(able, total.abs() * DIRECTIONS + preferred, -1).argmax(-1)
    if known is not None:
        told = F.pad(known, (1, 0))
        direction = torch.where(told >= DIVIDES, told - DIVIDES, direction)
    vote = total.gather(-1, direction[..., None])[..., 0]
    swapped = vote < 0
    if bool(((vote == 0) & (pair[..., 0] > 0)).any()):
        swapped = torch.where(vote == 0, ~_comes_first(tissue, numbering, seen, pair), swapped)
    return direction, swapped, able.any(-1)


def _comes_first(tissue: Tissue, numbering: Numbering, seen: Tensor, pair: Tensor) -> Tensor:
    """Return whether the first daughter of a pair has the first pixel, row by row from the mother's middle: (batch, label)."""
    first = torch.zeros(pair.shape[:2], dtype=torch.bool, device=pair.device)
    centres = torch.zeros(*pair.shape[:2], 2, dtype=torch.int64, device=pair.device)
    centres = centres.scatter(1, numbering.name[..., None].expand(-1, -1, 2), tissue.centres)
    height, width = tissue.lattice
    for row, mother in (pair[..., 0] > 0).nonzero().tolist():
        offset = from_point(tissue, centres[row, mother].expand(1, height * width, 2))[0]
        order = (offset[:, 0] + height) * 4 * width + offset[:, 1] + width
        ranks = [torch.where(seen[row] == daughter, order, 2**62).min() for daughter in pair[row, mother]]
        first[row, mother] = ranks[0] < ranks[1]
    return first


def let_happen(cells: CellTables, happened: Happened, numbering: Numbering, halves: Halves) -> CellTables:
    """Return the tissue right after the events, before cells move on.

    Pixels of cells that died, or of which nothing is known, are medium; those of cells that divided are their daughters', whose age is 0.
    """
    event = F.pad(happened.event, (1, 0))
    flat = cells.labels.flatten(-2)
    here = event.gather(-1, flat)
    direction = (here - DIVIDES).clamp_min(0)
    second = halves.second.gather(-1, direction[..., None])
    daughter = happened.daughters.gather(1, flat[..., None].expand(-1, -1, 2)).gather(-1, second.long())[..., 0]
    after = torch.where(here >= DIVIDES, daughter, torch.where((here == DIES) | (here == UNKNOWN), 0, flat))
    type_, mother, age = cells.type, cells.mother, cells.age
    label = torch.arange(type_.shape[-1], device=flat.device).expand_as(type_)
    for half in happened.daughters.unbind(-1):  # label 0 takes what cells without daughters write, and is cleared below
        type_, mother, age = type_.scatter(-1, half, cells.type), mother.scatter(-1, half, label), age.scatter(-1, half, 0)
    medium = torch.zeros(1, dtype=torch.int64, device=flat.device)
    type_, mother, age = (table.index_fill(-1, medium, 0) for table in (type_, mother, age))
    return CellTables(after.view(cells.labels.shape), type_, mother, age)


def grown(cells: CellTables, before: CellTables, labels: Tensor) -> CellTables:
    """Return the next state with images `labels` (batch, y, x) of cells after the events: ages of cells that were there `before` grow."""
    age = (cells.age + before.present.long()).clamp_max(AGES - 1)
    return CellTables(labels, cells.type, cells.mother, age)


def named_at_random(event: Tensor, free: Tensor) -> Tensor:
    """Give the daughters of cells that divide free labels at random, each order alike: (batch, label, 2).

    Parameters
    ----------
    event : Tensor, (batch, label - 1)
    free : Tensor, (batch, label)
        At least two for every division.
    """
    divides = F.pad(event, (1, 0)) >= DIVIDES
    lot = torch.rand(free.shape, device=free.device) + ~free
    order = lot.argsort(-1)  # free labels first
    place = 2 * (divides.cumsum(-1) - 1).clamp_min(0)
    pairs = [order.gather(-1, (place + half).clamp_max(free.shape[-1] - 1)) for half in (0, 1)]
    return torch.stack(pairs, -1) * divides[..., None]
