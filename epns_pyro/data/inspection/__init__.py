"""What `data info` says about a store before training stumbles over it."""
