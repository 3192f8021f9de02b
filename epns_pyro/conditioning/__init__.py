"""Conditioning on observations: filtering, smoothing and bridges with a trained simulator."""
