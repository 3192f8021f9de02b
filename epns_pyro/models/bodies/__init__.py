"""Transitions of sets of bodies."""
