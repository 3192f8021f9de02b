"""Conversion between states of bodies and features of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro.distributions import Independent
from torch import Tensor, nn

from epns_pyro.backbones import Backbone, BackboneConfig, Features, Signature
from epns_pyro.backbones.bodies.handed import Handed
from epns_pyro.context import DataContext
from epns_pyro.derived import complete, free_fields
from epns_pyro.durations import along, duration, noise_power, relative
from epns_pyro.errors import ConfigError
from epns_pyro.models.normal import masked
from epns_pyro.models.transition import Observed
from epns_pyro.presence import presence, presence_dynamic
from epns_pyro.state import StateSpec

MOST_CHANNELS = 128  # of the embedding of a category; at most its number of classes


class BodyFields(nn.Module):
    """The fields of states of bodies, by their role in a model.

    A module, because the classes of categories are embedded; class numbers have no order, so all embeddings start at zero.

    Attributes
    ----------
    position : str
        The one field that translates.
    vectors, scalars, categories, pairs : tuple of str
        All other fields that a network reads.
    free : StateSpec
        The fields that a network predicts, as a spec of their own; all other dynamic fields follow from them (see `epns_pyro.derived`).
    dynamic_vectors, dynamic_scalars : tuple of Field
        Vectors and scalars among them.
    rates : dict of str to str
        The rate of every field that has one.
    embeddings : ParameterList of Tensor, (class, channel)
        What networks read of the classes, per category.
    """

    def __init__(self, context: DataContext) -> None:
        super().__init__()
        spec = self.spec = context.spec
        self.frame_dt, self.absences, self._bodies = context.frame_dt, context.absences, context.sites[0]
        self.position = position_field(spec)
        self.space = spec.geometry
        fixed_centre = not spec[self.position].translates  # then where a body is matters, not only where it is relative to others
        self.vectors = tuple(f.name for f in spec.fields if f.is_vector and f.kind == "real" and (fixed_centre or f.name != self.position))
        self.scalars = tuple(f.name for f in spec.fields if not f.is_vector and f.kind == "real")
        self.categories = tuple(f.name for f in spec.fields if f.kind == "category")
        self.embeddings = nn.ParameterList(torch.zeros(shape) for shape in embedding_shapes(spec))
        self.pairs = tuple(f.name for f in spec.fields if f.is_pair)
        self.free = StateSpec(tuple(replace(f, rate_of="", differences=False, hidden=False) for f in free_fields(spec)), space=spec.space)
        self.dynamic_vectors = tuple(f for f in free_fields(spec) if f.is_vector)
        self.dynamic_scalars = tuple(f for f in free_fields(spec) if not f.is_vector)
        self.rates = {f.rate_of: f.name for f in spec.fields if f.rate_of}
        self.differences = {f.name: f.rate_of for f in spec.fields if f.differences}
        self._lags = {f.name: f.lag_of for f in spec.fields if f.lag_of}
        self._changes = {name: context.step_scales[name] for name in self._lags}
        self._noise_powers = torch.tensor([noise_power(spec, spec[f.name]) for f in self.free.fields])
        self._static = torch.tensor([not f.dynamic for f in spec.fields for _ in range(spec.width(f))])
        self.widths = torch.tensor([spec.width(f) for f in self.free.fields])

    # -- reading ---------------------------------------------------------------------------------------------------------

    @property
    def feature_counts(self) -> tuple[int, int]:
        """Scalars and vectors per body that `features` returns."""
        scalars = 2 * len(self.scalars) + (self.spec.duration is not None) + sum(channels for _, channels in embedding_shapes(self.spec))
        return scalars, len(self.vectors) + len(self.space.special_directions)

    def build(
        self, config: BackboneConfig, in_scalars: int, in_vectors: int, out_scalars: int, out_vectors: int, *, pairs: bool = False
    ) -> Backbone:
        """Build a network for these bodies, with so many channels per body; it is handed where the symmetry is.

        With `pairs` it reads the attributes of pairs too.
        """
        box = tuple(side / self.spec[self.position].scale for side in self.space.box)
        handed = self.space.rotations == "proper" and out_vectors > 0
        made = Handed.vectors(self.space.dim) * out_vectors if handed else out_vectors
        read = len(self.pairs) if pairs else 0
        own, axes = self.space.own_box, self.space.rotations == "axes"
        network = config.build(
            Signature(in_scalars, in_vectors, out_scalars, made, self.space.dim, self._bodies, box, read, own_box=own, axes=axes)
        )
        return Handed(network) if handed else network

    def positions(self, x: Tensor) -> Tensor:
        """Positions in units of their scale, (*batch, body, space)."""
        return self.spec.get(x, self.position) / self.spec[self.position].scale

    def present(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return which bodies are present, (*batch, body), in states with NaN for absent ones.

        Returns the states with zeros in place of NaN, and None for the bodies where the data know no absences.
        """
        if not self.absences:
            return x, None
        mask = presence(self.spec, x)
        return self.blanked(x, mask), mask

    def blanked(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return states (*batch, body, channel) with zeros in dynamic channels of bodies where a mask (*batch, body) is False."""
        return torch.where(mask[..., None] | self._static.to(x.device), x, 0.0)

    def features(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Return all other fields in units of their scales; scalars twice, the second time on a scale that resolves small values.

        A category is the embedding of the body's class, a duration the logarithm of its ratio to the nominal one.
        """
        spec = self.spec
        scalars = torch.stack([spec.get(x, name) / spec[name].scale for name in self.scalars], -1) if self.scalars else x[..., :0]
        embedded = zip(self.categories, self.embeddings, strict=True)
        classes = [self._one_hot(spec.get(x, name), spec[name].size) @ embedding.to(x.dtype) for name, embedding in embedded]
        durations = [] if (ratio := relative(spec, x)) is None else [ratio.log()[..., None]]
        scalars = torch.cat([scalars, torch.asinh(10 * scalars), *durations, *classes], -1)
        return Features(scalars, self.arrows(x, {}), mask, self.attributes(x), self.sides(x))

    def arrows(self, x: Tensor, now: Mapping[str, Tensor]) -> Tensor:
        """Return the vectors of `features`, (*batch, body, vector, space), of states x in which some fields are as they are `now`."""

        def read(name: str) -> Tensor:
            return now[name] if name in now else self.spec.get(x, name)

        vectors = [self._vector(read, name) for name in self.vectors]
        vectors += [x.new_tensor(direction).expand(*x.shape[:-1], -1) for direction in self.space.special_directions]
        if len(vectors) == 1:
            return vectors[0].unsqueeze(-2)
        return torch.stack(vectors, -2) if vectors else x.new_zeros(*x.shape[:-1], 0, self.spec.space)

    def sides(self, x: Tensor) -> Tensor | None:
        """Return the sides of the boxes of states in units of positions, (*batch, 1, space); None where not every state has its own."""
        sides = self.spec.space_of(x).sides
        return None if sides is None else sides / self.spec[self.position].scale

    def attributes(self, x: Tensor) -> Tensor | None:
        """Return the attributes of pairs in units of their scales, (*batch, body, body, field); None where there are none."""
        if not self.pairs:
            return None
        spec, bodies = self.spec, x.shape[-2]
        return torch.stack([spec.get(x, name)[..., :bodies] / spec[name].scale for name in self.pairs], -1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load weights; older weights without embeddings are of networks that read the class numbers directly."""
        for name, start in self.embeddings.state_dict(prefix=prefix + "embeddings.").items():
            state_dict.setdefault(name, torch.eye(*start.shape, dtype=start.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def _one_hot(classes: Tensor, size: int) -> Tensor:
        return (classes[..., None] == torch.arange(size, device=classes.device)).to(classes.dtype)

    def _vector(self, read: Callable[[str], Tensor], name: str) -> Tensor:
        """A vector field in units of its scale; an earlier value as the change since, in units of a typical change."""
        if name in self._lags:
            return (read(self._lags[name]) - read(name)) / self._changes[name]
        return read(name) / self.spec[name].scale

    def to_free(self, y: Tensor) -> Tensor:
        """Take the predicted channels (..., free channel) out of dynamic channels (..., dynamic channel)."""
        if self.free.channels == self.spec.dynamic_channels:
            return y
        return torch.cat([y[..., self.spec.slice(f.name, among_dynamic=True)] for f in self.free.fields], -1)

    def complete(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the dynamic channels (*batch, body, dynamic channel) that follow from predicted ones y (*batch, body, free channel)."""
        if self.free.channels == self.spec.dynamic_channels:
            return y
        return complete(self.spec, x, {f.name: self.free.get(y, f.name) for f in self.free.fields}, self.frame_dt)

    def split(self, y: Tensor) -> Features:
        """Take predicted channels (..., free channel) apart: scalars (..., field) and vectors (..., field, space)."""
        scalars = [self.free.get(y, f.name) for f in self.dynamic_scalars]
        return Features(
            torch.stack(scalars, -1) if scalars else y[..., :0],
            torch.stack([self.free.get(y, f.name) for f in self.dynamic_vectors], -2),
        )

    # -- absence ---------------------------------------------------------------------------------------------------------

    def observe(self, emission: Independent, x: Tensor, x_next: Tensor, mask: Tensor | None) -> Observed:
        """Return the scores of all bodies that are present before (True in the mask) and after a step."""
        following, stays = self.present(x_next)
        both = mask if stays is None or mask is None else mask & stays
        return Observed(masked(emission, both), self.spec.dynamic(self.next_to(x, following)))

    def entering_and_leaving(self, y: Tensor, mask: Tensor | None, following: Tensor | None) -> Tensor:
        """Return dynamic channels (*batch, body, dynamic channel) with NaN for bodies that are absent after a step.

        Those are the bodies that were absent before it or, where the next state was observed, those that are absent in it; bodies that
        enter are where they were observed.
        """
        if mask is None:
            return y
        if following is None:
            return torch.where(mask[..., None], y, torch.nan)
        seen = self.spec.dynamic(following)
        return torch.where((mask & presence_dynamic(seen))[..., None], y, seen)

    # -- a periodic box --------------------------------------------------------------------------------------------------

    def next_to(self, x: Tensor, x_next: Tensor) -> Tensor:
        """Return a next state (*batch, body, channel) with every position moved to the periodic image nearest to its first guess."""
        if not self.space.periodic:
            return x_next
        channels = self.spec.slice(self.position, among_dynamic=True)
        goal = self.persistence(x)[..., channels]
        y = self.spec.dynamic(x_next)
        image = self.spec.space_of(x).nearest(y[..., channels], goal)
        return self.spec.advance(x_next, torch.cat([y[..., : channels.start], image, y[..., channels.stop :]], -1))

    # -- putting together ------------------------------------------------------------------------------------------------

    def join(self, vectors: Tensor, scalars: Tensor) -> Tensor:
        """Put predicted vectors (..., field, space) and scalars (..., field) in the order of the spec: (..., free channel)."""
        parts = {f.name: vectors[..., i, :] for i, f in enumerate(self.dynamic_vectors)}
        parts |= {f.name: scalars[..., i : i + 1] for i, f in enumerate(self.dynamic_scalars)}
        return torch.cat([parts[f.name] for f in self.free.fields], -1)

    def as_differences(self, change: Tensor, x: Tensor, end: Tensor) -> Tensor:
        """Replace in a change of predicted channels (..., free channel) that of velocities which are differences of positions.

        Parameters
        ----------
        x, end : Tensor, (*batch, body, channel)
            States at the start and end of a frame: their displacement is the next difference.
        """
        if not self.differences:
            return change
        parts = {f.name: change[..., self.free.slice(f.name)] for f in self.free.fields}
        for name, position in self.differences.items():
            way = self.spec.get(end, position) - self.spec.get(x, position)
            parts[name] = way / along(self.spec[name], self.duration(x)) - self.spec.get(x, name)
        return torch.cat(list(parts.values()), -1)

    def per_channel(self, per_field: Tensor) -> Tensor:
        """Repeat a number per predicted field (..., field) for each of its channels: (..., free channel)."""
        return per_field.repeat_interleave(self.widths.to(per_field.device), -1, output_size=self.free.channels)

    def persistence(self, x: Tensor, dt: Tensor | float | None = None) -> Tensor:
        """x + v dt for fields with a rate, x for the others, after one step or dt (*batch, body): (*batch, body, dynamic channel)."""
        return self.spec.pack_dynamic(**self.drifted(x, self.dynamic_values(x), self.duration(x) if dt is None else dt))

    def dynamic_values(self, x: Tensor) -> dict[str, Tensor]:
        """Return every dynamic field of states by name: vectors (*batch, body, space), scalars (*batch, body)."""
        return {f.name: self.spec.get(x, f.name) for f in self.spec.dynamic_fields}

    def drifted(self, x: Tensor, now: Mapping[str, Tensor], dt: Tensor | float) -> dict[str, Tensor]:
        """Carry the dynamic fields `now` of states x along with their rates for a time dt (*batch, body)."""
        moved = dict(now)
        for name, rate in self.rates.items():
            if name in now:
                speed = now[rate] if rate in now else self.spec.get(x, rate)
                moved[name] = _added(now[name], speed, along(self.spec[name], dt))
        return moved

    # -- time ------------------------------------------------------------------------------------------------------------

    def duration(self, x: Tensor) -> Tensor | float:
        """How long the step from states x lasts: (*batch, body), or one number where all frames are even."""
        return duration(self.spec, x, self.frame_dt)

    def step_units(self, x: Tensor, step_scales: Tensor) -> Tensor:
        """Return the typical size (field,) of what a nominal step brings for the steps from states x: (*batch, body, field).

        It grows as noise does, with the root of the duration, or its power 1.5 in a field whose rate is kicked. Where frames are even it is
        `step_scales`.
        """
        if (ratio := relative(self.spec, x)) is None:
            return step_scales
        return step_scales * ratio[..., None] ** self._noise_powers.to(ratio)


def _added(value: Tensor, change: Tensor, factor: Tensor | float) -> Tensor:
    return torch.add(value, change, alpha=factor) if isinstance(factor, float) else torch.addcmul(value, change, factor)


def embedding_shapes(spec: StateSpec) -> list[tuple[int, int]]:
    """Return (class, channel) of the embedding of every category of bodies."""
    return [(f.size, min(f.size, MOST_CHANNELS)) for f in spec.fields if f.kind == "category"]


def position_field(spec: StateSpec) -> str:
    """Return the name of the position field.

    Raises
    ------
    ConfigError
        If there is none or more than one: distances between bodies need one position.
    """
    names = [f.name for f in spec.fields if f.translates]
    if len(names) > 1 or spec.position is None:
        raise ConfigError(f"a particle model needs one vector field that says where bodies are, found {', '.join(names) or 'none'}")
    if odd := [f.name for f in spec.fields if f.parity < 0]:
        raise ConfigError(f"particle models handle scalars (0e) and vectors (1o); {', '.join(odd)} is a pseudoscalar or pseudovector")
    return spec.position.name


def shortened(innovation: Tensor, bound: float = 10.0) -> Tensor:
    """Shorten the standardised innovation of a body (..., channel) smoothly where it is beyond `bound` standard deviations."""
    return innovation / (1 + (innovation / bound).square().mean(-1, keepdim=True)).sqrt()
