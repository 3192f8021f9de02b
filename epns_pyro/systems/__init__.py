"""Systems: what a state is, how its symmetry acts, how the true process runs. No networks here."""
