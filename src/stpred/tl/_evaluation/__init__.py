"""Predictions against measurements, and models against each other."""
