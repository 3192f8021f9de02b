"""Equivariant networks: geometry in, features out. No probability here."""

from epns_pyro.backbones.bodies import central, estag, frames, fusion, message_passing, mlp, pairwise, tensor_product, vector  # noqa: F401  (register themselves)
from epns_pyro.backbones.bodies.base import BACKBONES, Backbone, BackboneConfig, Features, Signature
from epns_pyro.backbones.tissues import cell_windows, grid_unet, spatial_conv  # noqa: F401

__all__ = ["BACKBONES", "Backbone", "BackboneConfig", "Features", "Signature"]
