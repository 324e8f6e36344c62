"""Text: token ids, their vocabulary, and the changes of text that training sees."""
