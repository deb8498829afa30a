"""Analyses of whole samples."""
