"""Detectors: texts in, detections with spans out. Knows nothing about policies or HTTP."""
