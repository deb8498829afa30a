"""Training predictors and encoders, and predicting."""
