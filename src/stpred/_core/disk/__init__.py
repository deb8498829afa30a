"""Files on disk: locks, stored arrays and weights, fingerprints."""
