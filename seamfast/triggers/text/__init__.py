"""Triggers for text, one file for each kind."""
