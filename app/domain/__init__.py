"""The pure core: what is judged, what was found, what follows. No IO, no clock, no framework."""
