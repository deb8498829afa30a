"""Readers of a slide's locations: through tiles, cells, tokens or pixels, behind one protocol."""
