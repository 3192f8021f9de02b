"""The probabilistic model: transitions, emissions, and the Pyro model and guide that unroll them."""
