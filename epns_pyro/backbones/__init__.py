"""Equivariant networks: geometry in, features out. No probability here."""
