"""Analyses of generative models."""
