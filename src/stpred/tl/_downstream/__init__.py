"""Downstream analyses of predicted and measured expression."""
