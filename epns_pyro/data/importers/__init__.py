"""Readers of foreign formats, each of which writes a store."""
