"""Cell types and genes by a single-cell reference, and what of a prediction they may rest on."""
