"""Wire formats: one file for each, and the walk over JSON that they share."""
