"""A trained model applied to a region: batches, provenance and trust, with tables and rasters as two sinks."""
