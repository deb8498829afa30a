"""The family ``"auto"``: candidates, their weights, and the model of those that are kept."""
