"""The published attacks on tabular data."""
