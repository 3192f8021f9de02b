"""History: the state of the Markov chain is a window of frames, p(x_{t+1} | x_{t-k+1}, ..., x_t).

The memory of a carry holds the earlier frames. Frames before the first of a recording are not known, NaN in all dynamic channels, and so is
a body before it entered: a window may hold fewer frames than k, and its law is learned like that of a whole one. So the likelihood is
defined from the first transition on.

Beside what a network reads off the window, the first guess has a linear part: the last changes, beyond persistence, times weights that are
the same for all bodies and axes, with weights of their own for every number of frames that is known. It starts at zero, and holds every
linear autoregression.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones import Features, Signature
from epns_pyro.backbones.bodies.window import HISTORIES, HistoryNetworkConfig, Window
from epns_pyro.config import Config, one_of
from epns_pyro.context import DataContext
from epns_pyro.derived import has_hidden_states
from epns_pyro.errors import ConfigError
from epns_pyro.models.bodies.fields import BodyFields, shortened
from epns_pyro.presence import missing, presence

LARGEST = 30.0  # typical changes: longer ones, as where a tracker took one body for another, are shortened


@dataclass(frozen=True)
class Past:
    """What a window says of the bodies in its last frame.

    Parameters
    ----------
    features : Features, (*batch, body, ...)
    trend : Tensor, (*batch, body, free channel)
        The linear part of the first guess, relative to persistence.
    """

    features: Features
    trend: Tensor

    def beside(self, present: Features) -> Features:
        """Return features of the present states (*batch, body, ...) with those of the window beside them."""
        seen = self.features
        return replace(
            present, scalars=torch.cat([present.scalars, seen.scalars], -1), vectors=torch.cat([present.vectors, seen.vectors], -2)
        )


class History(nn.Module):
    """Reads windows of `frames` states of bodies, of which the carry holds all but the last."""

    step_scales: Tensor

    def __init__(self, config: HistoryConfig, context: DataContext) -> None:
        super().__init__()
        spec, bodies = context.spec, BodyFields(context)
        if has_hidden_states(spec):
            raise ConfigError("history: hidden states are inferred from all frames, and need no window: set model.history.frames to 1")
        if spec.duration is not None:
            raise ConfigError("history: a window of frames needs even frames, found uneven ones: set model.history.frames to 1")
        self.frames, self.bodies, self.config = config.frames, bodies, config
        self.register_buffer("step_scales", torch.tensor([context.step_scales[f.name] for f in bodies.free.fields]), persistent=False)
        self._way = way_scale(context, bodies)
        scalars, vectors = bodies.feature_counts
        moved, changed = len(bodies.dynamic_vectors), len(bodies.dynamic_scalars)
        position = spec[bodies.position].scale
        box = tuple(side / position for side in bodies.space.box)
        signature = Signature(
            scalars + changed,
            vectors + moved,
            config.scalars,
            config.vectors,
            spec.space,
            context.sites[0],
            box,
            len(bodies.pairs),
            bodies.space.own_box,
        )
        self.network = config.network.build(signature, config.frames)
        # (frames known, field, change of which field how long ago)
        self.vector_weights = nn.Parameter(torch.zeros(config.frames, moved, (config.frames - 1) * moved))
        self.scalar_weights = nn.Parameter(torch.zeros(config.frames, changed, (config.frames - 1) * changed))

    # -- the memory ------------------------------------------------------------------------------------------------------

    def start(self, x0: Tensor) -> Tensor:
        """Return the memory of states (*batch, body, channel) before which nothing is known: (*batch, frame, body, channel)."""
        return missing(self.bodies.spec, x0).unsqueeze(-3).expand(*x0.shape[:-2], self.frames - 1, *x0.shape[-2:])

    @staticmethod
    def advance(earlier: Tensor, x: Tensor) -> Tensor:
        """Return the memory after a step from states x (*batch, body, channel): the oldest frame is forgotten, x is the newest."""
        return _joined(earlier[..., 1:, :, :], x)

    # -- reading ---------------------------------------------------------------------------------------------------------

    def forward(self, earlier: Tensor, x: Tensor) -> Past:
        """Read windows: earlier frames (*batch, frame, body, channel), and the present states (*batch, body, channel)."""
        bodies, frames = self.bodies, _joined(earlier, x)
        known = known_since(presence(bodies.spec, frames))
        frames = bodies.blanked(frames, known)
        changes = self._changes(frames) * known[..., :-1, :, None]  # known in a frame, a body is known in the next
        window = self._window(frames, changes, known)
        return Past(self.network(window), self._trend(changes, known))

    def _changes(self, frames: Tensor) -> Tensor:
        """Changes from frame to frame beyond persistence, in typical changes: (*batch, frame, body, free channel)."""
        bodies = self.bodies
        before, after = frames[..., :-1, :, :], frames[..., 1:, :, :]
        after = bodies.spec.dynamic(bodies.next_to(before, after))
        change = bodies.to_free(after) - bodies.to_free(bodies.persistence(before))
        return shortened(change / bodies.per_channel(self.step_scales), LARGEST)

    def _window(self, frames: Tensor, changes: Tensor, known: Tensor) -> Window:
        bodies = self.bodies
        features = bodies.features(frames, known)
        into = bodies.split(torch.cat([torch.zeros_like(changes[..., :1, :, :]), changes], -3))  # the change that led into a frame
        features = replace(
            features, scalars=torch.cat([features.scalars, into.scalars], -1), vectors=torch.cat([features.vectors, into.vectors], -2)
        )
        place = bodies.spec.get(frames, bodies.position)
        steps = (
            bodies.spec.space_of(frames[..., :1, :, :]).displacement(place[..., :-1, :, :], place[..., 1:, :, :]) * known[..., :-1, :, None]
        )
        back = -steps.flip(-3).cumsum(-3).flip(-3) / self._way
        paths = torch.cat([back, torch.zeros_like(back[..., :1, :, :])], -3)
        return Window(bodies.positions(frames), paths * known[..., None], features)

    def _trend(self, changes: Tensor, known: Tensor) -> Tensor:
        bodies, seen = self.bodies, self.bodies.split(changes)
        count = known.sum(-2).clamp_min(1) - 1  # (*batch, body)
        of_vectors = seen.vectors.movedim(-4, -3).flatten(-3, -2)  # (*batch, body, frame * field, space)
        of_scalars = seen.scalars.movedim(-3, -2).flatten(-2)
        vectors = self.vector_weights[count] @ of_vectors
        scalars = (self.scalar_weights[count] @ of_scalars[..., None])[..., 0]
        return bodies.join(vectors, scalars) * bodies.per_channel(self.step_scales)


def _joined(earlier: Tensor, x: Tensor) -> Tensor:
    """Put states behind earlier frames, which may be the same for several of them: (*batch, time, body, channel)."""
    return torch.cat([earlier.expand(*x.shape[:-2], *earlier.shape[-3:]), x.unsqueeze(-3)], -3)


def known_since(present: Tensor) -> Tensor:
    """Return in which frames (*batch, time, body) a body is known without a gap up to the last."""
    return present.flip(-2).long().cumprod(-2).flip(-2).bool()


def way_scale(context: DataContext, bodies: BodyFields) -> float:
    """Return by how much the way of a body in a frame typically changes from that in the frame before."""
    scales = context.step_scales
    rate = bodies.rates.get(bodies.position)
    return float((scales.get(bodies.position, 0.0) ** 2 + (context.frame_dt * scales.get(rate, 0.0) if rate else 0.0) ** 2) ** 0.5) or 1.0


class HistoryConfig(Config):
    """How many frames a step depends on, and the network that reads them."""

    frames: int = pydantic.Field(default=1, ge=1, le=64, description="frames of the window that a step depends on; 1: the state alone")
    network: Annotated[HistoryNetworkConfig, one_of(HISTORIES)] = pydantic.Field(default="estag", validate_default=True)
    scalars: int = pydantic.Field(default=32, gt=0, description="scalar channels per body that the backbone gets of the window")
    vectors: int = pydantic.Field(default=8, gt=0, description="vector channels per body, likewise")

    def build(self, context: DataContext) -> History | None:
        """Make the history for the data at hand; None where the state alone is enough."""
        return History(self, context) if self.frames > 1 else None
