"""Trains the critic: rollouts, their labels, targets, calibration."""
