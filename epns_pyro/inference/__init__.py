"""Training and sampling."""
