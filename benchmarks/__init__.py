"""Benchmarks in the style of asv; ``python -m benchmarks`` runs them without it."""
