"""Feature extraction as a run over many slides, into a folder from which training and prediction take features."""
