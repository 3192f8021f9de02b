"""What observations say about a trajectory: filtering, smoothing and bridges with a trained simulator."""
