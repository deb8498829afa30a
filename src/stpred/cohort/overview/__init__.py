"""A page about a run over many slides that opens from disk."""
