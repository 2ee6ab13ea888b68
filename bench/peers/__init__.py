"""Other guards that run offline, scored on the same rows by the same figures."""
