"""Analyses of single cells."""
