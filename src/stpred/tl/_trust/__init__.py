"""How far to trust predictions: intervals, calibration, explanation."""
