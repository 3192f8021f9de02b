"""One multilayer perceptron on the concatenated features of all bodies: the published PNS-MLP, for ablation."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import pydantic
import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import BACKBONES, Backbone, BackboneConfig, Features, Signature, perceptron


class MultilayerPerceptron(Backbone):
    """A perceptron on all bodies in one vector: not equivariant under permutations or rotations, and for one number of bodies only."""

    equivariant: ClassVar[bool] = False

    def __init__(self, signature: Signature, config: MultilayerPerceptronConfig) -> None:
        super().__init__(signature)
        s = signature
        fan_in = s.bodies * (s.in_scalars + s.space * (1 + s.in_vectors) + s.bodies * s.pairs)
        fan_out = s.bodies * (s.out_scalars + s.space * s.out_vectors)
        self.network = perceptron(fan_in, *[config.width] * config.layers, fan_out)

    def largest(self, bodies: int) -> int:
        return max(layer.out_features for layer in self.network if isinstance(layer, nn.Linear))

    @property
    def last_layers(self) -> tuple[nn.Linear, ...]:
        return (cast(nn.Linear, self.network[-1]),)

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        s = self.signature
        rows = [] if features.pairs is None else [features.pairs.flatten(-2)]
        flat = torch.cat([features.scalars, positions, features.vectors.flatten(-2), *rows], -1).flatten(-2)
        widths = [s.out_scalars, s.out_vectors * s.space]
        scalars, vectors = self.network(flat).unflatten(-1, (s.bodies, sum(widths))).split(widths, -1)
        return Features(scalars, vectors.unflatten(-1, (s.out_vectors, s.space)))


@BACKBONES.register("mlp")
class MultilayerPerceptronConfig(BackboneConfig):
    """PNS-MLP: one multilayer perceptron on all bodies."""

    name: Literal["mlp"] = "mlp"
    width: int = pydantic.Field(default=256, gt=0, description="channels of hidden layers")
    layers: int = pydantic.Field(default=3, gt=0, description="hidden layers")

    def build(self, signature: Signature) -> MultilayerPerceptron:
        return MultilayerPerceptron(signature, self)
