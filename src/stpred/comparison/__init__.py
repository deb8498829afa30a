"""Which rows, genes and scales of two tables belong together."""
