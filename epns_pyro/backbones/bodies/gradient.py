"""Forces that have a potential: minus the gradient of an invariant by the positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from epns_pyro.backbones.bodies.base import AroundNetwork, Backbone, Features, Signature


class Gradient(AroundNetwork):
    """Vectors are minus the gradients of energies, each the sum over the bodies of a scalar of another network.

    No energy changes when all bodies move together, so the forces add up to zero. The network is given no vectors: a force that depends
    on velocities has no potential.
    """

    equivariant: ClassVar[bool] = True
    periodic: ClassVar[bool] = True
    reads_vectors: ClassVar[bool] = False

    def __init__(self, signature: Signature, build: Callable[[Signature], Backbone]) -> None:
        nn.Module.__init__(self)
        self.signature = signature
        self.network = build(replace(signature, in_vectors=0, out_scalars=signature.out_scalars + signature.out_vectors, out_vectors=0))

    def evaluate(self, positions: Tensor, features: Features) -> Features:
        inputs = (positions, features.scalars, *(() if features.pairs is None else (features.pairs,)), *self.parameters())
        differentiable = torch.is_grad_enabled() and any(value.requires_grad for value in inputs)
        with torch.enable_grad():
            places = positions if differentiable and positions.requires_grad else positions.detach().requires_grad_()
            out = self.network(places, replace(features, vectors=features.vectors[..., :0, :]))
            scalars, energies = out.scalars.split([self.signature.out_scalars, self.signature.out_vectors], -1)
            if features.mask is not None:
                energies = torch.where(features.mask[..., None], energies, 0.0)
            forces = [
                -torch.autograd.grad(energy.sum(), places, create_graph=differentiable, retain_graph=True, materialize_grads=True)[0]
                for energy in energies.unbind(-1)
            ]
        vectors = torch.stack(forces, -2) if forces else features.vectors[..., :0, :]
        return Features(scalars if differentiable else scalars.detach(), vectors)
