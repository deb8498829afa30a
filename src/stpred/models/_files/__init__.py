"""Stored models and reference implementations' checkpoints."""
