"""Equivariant networks of sets of bodies, and the graphs that they work on."""
