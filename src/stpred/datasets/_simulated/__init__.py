"""Simulated tissue: layout, cells, expression and its image."""
