"""Images as a kind of sample."""
