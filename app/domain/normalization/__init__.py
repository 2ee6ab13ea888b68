"""Readings of a text: as it looks, and as it may have been disguised."""
