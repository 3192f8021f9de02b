"""Inspection of a store before training, printed by `epns-pyro data info`."""
