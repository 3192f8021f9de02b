"""Models of the literature that EPNS is measured against."""
