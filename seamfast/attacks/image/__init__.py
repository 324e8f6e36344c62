"""Attacks on image classifiers."""
