"""The toxic prompt detector on a frozen sentence encoder: `sluiceway train prompt-detector`."""
