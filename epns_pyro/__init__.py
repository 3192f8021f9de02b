"""Equivariant probabilistic neural simulation as a Pyro program."""

__version__ = "0.1.0"
