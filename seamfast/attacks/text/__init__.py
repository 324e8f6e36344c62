"""Published attacks on text."""
