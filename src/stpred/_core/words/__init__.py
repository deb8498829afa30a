"""Words of messages: numbers of things, lists, and names of encoders."""
