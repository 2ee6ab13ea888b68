"""ToxicDetector on the embedded language model: `sluiceway train toxicdetector`."""
