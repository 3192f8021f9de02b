"""Symplectic maps as the mean of a stochastic step."""
