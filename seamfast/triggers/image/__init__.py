"""Triggers for images, one file for each kind."""
