"""Trained models on the Hugging Face hub: their cards, and how they get there."""
