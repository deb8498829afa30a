"""Published predictors of other packages as models."""
