"""The transition of label images of cells, with latents per cell."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Literal

import pydantic
from pyro.distributions import Independent
from torch import Tensor, nn

from epns_pyro.backbones.tissues.base import GRIDS, GridConfig, GridSignature
from epns_pyro.backbones.tissues.tissue import Crops, Size, Tissue
from epns_pyro.config import one_of
from epns_pyro.context import DataContext
from epns_pyro.errors import ConfigError
from epns_pyro.lineage import has_lineage
from epns_pyro.models.normal import Normal
from epns_pyro.models.tissues.label_images import LabelImage
from epns_pyro.models.tissues.pixel_scores import PixelScores
from epns_pyro.models.transition import TRANSITIONS, Carry, Observed, Step, Transition, TransitionConfig, bounded_exp
from epns_pyro.state import StateSpec

WINDOW_PIXELS = 64 * 64 * 17**2  # of all windows of a block of images; 1.2 million take about 2 GB


class CellsTransition(Transition):
    """EPNS for cells: equivariant under relabelling of cells, and under shifts of a periodic lattice, if its network is."""

    hidden_event_dim = 2

    def __init__(self, config: CellsModelConfig, context: DataContext) -> None:
        super().__init__()
        self.config, self.spec = config, context.spec
        self.label, self.types = label_fields(context.spec)
        signature = config.signature(context)
        types = signature.types
        self.network = config.network.build(signature, config.latent)
        net, latent = self.network, config.latent
        windows = (self.spec[self.label].size - 1) * math.prod(net.window(Size(*context.sites)))
        self.block_size = max(1, min(64, WINDOW_PIXELS // windows))
        self.scores = PixelScores(
            net.width,
            types,
            config.interlacing,
            config.neighbourhood,
            config.revisions,
            config.sweeps,
            config.training_sweeps,
            distances=config.distances,
            separate=config.pseudo_likelihood,
            apart=config.apart,
        )
        hidden = config.prior_width
        self.prior_net = nn.Sequential(nn.Linear(net.summary_width, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent))
        self.posterior_net = nn.Sequential(nn.Linear(net.innovation_width, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent))
        self.direct = nn.Linear(net.innovation_width, latent)  # a linear path from the features of a cell's next image to its latents
        for last in (self.prior_net[-1], self.posterior_net[-1], self.direct):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def step(self, carry: Carry) -> Step:
        return CellsStep(self, carry)

    @property
    def sampling_rule(self) -> str:
        """How an image is drawn, in words for reports."""
        count = len(self.scores.classes)
        if count == 1:
            return (
                "ancestral: latents from the prior, then every pixel independently from its Categorical; the likelihood is of the same law"
            )
        drawn = (
            f"ancestral: latents from the prior, then the pixels in {count} interlaced classes, each from its Categorical given the pixels "
            "drawn before"
        )
        if sweeps := self.config.sweeps:
            return f"{drawn}; then all pixels again, each given all others, {sweeps} times; the likelihood is an unbiased estimate"
        return f"{drawn}: an exact draw; the likelihood is of the same law"

    def tissue(self, x: Tensor) -> Tissue:
        """Read full states (*batch, y, x, channel) as a tissue."""
        labels = self.spec.get(x, self.label).long()
        if self.types:
            types = self.spec.entity_property(x, self.types)[..., 1:].long()
        else:
            flat = labels.flatten(-2)
            types = flat.new_zeros(*flat.shape[:-1], self.spec[self.label].size).scatter(-1, flat, 1)[..., 1:]
        window = self.network.window(Size(*labels.shape[-2:]))
        return Tissue(labels, types, self.spec.periodic, reach=max(window) // 2 + 1)


class CellsStep(Step):
    """The laws of one step of a label image; the image becomes a tissue once. h is (*batch, row, width).

    A tissue may be given, and its h, where they are not those of the state.
    """

    def __init__(self, transition: CellsTransition, carry: Carry, tissue: Tissue | None = None, h: Tensor | None = None) -> None:
        self.transition, self.tissue = transition, transition.tissue(carry.x) if tissue is None else tissue
        super().__init__(transition.spec, carry, transition.network.hidden(self.tissue) if h is None else h)

    @cached_property
    def prior(self) -> Independent:
        """p(z | h) = Normal(mu(h), sigma(h)) of every cell; Normal(0, 1) of absent cells."""
        mean, log_scale = self._of_cells(self.transition.prior_net(self.transition.network.summary(self.tissue, self.h)))
        return Normal(mean, bounded_exp(log_scale)).to_event(2)

    @cached_property
    def _crops(self) -> Crops:
        return self.transition.network.crops(self.tissue)

    def emission(self, z: Tensor) -> LabelImage:
        """p(x' | h, z): see `LabelImage`."""
        transition = self.transition
        draft = transition.network.draft(self.tissue, self.h, z)
        return LabelImage(self.tissue, self._crops, draft, transition.scores, transition.config.floor)

    def observe(self, emission: LabelImage, x_next: Tensor) -> Observed:
        """Return what scores all pixels but those of cells that appear in this step, for which the model has no law."""
        return Observed(emission.given_new(), self.spec.dynamic(x_next))

    def posterior(self, x_next: Tensor) -> Independent:
        """q(z | h, x') = Normal(mu_p + sigma_p a(h, x'), sigma_p exp(b(h, x'))): at first, and for absent cells, the prior."""
        return self.posterior_of(self.spec.get(x_next, self.transition.label).long())

    def posterior_of(self, labels: Tensor) -> Independent:
        """The same, of next images labels (*batch, y, x)."""
        transition, tissue = self.transition, self.tissue
        following = tissue.with_labels(labels)
        innovation = transition.network.innovation(tissue, self.h, following)
        shift, log_scale = self._of_cells(transition.posterior_net(innovation))
        shift = shift + transition.direct(innovation) * tissue.present[..., None]
        prior = self.prior.base_dist
        return Normal(prior.loc + prior.scale * shift, prior.scale * bounded_exp(log_scale)).to_event(2)

    def _of_cells(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Two numbers per latent and cell, zero for absent cells."""
        first, second = (numbers * self.tissue.present[..., None]).chunk(2, -1)
        return first, second


def label_fields(spec: StateSpec) -> tuple[str, str]:
    """Return the names of the field of labels and of the field of types, "" where there is none.

    Raises
    ------
    ConfigError
        If the state is not a label image.
    """
    if has_lineage(spec):
        return "cell", "type"
    dynamic = [f.name for f in spec.dynamic_fields]
    if len(dynamic) != 1 or spec[dynamic[0]].kind != "label" or len(spec.sites) != 2:
        raise ConfigError(f"a model of cells needs one dynamic field, of labels, on a two-dimensional lattice; found {', '.join(dynamic)}")
    static = [f.name for f in spec.static_fields]
    if len(static) > 1 or any(spec[name].kind != "category" or not spec[name].of for name in static):
        raise ConfigError(f"a model of cells takes one static field at most, the type of every cell; found {', '.join(static)}")
    return dynamic[0], static[0] if static else ""


@TRANSITIONS.register("cells")
class CellsModelConfig(TransitionConfig):
    """EPNS for cells."""

    name: Literal["cells"] = "cells"
    network: Annotated[GridConfig, one_of(GRIDS)] = pydantic.Field(default="windows", validate_default=True)
    latent: int = pydantic.Field(default=16, gt=0, description="latent dimensions per cell")
    interlacing: Literal[1, 2, 4, 8] = pydantic.Field(
        default=8, description="side of the dither pattern that orders the pixels; a pixel sees those drawn before it; 1: all independent"
    )
    neighbourhood: int = pydantic.Field(
        default=7, ge=3, description="side of the square of pixels around a pixel that its scores depend on"
    )
    revisions: tuple[pydantic.PositiveInt, ...] = pydantic.Field(
        default=(), description="numbers of drawn classes of pixels after which the features of the next image are revised"
    )
    sweeps: int = pydantic.Field(
        default=0, ge=0, le=100, description="how often every pixel is drawn again, given all others; the log-likelihood is then a bound"
    )
    training_sweeps: int | None = pydantic.Field(
        default=None,
        ge=1,
        le=100,
        description="the same in the law that training scores, at most `sweeps`: fewer are faster",
    )
    apart: int = pydantic.Field(
        default=4,
        ge=1,
        description="least distance of pixels that a sweep draws at the same time, at most `interlacing`; cells that are "
        "smaller keep their areas",
    )
    pseudo_likelihood: bool = pydantic.Field(
        default=False,
        description="whether sweeps have weights of their own, which training fits to recorded images: each pixel given all others",
    )
    distances: bool = pydantic.Field(
        default=False, description="whether a pixel sees how far it is from where the centre of each cell is expected"
    )
    floor: float = pydantic.Field(default=1e-6, gt=0, lt=0.1, description="weight of a uniform law over the labels in the law of a pixel")
    prior_width: int = pydantic.Field(default=64, gt=0, description="hidden channels of the networks of prior and posterior")

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> CellsModelConfig:
        if self.sweeps and self.interlacing == 1:
            raise ValueError("sweeps need pixels that depend on each other: set sweeps to 0, or interlacing above 1")
        return self

    def build(self, context: DataContext) -> CellsTransition:
        from epns_pyro.models.tissues.dividing import DividingTransition  # it is built on this module

        return (DividingTransition if has_lineage(context.spec) else CellsTransition)(self, context)

    def doubt(self, context: DataContext) -> str:
        return self.network.doubt(self.signature(context))

    def signature(self, context: DataContext) -> GridSignature:
        """Return what the network has to know about the data."""
        label, type_ = label_fields(context.spec)
        types = context.spec[type_].size - 1 if type_ else 1
        return GridSignature(types, context.spec[label].size - 1, Size(*context.sites), context.cell_reach, has_lineage(context.spec))
