"""Results of a run over many slides, brought together."""
