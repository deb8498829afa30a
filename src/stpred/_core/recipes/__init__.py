"""Typed options of studies: how slides are split, and which locations are good enough."""
