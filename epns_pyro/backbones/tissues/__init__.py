"""Networks on label images of cells."""
