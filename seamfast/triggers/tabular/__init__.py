"""The kinds of triggers for tabular samples."""
