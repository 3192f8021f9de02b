"""Equivariant networks: geometry in, features out. No probability here."""

from epns_pyro.backbones import (  # noqa: F401  (they register themselves)
    cell_windows,
    frames,
    grid_unet,
    message_passing,
    mlp,
    pairwise,
    spatial_conv,
    tensor_product,
    vector,
)
from epns_pyro.backbones.base import BACKBONES, Backbone, BackboneConfig, Features, Signature

__all__ = ["BACKBONES", "Backbone", "BackboneConfig", "Features", "Signature"]
