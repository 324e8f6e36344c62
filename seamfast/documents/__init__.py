"""What pages for people share: HTML in which all text is escaped, and one stylesheet. Standard library only."""
