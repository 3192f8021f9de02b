"""The transition of cells that divide and die: events first, then the next image of the cells that there are after them.

    h  = f(x)
    z  ~ p(z | h)                                 of every label; Normal(0, 1) of those without a cell
    e  ~ p(e | h) = prod over cells Categorical   see `epns_pyro.models.tissues.events`
    x~ = x with dead cells taken out and dividing cells cut in two, x' ~ p(x' | f(x~), z)

The image has the law of cells that do not divide (`epns_pyro.models.tissues.label_images`), from the tissue x~. In a recorded step events
are seen, so their law is scored and not inferred. Free labels, which daughters get at random, are no part of a density: it is that of the
next state up to the names of cells that are born in it. A cell that loses all pixels to others without an event is drawn, but in a
recording it is a death: the score is a lower bound there, by the chance of this.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from epns_pyro.backbones.tissues.tissue import AREA_FEATURES, Size, Tissue, area_features
from epns_pyro.context import DataContext
from epns_pyro.models.normal import Normal, Shape
from epns_pyro.models.tissues.cells import CellsModelConfig, CellsStep, CellsTransition
from epns_pyro.models.tissues.division import CellTables, Happened, Numbering, grown, let_happen, named_at_random, read_events
from epns_pyro.models.tissues.events import STAYS, Events, Halves, event_scores
from epns_pyro.models.tissues.label_images import LabelImage
from epns_pyro.models.transition import Carry, Observed, Step
from epns_pyro.once import once

RARE = 1e-4  # the least first guess of the rates of events, per cell and step
FOCUS = 4.0  # the first guess of how strongly divisions follow the long axis


class DividingTransition(CellsTransition):
    """EPNS for cells that divide and die, on states with lineage (see `epns_pyro.lineage`)."""

    def __init__(self, config: CellsModelConfig, context: DataContext) -> None:
        super().__init__(config, context)
        hidden, summary = config.prior_width, self.network.summary_width
        described = 2 * AREA_FEATURES + config.signature(context).types + 1
        self.event_net = nn.Sequential(nn.Linear(summary + described, hidden), nn.SiLU(), nn.Linear(hidden, 4))
        last = cast(nn.Linear, self.event_net[-1])
        nn.init.zeros_(last.weight)
        deaths, divisions = (max(rate, RARE) for rate in context.event_rates or (RARE, RARE))
        with torch.no_grad():
            last.bias.copy_(torch.tensor([1 - deaths - divisions, deaths, divisions, 1.0]).clamp_min(RARE).log())

    def step(self, carry: Carry) -> DividingStep:
        return DividingStep(self, carry if carry.memory else self.start(carry.x))

    def start(self, x0: Tensor) -> Carry:
        """Return the carry at full states (*batch, *site, channel); it remembers which labels are used."""
        used = CellTables.read(self.spec, x0.reshape(-1, *x0.shape[-3:])).used()
        return Carry(x0, (used.view(*x0.shape[:-3], -1),))

    def remembered(self, carry: Carry, following: Tensor) -> tuple[Tensor, ...]:
        return (carry.memory[0] | self.start(following).memory[0],)

    @property
    def sampling_rule(self) -> str:
        return f"every cell first stays, dies or divides, then the image is drawn; {super().sampling_rule}"

    def chances(self, step: CellsStep) -> tuple[Tensor, Tensor]:
        """Return scores of staying, dying and dividing, (batch, cell, 3), and how strongly divisions follow the long axis (batch, cell)."""
        tissue, dtype = step.tissue, step.h.dtype
        summary = self.network.summary(tissue, step.h)
        kinds = F.one_hot(tissue.types, self.scores.types + 1).to(dtype)
        about = [summary, area_features(tissue.areas.to(dtype)), area_features(tissue.known_ages.to(dtype)), kinds]
        scores, focus = self.event_net(torch.cat(about, -1)).split([3, 1], -1)
        return scores, FOCUS * focus[..., 0].exp().clamp_max(10.0)

    def inner(self, cells: CellTables, numbering: Numbering) -> Tissue:
        """Return the tissue that networks see."""
        labels = numbering.numbers(cells.labels)
        window = self.network.window(Size(*labels.shape[-2:]))
        types, ages = numbering.of_cells(cells.type), numbering.of_cells(cells.age)
        return Tissue(labels, types, self.spec.periodic, max(window) // 2 + 1, ages)


class DividingStep(Step):
    """The laws of one step; a batch is flattened to rows, and cells are numbered without gaps."""

    def __init__(self, transition: DividingTransition, carry: Carry) -> None:
        self.transition, self.batch = transition, carry.x.shape[:-3]
        self.cells = CellTables.read(transition.spec, carry.x.reshape(-1, *carry.x.shape[-3:]))
        self.numbering = Numbering.of(self.cells)
        self.inner = CellsStep(transition, carry, transition.inner(self.cells, self.numbering))
        self.halves = Halves(self.inner.tissue)
        h = self.inner.h
        super().__init__(transition.spec, carry, h.view(*self.batch, *h.shape[1:]))

    @property
    def used(self) -> Tensor:
        """Which labels are not free: (row, label)."""
        return self.carry.memory[0].reshape(len(self.cells.labels), -1)

    @once
    def events(self) -> Events:
        """p(e | h), see `Events`: (*batch, label - 1)."""
        scores = event_scores(*self.transition.chances(self.inner), self.halves)
        scores, names, free = (part.view(*self.batch, *part.shape[1:]) for part in (scores, self.numbering.name, ~self.used))
        return Events(scores, names, free)

    @once
    def prior(self) -> Independent:
        return self._by_label(self.inner.prior)

    def posterior(self, x_next: Tensor) -> Independent:
        following = CellTables.read(self.spec, x_next.reshape(-1, *x_next.shape[-3:]))
        numbers = self.numbering.numbers(following.labels)
        numbers = torch.where(numbers > self.inner.tissue.cells - 1, 0, numbers)  # cells that are born are not among the present ones
        return self._by_label(self.inner.posterior_of(numbers))

    def emission(self, z: Tensor) -> NextTissue:
        """p(e, x' | h, z), see `NextTissue`."""
        return NextTissue(self, z)

    def observe(self, emission: TorchDistribution, x_next: Tensor) -> Observed:
        """Return what scores events and all pixels but those of cells that appear without a mother."""
        return Observed(emission, self.spec.dynamic(x_next))

    def advance(self, y: Tensor, following: Tensor | None = None) -> Carry:
        now = self.transition.start(y)
        return Carry(y, (now.memory[0] | self.carry.memory[0],))

    def seen_events(self, x_next: Tensor) -> Tensor:
        return NextTissue(self, self.h.new_zeros(self.spec["cell"].size - 1, self.transition.config.latent)).read(x_next)

    def after_events(self, emission: TorchDistribution, event: Tensor) -> NextTissue:
        return cast(NextTissue, emission).given(event)

    def _by_label(self, law: Independent) -> Independent:
        """Give a law of latents by number, (row, number - 1, latent), the labels; Normal(0, 1) for those without a cell."""
        name, labels = self.numbering.name, self.spec["cell"].size
        index = name[..., None].expand(law.base_dist.loc.shape)
        loc = law.base_dist.loc.new_zeros(len(name), labels, index.shape[-1]).scatter(1, index, law.base_dist.loc)
        scale = law.base_dist.scale.new_ones(loc.shape).scatter(1, index, law.base_dist.scale)
        loc, scale = (part[:, 1:].view(*self.batch, labels - 1, -1) for part in (loc, scale))
        return Normal(loc, scale).to_event(2)


class NextTissue(TorchDistribution):
    """p(e, x' | h, z) = p(e | h) p(x' | f(x~), z): what happens to cells, and the next image; both are in the next state.

    Values are all channels of a state with lineage, (*batch, y, x, channel): which cells are born shows in their mothers. Without
    their names: see the module.

    Parameters
    ----------
    step : DividingStep
    z : Tensor, (*sample, *batch, label - 1, latent)
    event : Tensor, (*batch, label - 1), optional
        Events that have happened; then it is p(x' | f(x~), z) alone.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 3)

    def __init__(self, step: DividingStep, z: Tensor, event: Tensor | None = None, batch_shape: torch.Size | None = None) -> None:
        self.step, self.z, self.event = step, z, event
        shape = batch_shape or torch.broadcast_shapes(step.batch, z.shape[:-2], () if event is None else event.shape[:-1])
        super().__init__(shape, step.carry.x.shape[-3:], validate_args=False)

    def expand(self, batch_shape: Shape, _instance: NextTissue | None = None) -> NextTissue:
        return NextTissue(self.step, self.z, self.event, torch.Size(batch_shape))

    def given(self, event: Tensor) -> NextTissue:
        """Return the law of the next state, given what happens to cells: (*batch, label - 1)."""
        return NextTissue(self.step, self.z, event)

    def read(self, x_next: Tensor) -> Tensor:
        """Return what happened up to a next state (*batch, y, x, channel): (*batch, label - 1)."""
        batch = torch.broadcast_shapes(self.step.batch, x_next.shape[:-3])
        return self._read(x_next.expand(*batch, *x_next.shape[-3:]), batch).event.view(*batch, -1)

    # -- scoring -----------------------------------------------------------------------------------------------------------

    def log_prob(self, value: Tensor) -> Tensor:
        """Score next states (*batch, y, x, channel): nats, (*batch,); minus infinity for other events than those given."""
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-3])
        value = value.expand(*batch, *value.shape[-3:])
        happened = self._read(value, batch)
        labels = self.step.spec.get(value, "cell").reshape(-1, *value.shape[-3:-1]).long()
        score = self.z.new_zeros(len(labels))
        for part in self._parts(happened, self._after(happened, batch), batch):
            numbers = part.numbering.numbers(labels[part.rows])
            score = score.index_put((part.rows,), part.law.given_new().log_prob(numbers[..., None]))
        if self.event is None:
            return score.view(batch) + self.step.events.log_prob(happened.event.view(*batch, -1))
        same = (happened.event.view(*batch, -1) == self.event).all(-1)
        return torch.where(same, score.view(batch), -torch.inf)

    def _read(self, value: Tensor, batch: torch.Size) -> Happened:
        rows, following = self._rows(batch), CellTables.read(self.step.spec, value.reshape(-1, *value.shape[-3:]))
        known = None if self.event is None else self.event.expand(*batch, -1).reshape(len(rows), -1)
        return read_events(self.step.cells[rows], following, self.step.numbering[rows], self._halves(batch), known)

    # -- drawing -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, sample_shape: Shape = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch.distributions)
        batch = torch.Size((*sample_shape, *self.batch_shape))
        event = self.step.events.expand(batch).sample() if self.event is None else self.event.expand(*batch, -1)
        event = event.reshape(-1, event.shape[-1])
        happened = Happened(event, named_at_random(event, ~self.step.used[self._rows(batch)]))
        return self._draw(happened, batch, likeliest=False)

    @property
    @torch.no_grad()
    def mean(self) -> Tensor:
        """The state that mean feedback uses: cells stay, unless events are given, and every pixel has its most probable label."""
        batch = self.batch_shape
        event = torch.tensor(STAYS, device=self.z.device) if self.event is None else self.event
        event = event.expand(*batch, self.step.spec["cell"].size - 1).reshape(batch.numel(), -1)
        happened = Happened(event, named_at_random(event, ~self.step.used[self._rows(batch)]))
        return self._draw(happened, batch, likeliest=True)

    def _draw(self, happened: Happened, batch: torch.Size, *, likeliest: bool) -> Tensor:
        before, after = self.step.cells[self._rows(batch)], self._after(happened, batch)
        labels = torch.empty_like(after.labels)
        for part in self._parts(happened, after, batch):
            numbers = part.law.mode if likeliest else part.law.sample()
            labels[part.rows] = part.numbering.labels(numbers[..., 0])
        state = grown(after, before, labels).write(self.step.spec)
        return state.view(*batch, *self.event_shape).to(self.step.carry.x.dtype)

    # -- the images --------------------------------------------------------------------------------------------------------

    def _rows(self, batch: torch.Size) -> Tensor:
        """Return the row of the step that each of the states of a larger batch starts from: (state,)."""
        return torch.arange(self.step.batch.numel(), device=self.z.device).view(self.step.batch).expand(batch).flatten()

    def _halves(self, batch: torch.Size) -> Halves:
        return self.step.halves if batch == self.step.batch else Halves(_tissue_of(self.step.inner.tissue, self._rows(batch)))

    def _after(self, happened: Happened, batch: torch.Size) -> CellTables:
        rows = self._rows(batch)
        return let_happen(self.step.cells[rows], happened, self.step.numbering[rows], self._halves(batch))

    def _parts(self, happened: Happened, after: CellTables, batch: torch.Size) -> list[_Part]:
        """Return the laws of the states in which nothing happens, whose features are known, and of the others."""
        step, rows = self.step, self._rows(batch)
        z = F.pad(self.z.expand(*batch, -1, -1).reshape(len(rows), *self.z.shape[-2:]), (0, 0, 1, 0))

        def part(here: Tensor, numbering: Numbering, inner: CellsStep) -> _Part:
            index = numbering.name[..., None].expand(-1, -1, z.shape[-1])
            return _Part(here, numbering, inner.emission(z[here].gather(1, index)))

        eventful = (happened.event != STAYS).any(-1)
        quiet, loud = (mask.nonzero()[:, 0] for mask in (~eventful, eventful))
        found = []
        if len(quiet):
            tissue, h = _tissue_of(step.inner.tissue, rows[quiet]), step.inner.h[rows[quiet]]
            found.append(part(quiet, step.numbering[rows[quiet]], CellsStep(step.transition, step.carry, tissue, h)))
        if len(loud):
            there = after[loud]
            numbering = Numbering.of(there)
            found.append(part(loud, numbering, CellsStep(step.transition, step.carry, step.transition.inner(there, numbering))))
        return found


class _Part(NamedTuple):
    """The law of the images, of numbers, of some states."""

    rows: Tensor
    numbering: Numbering
    law: LabelImage


def _tissue_of(tissue: Tissue, rows: Tensor) -> Tissue:
    return Tissue(tissue.labels[rows], tissue.types[rows], tissue.periodic, tissue.reach, tissue.known_ages[rows])
