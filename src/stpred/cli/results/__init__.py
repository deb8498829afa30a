"""Commands on what was predicted."""
