"""Counts, the genes that they are of, and library sizes."""
