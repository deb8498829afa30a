"""Going on from a trained model on own slides."""
