"""What `docs/conf.py` adds to Sphinx."""
