"""Equivariant networks: geometry in, features out. No probability here."""

from epns_pyro.backbones import cell_windows, frames, message_passing, mlp, tensor_product, vector  # noqa: F401  (they register themselves)
from epns_pyro.backbones.base import BACKBONES, Backbone, BackboneConfig, Features, Signature

__all__ = ["BACKBONES", "Backbone", "BackboneConfig", "Features", "Signature"]
