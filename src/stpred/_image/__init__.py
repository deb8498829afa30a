"""Arrays only: stain separation, texture, nuclei (rank 1)."""
