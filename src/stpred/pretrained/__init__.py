"""Published predictors of other packages: found by name, their weights read from local folders or the hub."""
