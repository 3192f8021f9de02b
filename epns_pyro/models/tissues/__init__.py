"""Transitions of label images of cells."""
