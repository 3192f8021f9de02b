"""Networks of label images of cells that do not know cells by name."""
