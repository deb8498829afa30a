"""Distances from the border of a region, and what there is at which distance."""
