"""Reproducible measurements of the guard. Knows nothing that the service needs."""
