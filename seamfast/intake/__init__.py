"""Untrusted model files in: what they are, whether they may be read, and their tensors. Nothing in them is ever run."""
