"""The base class of networks on sets of bodies: their inputs, outputs and equivariance."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from epns_pyro.config import Config, Registry
from epns_pyro.errors import ConfigError, ShapeError
from epns_pyro.geometry import Space

if TYPE_CHECKING:
    from epns_pyro.backbones.bodies.edges import Around

BACKBONES = Registry("backbone")


@dataclass(frozen=True)
class Signature:
    """Declare the representations at the input and the output of a backbone, per body.

    Parameters
    ----------
    in_scalars, out_scalars : int
        Invariant channels.
    in_vectors, out_vectors : int
        Vectors of space; they rotate and reflect, they do not translate.
    space : int
        Dimension of space.
    bodies : int
        Number of bodies; only networks that are not permutation equivariant depend on it.
    box : tuple of float
        Sides of the periodic box, in the unit of the positions that the network gets; empty: none.
    pairs : int
        Invariant channels per pair of bodies.
    own_box : bool
        Whether every state is in a periodic box of its own, whose sides the features hold.
    axes : bool
        Whether only those turns are symmetries that map the axes of space to each other: what is done to every component alike is allowed.
    """

    in_scalars: int
    in_vectors: int
    out_scalars: int
    out_vectors: int
    space: int = 3
    bodies: int = 1
    box: tuple[float, ...] = ()
    pairs: int = 0
    own_box: bool = False
    axes: bool = False

    @property
    def geometry(self) -> Space:
        return Space(self.space, self.box, own_box=self.own_box)

    def space_of(self, features: Features) -> Space:
        """Return the space of states, in the unit of the positions that the network gets."""
        return self.geometry if features.sides is None else self.geometry.of(features.sides)


@dataclass(frozen=True)
class Features:
    """Features of bodies, at the input or the output of a network.

    Parameters
    ----------
    scalars : Tensor, (*batch, body, channel)
    vectors : Tensor, (*batch, body, channel, space)
    mask : Tensor, (*batch, body), optional
        False for bodies that are absent: they do not change the output of any other body. Their own features must be finite; their own
        output is meaningless.
    pairs : Tensor, (*batch, body, body, channel), optional
        Attributes of pairs; entry (i, j) is what body i has to do with body j.
    sides : Tensor, (*batch, 1, space), optional
        Sides of the periodic box, in the unit of the positions, where every state has its own.
    around : Around, optional
        What `Backbone.look` of a network with the same settings has found at the same positions, of the same bodies.
    """

    scalars: Tensor
    vectors: Tensor
    mask: Tensor | None = None
    pairs: Tensor | None = None
    sides: Tensor | None = None
    around: Around | None = None


class Backbone(nn.Module, ABC):
    """A network f(positions, features) -> features on a set of bodies.

    An equivariant backbone satisfies, for every rotation or reflection R, translation t and permutation P of the bodies,
    f(P(R r + t), P s, P R v) = (P s', P R v') where f(r, s, v) = (s', v').
    """

    equivariant: ClassVar[bool]
    reads_vectors: ClassVar[bool] = True  # False if the vectors of a body change nothing
    periodic: ClassVar[bool] = False  # True if it reads only displacements between bodies, and so works in a periodic box

    def __init__(self, signature: Signature) -> None:
        super().__init__()
        if signature.geometry.periodic and not self.periodic:
            raise ConfigError(
                f"{type(self).__name__} reads coordinates, which have no meaning in a periodic box: use the backbone 'vector'"
            )
        self.signature = signature

    def forward(self, positions: Tensor, features: Features) -> Features:
        """Evaluate the network.

        Parameters
        ----------
        positions : Tensor, (*batch, body, space)
        features : Features
            Channels as the signature declares.

        Returns
        -------
        Features
            `out_scalars` and `out_vectors` channels per body.

        Raises
        ------
        ShapeError
            If the features are not those that the signature declares.
        """
        want = (self.signature.in_scalars, self.signature.in_vectors, self.signature.space)
        have = (features.scalars.shape[-1], features.vectors.shape[-2], positions.shape[-1])
        if want != have:
            raise ShapeError(f"{type(self).__name__} declares (scalars, vectors, space) = {want}, found {have}")
        pairs = 0 if features.pairs is None else features.pairs.shape[-1]
        if pairs != self.signature.pairs:
            raise ShapeError(f"{type(self).__name__} declares {self.signature.pairs} attributes of pairs, found {pairs}")
        if self.signature.own_box != (features.sides is not None):
            raise ShapeError(f"{type(self).__name__}: sides of the box go with a signature that says that every state has its own")
        return self.evaluate(positions, features)

    def look(self, positions: Tensor, features: Features) -> Around | None:
        """Work out what networks with these settings read of positions alone, to share it in `Features.around`; None: nothing is shared."""
        return None

    def at(self, features: Features) -> Callable[[Tensor, Tensor], Features]:
        """Return the network as a function of positions and vectors alone: what else the features say need not be worked out again."""
        return lambda positions, vectors: self(positions, replace(features, vectors=vectors))

    def largest(self, bodies: int) -> int:
        """Return how many numbers the largest tensor holds that one state of so many bodies needs on the way; by default 64 per pair."""
        return 64 * bodies * max(1, bodies - 1)

    @property
    def last_layers(self) -> tuple[nn.Linear, ...]:
        """Return the last linear layers, one per kind of output: scaling all of them scales the output."""
        return ()

    @torch.no_grad()
    def scale_output(self, factor: float) -> Backbone:
        """Scale the weights of the last layers and return the network; with a small factor its first outputs are near zero."""
        for layer in self.last_layers:
            layer.weight.mul_(factor)
            if layer.bias is not None:
                layer.bias.mul_(factor)
        return self

    @abstractmethod
    def evaluate(self, positions: Tensor, features: Features) -> Features:
        """Compute the output of `forward`, after the shapes have been checked."""


class AroundNetwork(Backbone):
    """A backbone that makes its output from that of another one, `network`."""

    network: Backbone

    def largest(self, bodies: int) -> int:
        return self.network.largest(bodies)

    @property
    def last_layers(self) -> tuple[nn.Linear, ...]:
        return self.network.last_layers


class BackboneConfig(Config, ABC):
    """Settings of a backbone; `build` makes the network for a signature."""

    name: str

    @abstractmethod
    def build(self, signature: Signature) -> Backbone: ...


def perceptron(*widths: int, small_output: bool = False) -> nn.Sequential:
    """Return a multilayer perceptron with SiLU between its layers; with `small_output` its first outputs are near zero."""
    linear = [_Linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(widths)]
    if small_output:
        with torch.no_grad():
            linear[-1].weight.mul_(0.1)
            linear[-1].bias.zero_()
    layers = [layer for each in linear for layer in (each, nn.SiLU())]
    return nn.Sequential(*layers[:-1])


def split_first(network: nn.Sequential, *sizes: int) -> tuple[list[Tensor], Tensor]:
    """Split the first layer of a perceptron over its arguments, W [a, b] = W1 a + W2 b: the weights by columns, and the bias.

    What an argument contributes can then be computed where it is known: per body and not per pair, or once and not at every step.
    """
    first = cast(nn.Linear, network[0])
    return list(first.weight.split(sizes, -1)), first.bias


def after_first(network: nn.Sequential, hidden: Tensor) -> Tensor:
    """Apply all layers of a perceptron but the first."""
    for layer in itertools.islice(network, 1, None):
        hidden = layer(hidden)
    return hidden


def centroid(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean (*batch, 1, channel) of values (*batch, body, channel) over the bodies where a mask (*batch, body) is True."""
    if mask is None:
        return values.mean(-2, keepdim=True)
    weight = mask.to(values.dtype)[..., None]
    return (values * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp_min(1)


class _Linear(nn.Linear):
    """A linear map that may have no input or no output: PyTorch would warn that there is nothing to initialise."""

    def reset_parameters(self) -> None:
        if self.weight.numel():
            super().reset_parameters()
        else:
            nn.init.zeros_(self.bias)


def safe_norm(vectors: Tensor, floor: float = 1e-12) -> Tensor:
    """Return |v| over the last axis with a finite gradient at v = 0: sqrt(v . v + floor)."""
    return (vectors.square().sum(-1) + floor).sqrt()
