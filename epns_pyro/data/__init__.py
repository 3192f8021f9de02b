"""Trajectory stores, windows and importers."""
